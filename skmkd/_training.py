"""The training loop: a student learns on normal images until its loss has converged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from tqdm.auto import tqdm

from skmkd._features.batches import Batch

Terms = dict[str, Tensor]  # "total", which is minimised, and its parts; each of shape (n,)


def distill(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[], Iterable[Batch]],
    terms: Callable[[Batch], Terms],
    *,
    max_iter: int,
    tol: float | None,
    n_iter_no_change: int,
    after_epoch: Callable[[int], None] | None,
    verbose: int,
) -> dict[str, np.ndarray]:
    """Train the student and return the mean of each term at every epoch.

    Parameters
    ----------
    student : nn.Module
        The network to train; left in eval mode.
    optimizer : torch.optim.Optimizer
        What steps its parameters.
    batches : callable
        Gives the batches of one epoch.
    terms : callable
        Gives the loss terms of every image in a batch.
    max_iter, tol, n_iter_no_change, verbose
        As in the estimators.
    after_epoch : callable or None
        Called with the number of each finished epoch, the student in eval mode.

    Returns
    -------
    loss_curve : dict of str to ndarray of shape (n_epochs,), float64

    Raises
    ------
    ValueError
        If the loss diverges.
    """
    convergence = Convergence(tol, n_iter_no_change)
    curve: list[dict[str, float]] = []
    with tqdm(total=max_iter, desc="Distilling", unit="epoch", disable=verbose < 1) as progress:
        for epoch in range(1, max_iter + 1):
            means = _train_epoch(student, batches(), terms, optimizer)
            if not np.isfinite(means["total"]):
                raise ValueError(divergence(epoch, optimizer.defaults["lr"]))
            curve.append(means)
            progress.set_postfix(loss=f"{means['total']:.4g}", refresh=False)
            progress.update()
            if after_epoch is not None:
                after_epoch(epoch)
            if convergence.reached(means["total"]):
                break
    if tol is not None and not convergence.done:
        warnings.warn(
            f"The loss has not yet gone {n_iter_no_change} epochs without improving by the share "
            f"tol={tol:g} after max_iter={max_iter}; increase max_iter.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return {name: np.array([means[name] for means in curve]) for name in curve[0]}


def settle_batch_norm(
    student: nn.Module, answer: Callable[[Batch], object], batches: Iterable[Batch]
) -> None:
    """Take the statistics of every batch norm anew, over all training images.

    What training leaves behind is a running average over its last few batches, of a network that
    was still changing; scores would fluctuate from epoch to epoch with it.
    """
    norms = [m for m in student.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            answer(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    student.eval()


def divergence(epoch: int, learning_rate: float) -> str:
    """Say where the loss stopped being finite."""
    return (
        f"The loss is not finite after epoch {epoch} with learning_rate={learning_rate:g}; "
        "lower learning_rate."
    )


class Convergence:
    """Watch for epochs that do not improve on the best so far by the share ``tol``."""

    def __init__(self, tol: float | None, patience: int) -> None:
        self.tol, self.patience = tol, patience
        self.best, self.stale = np.inf, 0

    def reached(self, loss: float) -> bool:
        """Take in the loss of one more epoch and tell whether training is done."""
        if self.tol is not None:
            improved = np.isinf(self.best) or loss < self.best * (1 - self.tol)
            self.stale = 0 if improved else self.stale + 1
            self.best = min(self.best, loss)
        return self.done

    @property
    def done(self) -> bool:
        """Whether so many epochs in a row have brought too little."""
        return self.tol is not None and self.stale >= self.patience


def _train_epoch(
    student: nn.Module,
    batches: Iterable[Batch],
    terms: Callable[[Batch], Terms],
    optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    """Take one step a batch; return the mean of every term over the epoch's images."""
    student.train()
    sums: dict[str, Tensor] = {}
    n_images = 0
    for batch in batches:
        losses = terms(batch)
        optimizer.zero_grad()
        losses["total"].mean().backward()
        optimizer.step()
        n_images += len(batch)
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros(())).to(loss) + loss.detach().sum()
    student.eval()
    return {name: float(total) / n_images for name, total in sums.items()}
