from __future__ import annotations

import inspect
import pickle
import warnings
from itertools import repeat

import numpy as np
import pytest
import torch
from conftest import tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from skmkd import MemKDDetector
from skmkd._features.batches import Batch
from skmkd._training import (
    PATIENCE_STEPS,
    Convergence,
    Plan,
    distill,
    one_cycle,
    plan_training,
    settle_batch_norm,
    shuffled_batches,
    training_epochs,
)


def line(weight=0.0):
    """A cloner of one weight."""
    cloner = nn.Linear(1, 1, bias=False)
    nn.init.constant_(cloner.weight, weight)
    return cloner


def run(
    cloner, batches, *, learning_rate=0.1, schedule="constant", betas=(0.9, 0.999), max_iter=20,
    tol=None, n_iter_no_change=3, after=None,
):  # fmt: skip
    def terms(batch):
        error = (cloner(batch.images) - 2 * batch.images).square().sum(1)
        return {"total": error, "half": error / 2}

    return distill(
        cloner,
        repeat([Batch(images, {}) for images in batches]),
        terms,
        Plan(sum(map(len, batches)), len(batches), max_iter),
        learning_rate=learning_rate,
        schedule=schedule,
        betas=betas,
        recorded=False,
        tol=tol,
        n_iter_no_change=n_iter_no_change,
        after_epoch=after,
        verbose=0,
    )


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_equals_adam_written_out(betas):
    first, second = betas
    batches = [torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [1.5], [3.0]])]
    cloner = line()
    curve = run(cloner, batches, max_iter=5, betas=betas)
    weight, m, v, step, expected = 0.0, 0.0, 0.0, 0, []
    for _ in range(5):
        total = 0.0
        for batch in batches:
            x = batch.numpy().astype(float)
            total += ((weight - 2) ** 2 * x**2).sum()
            gradient = (2 * (weight - 2) * x**2).mean()
            step += 1
            m, v = first * m + (1 - first) * gradient, second * v + (1 - second) * gradient**2
            weight -= 0.1 * (m / (1 - first**step)) / (np.sqrt(v / (1 - second**step)) + 1e-8)
        expected.append(total / 5)
    assert_allclose(curve["total"], expected, rtol=1e-4)
    assert_allclose(curve["half"], curve["total"] / 2)
    assert_allclose(cloner.weight.item(), weight, rtol=1e-4)
    assert curve["total"].dtype == np.float64


def test_stops_once_converged_and_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = run(line(), [torch.ones(2, 1)], max_iter=5000, tol=1e-3)
    assert 3 < len(curve["total"]) < 5000


@pytest.mark.parametrize(("n_batches", "epochs"), [(1, PATIENCE_STEPS), (10, 5), (50, 3)])
def test_short_epochs_do_not_count_as_converged_before_enough_steps(n_batches, epochs):
    done = line(2.0)  # its loss is 0 from the first step on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = run(done, [torch.ones(2, 1)] * n_batches, max_iter=500, tol=1e-3)
    assert len(curve["total"]) == 1 + epochs


def test_one_cycle_rises_to_its_peak_and_falls_to_zero():
    steps = np.linspace(0, 1, 1001)
    rates = np.array([one_cycle(step) for step in steps])
    assert rates[0] == rates[-1] == 0
    assert steps[rates.argmax()] == 0.3
    assert rates.max() == 1
    assert (np.diff(rates[:301]) > 0).all()
    assert (np.diff(rates[300:]) < 0).all()


