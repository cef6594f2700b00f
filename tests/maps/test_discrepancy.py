from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skmkd._maps import discrepancy
from skmkd._maps.discrepancy import (
    balancing_weight,
    cosine_distance,
    direction_discrepancy,
    discrepancies,
    discrepancy_map,
    products,
    squared_distance,
    total_discrepancy,
    value_discrepancy,
)


def value_map(source, cloner):
    return squared_distance(products(source, cloner))


def direction_map(source, cloner):
    return cosine_distance(products(source, cloner))


def value(source, cloner):
    return value_discrepancy(products(source, cloner))


def direction_of(source, cloner, direction="vector"):
    return direction_discrepancy(products(source, cloner), direction)


@pytest.fixture
def pair():
    """Activations of source and cloner, float64, of shape (5, 4, 3, 2)."""
    return np.random.default_rng(0).normal(size=(2, 5, 4, 3, 2))


def tensors(pair):
    return torch.from_numpy(pair[0]), torch.from_numpy(pair[1])


@pytest.mark.parametrize("chunk", [1, 50, 2**20])
def test_products_and_their_gradients_are_those_of_plain_sums(pair, monkeypatch, chunk):
    monkeypatch.setattr(discrepancy, "CHUNK_VALUES", chunk)
    source, cloner = (t.requires_grad_() for t in tensors(pair))
    plain = [(a * b).sum(1) for a, b in ((source, source), (cloner, cloner), (source, cloner))]
    got = products(source, cloner)
    assert got.size == 4
    for one, expected in zip(got[:3], plain, strict=True):
        assert_allclose(one.detach(), expected.detach())
    assert torch.autograd.gradcheck(lambda s, c: products(s, c)[:3], (source, cloner))
    assert torch.autograd.gradcheck(lambda c: products(source.detach(), c)[:3], cloner)


def test_a_difference_of_one_percent_is_computed_to_one_percent(pair):
    source, noise = (t.float() for t in tensors(pair))
    cloner = 50 * source + 0.5 * noise
    expected = (cloner.double() - 50 * source.double()).square().flatten(1).mean(1)
    assert_allclose(value(50 * source, cloner), expected, rtol=0.01)
    assert (value(source, source.clone()) == 0).all()


def test_value_discrepancy_is_equation_1(pair):
    expected = [np.mean((s - c) ** 2) for s, c in zip(*pair, strict=True)]
    assert_allclose(value(*tensors(pair)), expected)


def test_direction_discrepancy_is_equation_3(pair):
    expected = [
        1 - s.ravel() @ c.ravel() / np.linalg.norm(s) / np.linalg.norm(c)
        for s, c in zip(*pair, strict=True)
    ]
    assert_allclose(direction_of(*tensors(pair)), expected)


def test_direction_by_position_is_the_mean_cosine_along_channels(pair):
    source, cloner = pair
    cosine = np.einsum("nchw,nchw->nhw", source, cloner)
    cosine /= np.linalg.norm(source, axis=1) * np.linalg.norm(cloner, axis=1)
    assert_allclose(direction_map(*tensors(pair)), 1 - cosine)
    got = direction_of(*tensors(pair), "position")
    assert_allclose(got, (1 - cosine).mean((1, 2)))


def test_direction_map_is_0_where_the_source_is_0():
    source, cloner = torch.rand(2, 3, 4, 4) + 1, torch.rand(2, 3, 4, 4) + 1
    source[:, :, 0], cloner[:, :, 0], source[:, :, 1], cloner[:, :, 2] = 0, 0, 0, 0
    got = direction_map(source, cloner.requires_grad_())
    assert (got[:, :2] == 0).all()
    assert (got[:, 2] == 1).all()
    (gradient,) = torch.autograd.grad(got.sum(), cloner)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("direction", ["vector", "position"])
def test_zeros_of_source_and_cloner_are_not_alike(direction):
    zero, other = torch.zeros(2, 3, 4, 4), torch.rand(2, 3, 4, 4) + 1
    assert (discrepancies({"a": zero}, {"a": other}, ["a"], direction)[1] == 0).all()
    assert (discrepancies({"a": other}, {"a": zero}, ["a"], direction)[1] == 1).all()


@pytest.mark.parametrize("compare", [value, direction_of])
def test_results_do_not_depend_on_memory_layout_and_are_float32_for_bfloat16(pair, compare):
    source, cloner = (t.float() for t in tensors(pair))
    strided = [t.contiguous(memory_format=torch.channels_last) for t in (source, cloner)]
    assert_allclose(compare(*strided), compare(source, cloner), rtol=1e-6)
    half = [t.bfloat16() for t in (source, cloner)]
    got = compare(*half)
    assert got.dtype == torch.float32
    assert_allclose(got, compare(*(t.float() for t in half)), rtol=1e-6)


