from __future__ import annotations

import copy

import pytest
import torch
from conftest import needs_cuda
from torch import nn

from skmkd._features.batches import Batch
from skmkd._steps import RecordedStep, Step


class Task:
    """A linear cloner, batches of several sizes, and squared errors as losses."""

    def __init__(self, device):
        self.generator = torch.Generator().manual_seed(0)
        self.cloner = nn.Linear(3, 2)
        for parameter in self.cloner.parameters():
            nn.init.normal_(parameter, generator=self.generator)
        self.cloner.to(device)
        self.batches = [self.batch(n, device) for n in (4, 4, 5, 4, 5, 4, 5, 5)]

    def batch(self, n, device):
        images, target = (torch.randn(n, k, generator=self.generator) for k in (3, 2))
        return Batch(images.to(device), {"layer": target.to(device)})

    def terms(self, batch):
        errors = (self.cloner(batch.images) - batch.target["layer"]).square()
        return {"total": errors.sum(1), "first": errors[:, 0]}


def run(kind, task, rates):
    step = kind(task.cloner, task.terms, (0.9, 0.999))
    losses = []
    for batch, rate in zip(task.batches, rates, strict=True):
        losses.append({name: loss.clone() for name, loss in step(batch, rate).items()})
    step.free()
    assert all(p.grad is None for p in task.cloner.parameters())
    return losses, [p.detach().cpu() for p in task.cloner.parameters()]


RATES = [0.01, 0.02, 0.1, 0.1, 0.05, 0.01, 0.001, 0.0]


def test_losses_are_from_before_the_update_and_have_no_gradient():
    task = Task("cpu")
    before = copy.deepcopy(task)
    losses, weights = run(Step, task, RATES)
    first = before.terms(before.batches[0])
    assert torch.equal(losses[0]["total"], first["total"])
    assert [len(each["first"]) for each in losses] == [4, 4, 5, 4, 5, 4, 5, 5]
    assert not any(loss.requires_grad for each in losses for loss in each.values())
    assert not torch.equal(weights[0], before.cloner.weight)


def test_the_first_step_moves_each_weight_by_the_rate():  # Adam: gradient over its own size
    task = Task("cpu")
    before = [p.detach().clone() for p in task.cloner.parameters()]
    Step(task.cloner, task.terms, (0.9, 0.999))(task.batches[0], 0.25)
    for old, new in zip(before, task.cloner.parameters(), strict=True):
        torch.testing.assert_close((new - old).abs(), torch.full_like(old, 0.25))


@pytest.mark.gpu
@needs_cuda
def test_a_recorded_step_is_a_step():
    expected, weights = run(Step, Task("cpu"), RATES)
    losses, found = run(RecordedStep, Task("cuda"), RATES)
    for got, wanted in zip(losses, expected, strict=True):
        for name in wanted:
            torch.testing.assert_close(got[name].cpu(), wanted[name], rtol=1e-4, atol=1e-5)
    for got, wanted in zip(found, weights, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
