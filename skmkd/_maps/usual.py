"""What is usual at each position of maps of normal images, where objects are at the same place."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

STEADY = 0.1  # of the mean deviation, added to those of positions, which are of few images
COVERED = 0.5  # share of the images that show a position, at least, for it to count


class Usual(NamedTuple):
    """How maps are standardised at each position.

    Parameters
    ----------
    mean : Tensor of shape (H, W) or (n, H, W), float32
        Mean of the maps of normal images.
    scale : Tensor of the same shape, float32
        Their deviation, and a tenth of its mean over all positions; infinite where nothing counts.
    """

    mean: Tensor
    scale: Tensor

    @property
    def known(self) -> Tensor:
        """Where enough normal images had something."""
        return self.scale.isfinite()

    def excess(self, maps: Tensor, inside: Tensor | None) -> Tensor:  # (n, H, W)
        """Return by how many scales maps exceed what is usual; 0 below, and outside."""
        excess = ((maps - self.mean.to(maps)) / self.scale.to(maps)).clamp_min(0)
        return excess if inside is None else excess.masked_fill(~inside, 0)


class Sums(NamedTuple):
    """Sums over maps, from which what is usual follows, without some of them if wanted.

    Parameters
    ----------
    shown, total, squares : Tensor of shape (H, W) or (n, H, W), float64
        Number of the maps that show a position, and the sums of their values and of the squares.
    """

    shown: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def each(cls, maps: Tensor, inside: Tensor | None) -> Self:
        """Return the terms of each map, of what is inside."""
        values = maps.cpu().double()
        shown = torch.ones_like(values) if inside is None else inside.cpu().double()
        return cls(shown, shown * values, shown * values**2)

    def over_all(self) -> Self:  # (n, H, W) -> (H, W)
        """Sum over maps."""
        return type(self)(*(term.sum(0) for term in self))

    def plus(self, others: Self) -> Self:
        """Add other maps."""
        return type(self)(*(a + b for a, b in zip(self, others, strict=True)))

    def without(self, others: Self) -> Self:
        """Leave maps out."""
        return type(self)(*(a - b for a, b in zip(self, others, strict=True)))

    def where(self, known: Tensor) -> Self:  # (H, W), bool
        """Keep the positions that are known."""
        return type(self)(*(term * known for term in self))

    def usual(self, least: float) -> Usual:
        """Return what is usual where at least so many maps, and one, show a position."""
        known = self.shown >= max(least, 1)
        count = self.shown.clamp_min(1)
        mean = self.total / count
        deviation = (self.squares / count - mean**2).clamp_min(0).sqrt() * known
        shared = deviation.sum((-2, -1), keepdim=True) / known.sum((-2, -1), keepdim=True)
        scale = deviation + STEADY * shared + torch.finfo(torch.float32).eps
        return Usual(mean.float(), scale.masked_fill(~known, torch.inf).float())
