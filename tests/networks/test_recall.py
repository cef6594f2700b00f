"""Normality Recall, compared with plain loops, and its gradients with finite differences."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skmkd._maps.discrepancy import cosine_distance, products
from skmkd._networks.recall import (
    MemoryCloner,
    MemoryPlan,
    NormalityRecall,
    attention,
    blend,
    entropy,
    mean_squared_cosine,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def recall_of(size=5, channels=4, temperature=0.3, of_source=False):
    recall = NormalityRecall(MemoryPlan(size, (1,), temperature, of_source), channels)
    recall.draw(torch.Generator().manual_seed(1))
    return recall


def cosines(features, items):
    """Compare every position with every item, one after the other: (n, h, w, L)."""
    n, _, h, w = features.shape
    found = np.empty((n, h, w, len(items)))
    for i, y, x, k in np.ndindex(*found.shape):
        a, b = features[i, :, y, x], items[k]
        found[i, y, x, k] = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    return found


def test_weights_are_a_softmax_over_cosines():
    features, items = normal(2, 4, 3, 2), normal(5, 4, seed=1)
    expected = np.exp(cosines(features.numpy(), items.numpy()) / 0.3)
    expected /= expected.sum(-1, keepdims=True)
    weights = attention(features, items, 0.3)
    assert_allclose(weights, expected, rtol=1e-5)
    assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert_allclose(attention(7 * features, 0.1 * items, 0.3), weights, rtol=1e-5)


def test_a_low_temperature_recalls_the_nearest_item():
    features, recall = normal(3, 4, 4, 4), recall_of(temperature=1e-4)
    nearest = cosines(features.numpy(), recall.keys.detach().numpy()).argmax(-1)
    recalled = recall(features).detach().numpy()
    assert_allclose(np.moveaxis(recalled, 1, -1), recall.values.detach().numpy()[nearest])


def test_a_high_temperature_recalls_the_mean():
    recall = recall_of(temperature=1e6)
    expected = recall.values.mean(0)[None, :, None, None].expand(2, -1, 3, 3)
    assert_allclose(recall(normal(2, 4, 3, 3)).detach(), expected.detach(), rtol=1e-3, atol=1e-6)


def test_blend_sums_items_by_their_weights():
    weights, items = torch.rand(2, 3, 2, 5, generator=torch.Generator()), normal(5, 4)
    blended = blend(weights, items)
    assert blended.shape == (2, 4, 3, 2)
    for i, y, x in np.ndindex(2, 3, 2):
        expected = sum(weights[i, y, x, k] * items[k] for k in range(5))
        assert_allclose(blended[i, :, y, x], expected, rtol=1e-5, atol=1e-6)


def test_entropy_lies_between_one_item_and_all():
    one = torch.nn.functional.one_hot(torch.tensor([[[0, 3]]]), 5).float()
    assert_array_equal(entropy(one), np.zeros((1, 1, 2)))
    assert_allclose(entropy(torch.full((1, 2, 3, 5), 0.2)), np.full((1, 2, 3), log(5)), rtol=1e-6)
    some = entropy(attention(normal(2, 4, 3, 3), normal(5, 4, seed=1), 0.5))
    assert ((some > 0) & (some < log(5))).all()


def test_exemplar_loss_is_half_the_squared_distance_of_unit_vectors():
    recall, exemplars = recall_of(), normal(3, 4, 2, 2)
    recalled = blend(attention(exemplars, recall.values, 0.3), recall.values)
    unit = [a / a.norm(dim=1, keepdim=True) for a in (exemplars, recalled)]
    expected = (unit[0] - unit[1]).square().sum(1).mean() / 2
    assert_allclose(recall.exemplar_loss(exemplars, 3).item(), expected.item(), rtol=1e-5)
    assert_allclose(
        recall.exemplar_loss(exemplars, 3).item(),
        cosine_distance(products(*unit)).mean().item(),
        rtol=1e-5,
    )


def test_exemplar_loss_vanishes_where_exemplars_are_values():
    recall = recall_of(temperature=1e-3)
    exemplars = 2 * recall.values.detach().t()[None, :, None]  # (1, 4, 1, 5)
    assert recall.exemplar_loss(exemplars, 3).item() == pytest.approx(0, abs=1e-5)


def test_exemplars_are_the_first_images_standardized_with_all():
    recall, features = recall_of(of_source=True), 3 * normal(6, 4, 3, 3) + 7
    mean, deviation = features.mean((0, 2, 3)), features.std((0, 2, 3), unbiased=False)
    standard = (features - mean[:, None, None]) / deviation[:, None, None]
    expected = recall_of().exemplar_loss(standard, 2)
    assert_allclose(recall.exemplar_loss(features, 2).item(), expected.item(), rtol=1e-3)
    recall_of(of_source=True).exemplar_loss(normal(2, 4, 1, 1), 1)  # one position of one image


def test_items_begin_as_features_at_random_positions():
    recall, features = recall_of(50, of_source=True), 3 * normal(2, 4, 2, 2) + 7
    recall.remember(features, torch.Generator().manual_seed(0))
    standard = torch.nn.functional.batch_norm(features, None, None, training=True)
    rows = standard.movedim(1, -1).flatten(0, 2)  # fewer than items
    nearest = []
    for items in (recall.keys, recall.values):
        gaps, which = torch.cdist(items.detach(), rows).min(1)
        assert gaps.min() > 0  # no two are alike
        assert gaps.max() < 0.5
        nearest.append(which)
    assert_array_equal(*nearest)
    assert len(nearest[0].unique()) == len(rows)


def test_features_of_one_direction_are_told_apart():
    features = normal(2, 8, 4, 4) + 20
    found = {}
    for of_source in (False, True):
        recall = recall_of(20, 8, 0.1, of_source)
        recall.remember(features, torch.Generator().manual_seed(0))
        found[of_source] = entropy(recall.attention(features)).mean().item()
    assert found[True] < log(20) / 2 < 0.9 * log(20) < found[False]


def test_exemplars_teach_the_values_alone():
    recall = recall_of()
    recall.exemplar_loss(normal(2, 4, 3, 3), 2).backward()
    assert recall.keys.grad is None
    assert recall.values.grad.abs().sum(1).min() > 0


def test_orthogonality():
    assert mean_squared_cosine(3 * torch.eye(4)).item() == 0
    assert mean_squared_cosine(torch.ones(4, 3)).item() == pytest.approx(1)
    assert mean_squared_cosine(torch.ones(1, 3)).item() == 0
    items = normal(5, 4).numpy()
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    squared = [
        (items[i] @ items[j] / np.linalg.norm(items[i]) / np.linalg.norm(items[j])) ** 2
        for i, j in pairs
    ]
    assert mean_squared_cosine(normal(5, 4)).item() == pytest.approx(np.mean(squared), rel=1e-5)
    recall = recall_of()
    both = (mean_squared_cosine(recall.keys) + mean_squared_cosine(recall.values)) / 2
    assert recall.orthogonality_loss().item() == both.item()


def test_gradients_are_those_of_finite_differences():
    recall = recall_of(3, 2).double()
    features = normal(1, 2, 2, 2).double().requires_grad_()

    def run(features, keys, values):
        state = {"keys": keys, "values": values}
        return torch.func.functional_call(recall, state, (features,))

    assert torch.autograd.gradcheck(run, (features, recall.keys, recall.values))
    for loss in (lambda v: mean_squared_cosine(v), lambda v: attention(features, v, 0.3)):
        assert torch.autograd.gradcheck(loss, (recall.values,))


def test_zero_features_have_a_finite_recall():
    recall = recall_of()
    zeros = torch.zeros(1, 4, 2, 2)
    assert recall(zeros).isfinite().all()
    recall.exemplar_loss(zeros, 1).backward()
    assert recall.values.grad.isfinite().all()


def test_features_in_bfloat16_are_taken():
    recall, features = recall_of(), normal(2, 4, 3, 3)
    assert_allclose(
        recall.exemplar_loss(features.bfloat16(), 2).item(),
        recall.exemplar_loss(features, 2).item(),
        rtol=0.02,
    )
    assert recall.attention(features.bfloat16()).dtype == torch.float32


def test_memories_append_to_the_features_of_their_levels():
    plan = MemoryPlan(6, (2, 3), 0.1)
    network = MemoryCloner(plan, {1: ("a", 4), 2: ("b", 8), 3: ("c", 2)})
    assert {level: memory.keys.shape for level, memory in network.memories.items()} == {
        "2": (6, 8), "3": (6, 2),
    }  # fmt: skip
    for recall in network.memories.values():
        recall.draw(torch.Generator())
    features = {"a": normal(2, 4, 3, 3), "b": normal(2, 8, 2, 2), "c": normal(2, 2, 1, 1)}
    assert network.append_recall(1, features["a"], {}) is features["a"]
    appended = network.append_recall(2, features["b"], {})
    assert_array_equal(appended[:, :8].detach(), features["b"])
    assert_array_equal(appended[:, 8:].detach(), network.memories["2"](features["b"]).detach())
    assert appended.shape[1] == plan.output_channels(2, 8) == 16
    assert plan.output_channels(1, 4) == 4
    source = {"b": normal(2, 8, 2, 2, seed=1)}
    asking = MemoryCloner(plan, {1: ("a", 4), 2: ("b", 8), 3: ("c", 2)}, asks_source=True)
    asking.load_state_dict(network.state_dict())
    for cloner, query in ((network, features["b"]), (asking, source["b"])):
        appended = cloner.append_recall(2, features["b"], source)
        assert_array_equal(appended[:, :8].detach(), features["b"])
        assert_array_equal(appended[:, 8:].detach(), cloner.memories["2"](query).detach())
    assert asking.queries(source, features)["c"] is features["c"]
    inputs = network.memory_inputs(features)
    assert {level: layer is features[name] for (level, (_, layer)), name in
            zip(inputs.items(), "bc", strict=True)} == {2: True, 3: True}  # fmt: skip
    assert inputs[3][0] is network.memories["3"]
