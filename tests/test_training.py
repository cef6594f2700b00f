from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from skmkd._training import Convergence, distill, settle_batch_norm


def line(weight=0.0):
    """A student that knows one number, and normalises nothing."""
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, weight)
    return student


def run(
    student, batches, *, learning_rate=0.1, max_iter=20, tol=None, n_iter_no_change=3, after=None
):
    def terms(batch):
        error = (student(batch) - 2 * batch).square().sum(1)
        return {"total": error, "half": error / 2}

    return distill(
        student,
        torch.optim.Adam(student.parameters(), lr=learning_rate),
        batches,
        terms,
        max_iter=max_iter,
        tol=tol,
        n_iter_no_change=n_iter_no_change,
        after_epoch=after,
        verbose=0,
    )


def test_equals_adam_written_out():
    batches = [torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [1.5], [3.0]])]
    student = line()
    curve = run(student, lambda: batches, max_iter=5)
    weight, m, v, step, expected = 0.0, 0.0, 0.0, 0, []
    for _ in range(5):
        total = 0.0
        for batch in batches:
            x = batch.numpy().astype(float)
            total += ((weight - 2) ** 2 * x**2).sum()
            gradient = (2 * (weight - 2) * x**2).mean()
            step += 1
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            weight -= 0.1 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        expected.append(total / 5)
    assert_allclose(curve["total"], expected, rtol=1e-4)
    assert_allclose(curve["half"], curve["total"] / 2)
    assert_allclose(student.weight.item(), weight, rtol=1e-4)
    assert curve["total"].dtype == np.float64


def test_stops_once_converged_and_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = run(line(), lambda: [torch.ones(2, 1)], max_iter=5000, tol=1e-3)
    assert 3 < len(curve["total"]) < 5000


def test_warns_if_it_has_not_converged():
    with pytest.warns(ConvergenceWarning, match="tol=0.001 after max_iter=4; increase max_iter"):
        run(line(), lambda: [torch.ones(2, 1)], max_iter=4, tol=1e-3)


def test_without_tol_runs_every_epoch():
    curve = run(line(2.0), lambda: [torch.ones(2, 1)], max_iter=17, tol=None)
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
    def batches():
        yield torch.full((2, 1), 1e30)

    with pytest.raises(ValueError, match="not finite after epoch 1 with learning_rate=0.1"):
        run(line(), batches)


def test_after_epoch_sees_every_epoch_in_eval_mode():
    student = line()
    seen = []
    run(
        student,
        lambda: [torch.ones(2, 1)],
        max_iter=3,
        after=lambda epoch: seen.append((epoch, student.training)),
    )
    assert seen == [(1, False), (2, False), (3, False)]


def test_frozen_parameters_stay():
    student = nn.Sequential(line(1.0), line(1.0))
    student[0].requires_grad_(False)
    run(student, lambda: [torch.ones(2, 1)], max_iter=3)
    assert student[0].weight.item() == 1
    assert student[1].weight.item() != 1


def test_settled_batch_norm_has_the_statistics_of_all_images():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 3, 4, 4, generator=generator) + i for i in range(5)]
    student = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).eval()
    student(batches[0])
    settle_batch_norm(student, student, batches)
    norm, everything = student[0], torch.cat(batches)
    torch.testing.assert_close(norm.running_mean, everything.mean((0, 2, 3)))
    within = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in batches]).mean(0)
    torch.testing.assert_close(norm.running_var, within)
    assert norm.momentum == 0.1
    assert not any(module.training for module in student.modules())