def test_one_cycle_scales_the_steps_of_adam():
    # the gradient is always -1, and then a step of Adam is its learning rate
    cloner = line()
    seen = [0.0]

    def terms(batch):
        return {"total": -cloner.weight[0].expand(2)}

    plan = Plan(2, 2, 5)
    distill(
        cloner, repeat([Batch(torch.ones(2, 1), {})] * 2), terms, plan, learning_rate=0.5,
        schedule="one_cycle", betas=(0.9, 0.999), recorded=False, tol=None, n_iter_no_change=1,
        verbose=0, after_epoch=lambda epoch: seen.append(cloner.weight.item()),
    )  # fmt: skip
    rates = [0.5 * one_cycle((step + 0.5) / 10) for step in range(10)]
    assert_allclose(np.diff(seen), np.reshape(rates, (5, 2)).sum(1), rtol=1e-4)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (2, (1, 300)),
        (5, (2, 150)),
        (10, (3, 100)),
        (40, (10, 30)),
        (200, (34, 10)),
        (640, (31, 10)),
        (6000, (94, 10)),
        (60000, (938, 10)),
    ],
)
def test_automatic_plans_have_enough_steps_for_any_number_of_images(n, expected):
    assert plan_training(n, (128, 128), "auto", "auto") == (n, *expected)
    n_batches, epochs = expected
    assert n_batches * epochs >= 300
    assert 2 <= n / n_batches <= 64
    assert plan_training(n, (128, 128), "auto", 7) == (n, n_batches, 7)
    assert plan_training(n, (128, 128), 2, 7) == (n, n // 2, 7)


@pytest.mark.parametrize(
    ("size", "epochs"), [((32, 32), 30), ((128, 128), 30), ((256, 256), 60), ((64, 1024), 60)]
)
def test_larger_images_take_more_steps(size, epochs):
    assert plan_training(40, size, "auto", "auto") == (40, 10, epochs)


def test_warns_if_it_has_not_converged():
    with pytest.warns(ConvergenceWarning, match="tol=0.001 after max_iter=4; increase max_iter"):
        run(line(), [torch.ones(2, 1)], max_iter=4, tol=1e-3)


def test_without_tol_runs_every_epoch():
    curve = run(line(2.0), [torch.ones(2, 1)], max_iter=17, tol=None)
    assert len(curve["total"]) == 17


@pytest.mark.parametrize(
    ("losses", "epochs"),
    [
        ([9, 8, 7, 6, 5, 4], None),
        ([9, 9, 9, 9], 4),
        ([9, 8, 7.99, 7.98, 7.97], 5),
        ([9, 8, 9, 9, 7, 9, 9, 9], 8),
        ([0, 0, 0, 0], 4),
    ],
)
def test_convergence_counts_epochs_without_enough_improvement(losses, epochs):
    convergence = Convergence(tol=0.01, patience=3)
    reached = [i for i, loss in enumerate(losses, start=1) if convergence.reached(loss)]
    assert reached[:1] == ([] if epochs is None else [epochs])


def test_divergence_names_epoch_and_learning_rate():
    with pytest.raises(ValueError, match="not finite after epoch 1 with learning_rate=0.1"):
        run(line(), [torch.full((2, 1), 1e30)])


def test_after_epoch_sees_every_epoch_in_eval_mode():
    cloner = line()
    seen = []
    run(
        cloner,
        [torch.ones(2, 1)],
        max_iter=3,
        after=lambda epoch: seen.append((epoch, cloner.training)),
    )
    assert seen == [(1, False), (2, False), (3, False)]


def test_frozen_parameters_stay():
    cloner = nn.Sequential(line(1.0), line(1.0))
    cloner[0].requires_grad_(False)
    run(cloner, [torch.ones(2, 1)], max_iter=3)
    assert cloner[0].weight.item() == 1
    assert cloner[1].weight.item() != 1


@pytest.mark.parametrize(("n", "batch_size"), [(65, 64), (3, 2), (5, 1), (2, 64), (130, 64)])
def test_shuffled_batches_hold_every_image_once_and_none_alone(n, batch_size):
    n_batches = plan_training(n, (8, 8), batch_size, 1).n_batches
    batches = shuffled_batches(n, n_batches, torch.Generator().manual_seed(0))
    sizes = [len(batch) for batch in batches]
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3)
    order = np.concatenate(batches)
    assert_array_equal(np.sort(order), np.arange(n))
    assert n < 5 or (order != np.arange(n)).any()


class Numbers:
    """A dataset of one image of one pixel for each value."""

    def __init__(self, values):
        self.values = values

    def tensors(self, batches):
        return (self.values[torch.as_tensor(indices)] for indices in batches)

    def features(self, images):
        return {"a": images.mean((2, 3), keepdim=True)}

    def batches(self, batches):
        return (Batch(images, self.features(images)) for images in self.tensors(batches))


@pytest.mark.parametrize("augmented", [True, False])
def test_epochs_hold_every_image_once_in_new_orders(augmented):
    n = 11
    values = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    epochs = training_epochs(Numbers(values), Plan(n, 3, 1), generator, augmented)
    orders = []
    for _ in range(3):
        batches = list(next(epochs))
        assert [len(batch.images) for batch in batches] == [4, 4, 3]
        for batch in batches:  # a constant stays what it is when it is rotated
            assert_allclose(batch.target["a"], batch.images[:, :, :1, :1], atol=1e-4)
        orders.append(torch.cat([batch.images[:, 0, 4, 4] for batch in batches]).round().tolist())
    assert [sorted(order) for order in orders] == [list(range(n))] * 3
    assert len(set(map(tuple, orders))) == 3


def test_augmentation_changes_images_and_their_features():
    values = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    (first,) = next(epochs := training_epochs(Numbers(values), Plan(6, 1, 1), generator, True))
    (second,) = next(epochs)
    for batch in (first, second):
        torch.testing.assert_close(batch.target["a"], batch.images.mean((2, 3), keepdim=True))
        assert not any(torch.allclose(image, v) for image in batch.images for v in values)
    assert not torch.allclose(first.images.sort(0).values, second.images.sort(0).values)


def settle(network, images, output=None):
    settle_batch_norm(
        network, output or (lambda batch: network(batch.images)), Numbers(images), Plan(40, 5, 1), 0
    )


