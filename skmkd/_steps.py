"""One step of a training: the loss of a batch, its gradient, and an update of the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from skmkd._features.batches import Batch
from skmkd._recording import WARM_UP, Recording, side_stream

Terms = dict[str, Tensor]  # "total", which is minimised, and its parts; each of shape (n,)


class Step:
    """A step of Adam.

    Parameters
    ----------
    cloner : nn.Module
        The network to train.
    terms : callable
        Computes the loss terms of every image in a batch.
    betas : tuple of 2 floats
        Adam's.
    """

    def __init__(
        self, cloner: nn.Module, terms: Callable[[Batch], Terms], betas: tuple[float, float]
    ) -> None:
        weights = [parameter for parameter in cloner.parameters() if parameter.requires_grad]
        self._terms = terms
        self._optimizer = self._adam(weights, (betas[0], betas[1]))

    def _adam(self, weights: list[nn.Parameter], betas: tuple[float, float]) -> torch.optim.Adam:
        return torch.optim.Adam(weights, betas=betas)

    def __call__(self, batch: Batch, rate: float) -> Terms:
        """Update the weights at a learning rate; return the loss terms from before."""
        self._optimizer.param_groups[0]["lr"] = rate
        return self._update(batch)

    def _update(self, batch: Batch) -> Terms:
        losses = self._terms(batch)
        self._optimizer.zero_grad()
        losses["total"].mean().backward()
        self._optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def free(self) -> None:
        """Free the gradients."""
        self._optimizer.zero_grad()


class RecordedStep(Step):
    """A step on a GPU that is recorded once for each size of a batch, and then replayed.

    The loss terms that are returned change at the next step.
    """

    def __init__(
        self, cloner: nn.Module, terms: Callable[[Batch], Terms], betas: tuple[float, float]
    ) -> None:
        super().__init__(cloner, terms, betas)
        self._n_steps = 0
        self._stream = side_stream(self._rate.device)
        self._recorded: dict[int, Recording] = {}

    def _adam(self, weights: list[nn.Parameter], betas: tuple[float, float]) -> torch.optim.Adam:
        self._rate = torch.zeros((), device=weights[0].device)
        return torch.optim.Adam(weights, self._rate, betas, fused=True, capturable=True)

    def __call__(self, batch: Batch, rate: float) -> Terms:
        """Update the weights at a learning rate; return the loss terms from before."""
        self._rate.fill_(rate)
        self._n_steps += 1
        if self._n_steps <= WARM_UP:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                losses = self._update(batch)
            torch.cuda.current_stream().wait_stream(self._stream)
            return losses
        n = len(batch.images)
        if n not in self._recorded:
            self._recorded[n] = Recording(self._update, batch)
        return self._recorded[n](batch)

    def free(self) -> None:
        """Free the gradients and what was recorded."""
        self._recorded.clear()
        super().free()