def test_zero_cloner_has_distance_1_and_finite_gradients():
    source = torch.rand(2, 3, 4, 4)
    zero = torch.zeros(2, 3, 4, 4, requires_grad=True)
    assert (direction_of(source, zero) == 1).all()
    (gradient,) = torch.autograd.grad(value(source, zero).sum(), zero)
    assert gradient.isfinite().all()
    (gradient,) = torch.autograd.grad(direction_of(source, zero).sum(), zero)
    assert gradient.isfinite().all()


def test_value_map_averages_to_the_value_discrepancy(pair):
    assert_allclose(value_map(*tensors(pair)).mean((1, 2)), value(*tensors(pair)))


@pytest.mark.parametrize("direction", ["vector", "position"])
def test_direction_ignores_scale_and_value_does_not(pair, direction):
    source, _ = tensors(pair)
    assert_allclose(direction_of(source, 3 * source, direction), 0, atol=1e-12)
    assert_allclose(direction_of(1e-6 * source, 1e-6 * source, direction), 0, atol=1e-12)
    assert (value(source, 3 * source) > 0).all()


def test_direction_separates_vectors_with_equal_value_discrepancy():
    # MKD, Eq. 2: both vectors are equally far from the target, one of them in its direction
    vectors = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1 + 2**0.5, 0.0]])
    target, orthogonal, parallel = vectors.view(3, 1, 3, 1, 1)
    assert_allclose(value(target, orthogonal), value(target, parallel), rtol=1e-6)
    assert_allclose(direction_of(target, orthogonal), 1)
    assert_allclose(direction_of(target, parallel), 0, atol=1e-6)


def test_discrepancies_sum_over_the_given_layers_only(pair):
    source, cloner = tensors(pair)
    features = {"a": source, "b": 2 * source}, {"a": cloner, "b": cloner}
    values, directions = discrepancies(*features, ["a", "b"], "vector")
    assert_allclose(values, value(source, cloner) + value(2 * source, cloner))
    assert_allclose(directions, 2 * direction_of(source, cloner))
    assert_allclose(discrepancies(*features, ["a"], "vector")[0], value(source, cloner))


def test_total_is_equation_4():
    assert total_discrepancy(torch.tensor(2.0), torch.tensor(3.0), 0.5, 10.0) == 31


def test_a_term_of_weight_0_is_left_out_even_if_infinite():
    value, direction = torch.tensor([torch.inf, 1.0]), torch.tensor([0.5, 0.25])
    assert_allclose(total_discrepancy(value, direction, 0.0, 2.0), [1.0, 0.5])
    assert_allclose(total_discrepancy(direction, value, 2.0, 0.0), [1.0, 0.5])


def test_balancing_weight_gives_both_terms_the_same_mean():
    value, direction = torch.tensor([1.0, 5.0]), torch.tensor([0.25, 0.75])
    assert balancing_weight(value, direction) * direction.mean() == value.mean()
    assert balancing_weight(torch.zeros(2), torch.zeros(2)) == 1
    assert type(balancing_weight(value, direction)) is float


def test_discrepancy_map_resizes_and_sums_layers():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (2, 3, 4, 4), "b": (2, 5, 2, 2)}
    features = [
        {layer: torch.rand(shape, generator=generator) for layer, shape in shapes.items()}
        for _ in range(2)
    ]
    got = discrepancy_map(*features, {"a": 1.0, "b": 0.5}, (8, 8), 0.0, 1.0)
    assert got.shape == (2, 8, 8)
    a, b = (discrepancy_map(*features, {layer: 1.0}, (8, 8), 0.0, 1.0) for layer in "ab")
    assert_allclose(got, a + b / 2, rtol=1e-6)
    direct = discrepancy_map(*features, {"a": 1.0}, (4, 4), 2.0, 0.5)
    source, cloner = (f["a"].numpy() for f in features)
    value = ((source - cloner) ** 2).mean(1)
    norms = np.linalg.norm(source, axis=1) * np.linalg.norm(cloner, axis=1)
    direction = 1 - (source * cloner).sum(1) / norms
    assert_allclose(direct, 2 * value + 0.5 * direction, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [(0.0, 2.0), (2.0, 0.0)])
def test_discrepancy_map_leaves_out_a_term_of_weight_0(monkeypatch, weights):
    compute = {"squared_distance": value_map, "cosine_distance": direction_map}
    unused = "squared_distance" if weights[0] == 0 else "cosine_distance"
    monkeypatch.setattr(discrepancy, unused, None)  # calling it would fail
    del compute[unused]
    (used,) = compute.values()
    source, cloner = torch.rand(2, 2, 3, 4, 4)
    got = discrepancy_map({"a": source}, {"a": cloner}, {"a": 1.0}, (4, 4), *weights)
    assert_allclose(got, 2 * used(source, cloner))


def test_discrepancy_map_interpolates_between_pixel_centres():
    source, cloner = torch.zeros(2, 1, 1, 1, 2)
    source[0, 0, 0, 1] = 2.0  # squared differences 0 and 4
    got = discrepancy_map({"a": source}, {"a": cloner}, {"a": 1.0}, (1, 4), 1.0, 0.0)
    assert_allclose(got[0, 0], [0, 1, 3, 4])