def test_settled_batch_norm_has_the_statistics_of_all_images():
    images = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images += torch.arange(40).view(40, 1, 1, 1) / 8
    network, batches = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).eval(), []
    network(images[:8])

    def output(batch):
        batches.append(batch.images)
        network(batch.images)

    settle(network, images, output)
    assert torch.equal(torch.cat(batches).sort(0).values, images.sort(0).values)
    norm = network[0]
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)))
    within = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in batches]).mean(0)
    torch.testing.assert_close(norm.running_var, within)
    assert norm.momentum == 0.1
    assert not any(module.training for module in network.modules())


def test_interrupted_settling_can_be_repeated():
    images = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network, expected = nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3)

    def interrupted(batch):
        network(batch.images)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settle(network, images, interrupted)
    assert network.momentum == 0.1
    assert not network.training
    settle(network, images)
    settle(expected, images)
    assert torch.equal(network.running_var, expected.running_var)


# Interrupts


def memkd_detector(**parameters):
    tiny = tiny_detector()
    names = MemKDDetector._get_param_names()
    shared = {name: value for name, value in tiny.get_params().items() if name in names}
    return MemKDDetector(**(shared | {"memory": "deprecated", "memory_size": 4} | parameters))


@pytest.fixture(params=[tiny_detector, memkd_detector], ids=["MKD", "MemKD"])
def make(request):
    return request.param


def interrupt_at(monkeypatch, detector, name, call):
    """Raise KeyboardInterrupt when a method of the detector's class is called for the nth time."""
    method, calls = getattr(type(detector), name), []

    def interrupted(self, *args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return method(self, *args, **kwargs)

    monkeypatch.setattr(type(detector), name, interrupted)


@pytest.mark.parametrize(("step", "epochs"), [(3, 1), (4, 1), (5, 2)])
def test_an_interrupt_after_the_first_epoch_keeps_what_was_learned(
    make, images, monkeypatch, step, epochs
):
    detector = make(max_iter=6, batch_size=6, schedule="constant")  # two steps an epoch
    interrupt_at(monkeypatch, detector, "_loss_terms", step)
    expected = f"interrupted after {epochs} of at most 6 epochs"
    line = inspect.currentframe().f_lineno + 2
    with pytest.warns(ConvergenceWarning, match=expected) as caught:
        detector.fit(images)
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]
    assert detector.n_iter_ == epochs
    assert all(len(curve) == epochs for curve in detector.loss_curve_.values())
    monkeypatch.undo()
    if step % 2:  # at the first step of an epoch: as if it had ended there
        whole = make(max_iter=epochs, batch_size=6, schedule="constant").fit(images)
        assert_array_equal(detector.score_samples(images), whole.score_samples(images))
        assert (detector.offset_, detector.map_offset_) == (whole.offset_, whole.map_offset_)
    assert np.isfinite(detector.decision_function(images)).all()
    assert not any(module.training for module in detector.cloner_.modules())


def test_an_interrupt_while_the_callback_runs_keeps_what_was_learned(make, images):
    def callback(detector, epoch):
        if epoch == 2:
            raise KeyboardInterrupt

    detector = make(max_iter=6, schedule="constant")
    with pytest.warns(ConvergenceWarning, match="interrupted after 2 of at most 6 epochs"):
        detector.fit(images, callback=callback)
    assert detector.n_iter_ == 2
    whole = make(max_iter=2, schedule="constant").fit(images)
    assert_array_equal(detector.score_samples(images), whole.score_samples(images))


def left_whole(detector, images, interrupted):
    """Check that a fit that is interrupted leaves the earlier one."""
    before, scores = dict(vars(detector)), detector.score_samples(images)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    after = vars(detector)
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, value in before.items())
    assert_array_equal(detector.score_samples(images), scores)


def test_an_interrupt_in_the_first_epoch_leaves_the_earlier_fit(make, images, monkeypatch):
    detector = make(batch_size=6).fit(images)
    interrupt_at(monkeypatch, detector, "_loss_terms", 2)
    left_whole(detector, images, lambda: detector.fit(images[2:]))


def test_a_second_interrupt_leaves_the_earlier_fit(make, images, monkeypatch):
    detector = make(batch_size=6).fit(images)
    interrupt_at(monkeypatch, detector, "_loss_terms", 4)

    def fit():
        interrupt_at(monkeypatch, detector, "_judge", 1)  # thresholds are computed
        with pytest.warns(ConvergenceWarning, match="interrupted after 1 of"):
            detector.fit(images[::-1])

    left_whole(detector, images, fit)


def test_no_gradient_is_left_after_fit(make, images):
    detector = make().fit(images)
    assert [p for p in detector.cloner_.parameters() if p.requires_grad]
    for network in (detector.cloner_, detector.source_):
        assert all(parameter.grad is None for parameter in network.parameters())
    restored = pickle.loads(pickle.dumps(detector))
    assert_array_equal(restored.score_samples(images), detector.score_samples(images))


def test_training_leaves_no_gradient():
    cloner = line()
    run(cloner, [torch.ones(2, 1)], max_iter=3)
    assert cloner.weight.grad is None
