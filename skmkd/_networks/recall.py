"""Normality Recall memory: what normal features look like, recalled by resemblance (MemKD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skmkd._maps.discrepancy import SILENCE, Features, direction_discrepancy


class MemoryPlan(NamedTuple):
    """Which memories a network has: how many items each, at which levels, how sharp."""

    size: int
    levels: tuple[int, ...]  # from 1, the finest grid's
    temperature: float

    def widened(self, level: int, channels: int) -> int:
        """Return how many channels there are after the memory of a level, if it has one."""
        return channels * (2 if level in self.levels else 1)


def attention(features: Tensor, items: Tensor, temperature: float) -> Tensor:
    """Weigh the items by their cosine with the feature at every position.

    (n, C, h, w), (L, C) -> (n, h, w, L), of sum 1 over the items.
    """
    positions = features.to(items.dtype).movedim(1, -1)
    lengths = torch.linalg.vector_norm(positions, dim=-1, keepdim=True).clamp_min(SILENCE)
    cosine = positions @ F.normalize(items).t() / lengths
    return torch.softmax(cosine / temperature, dim=-1)


def blend(weights: Tensor, items: Tensor) -> Tensor:  # (n, h, w, L), (L, C) -> (n, C, h, w)
    """Sum the items at every position by their weights."""
    return (weights @ items).movedim(-1, 1)


def entropy(weights: Tensor) -> Tensor:  # (n, h, w, L) -> (n, h, w)
    """Return the entropy of the weights at every position, in nats: from 0 to log L."""
    return torch.special.entr(weights).sum(-1)


def mean_squared_cosine(items: Tensor) -> Tensor:  # (L, C) -> ()
    """Return the mean squared cosine between different items: 0 where all are orthogonal."""
    directions = F.normalize(items)
    cosines = (directions @ directions.t()).fill_diagonal_(0)
    return cosines.square().sum() / max(1, len(items) * (len(items) - 1))


class NormalityRecall(nn.Module):
    """Keys that features are compared with, and the values that are recalled for them."""

    def __init__(self, size: int, channels: int, temperature: float) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(size, channels))
        self.values = nn.Parameter(torch.empty(size, channels))
        self.temperature = temperature

    def draw(self, generator: torch.Generator) -> None:
        """Draw all items anew, standard normal."""
        for items in (self.keys, self.values):
            nn.init.normal_(items, generator=generator)

    def attention(self, features: Tensor) -> Tensor:  # (n, C, h, w) -> (n, h, w, L)
        """Weigh the values by how much the keys resemble the features."""
        return attention(features, self.keys, self.temperature)

    def forward(self, features: Tensor) -> Tensor:  # (n, C, h, w) -> (n, C, h, w)
        """Recall what is normal where such features are."""
        return blend(self.attention(features), self.values)

    def exemplar_loss(self, exemplars: Tensor) -> Tensor:  # (n, C, h, w) -> ()
        """Say how far normal features are from what the values alone make of them (L_NM).

        At each position this is half the squared distance of both as unit vectors.
        """
        recalled = blend(attention(exemplars, self.values, self.temperature), self.values)
        return direction_discrepancy(exemplars, recalled, "position").mean()

    def orthogonality_loss(self) -> Tensor:  # -> ()
        """Say how far keys and values are from being orthogonal each (L_orth)."""
        return (mean_squared_cosine(self.keys) + mean_squared_cosine(self.values)) / 2


class MemoryCloner(nn.Module):
    """A cloner with memories at some of its levels.

    Parameters
    ----------
    plan : MemoryPlan
        Its memories.
    places : dict of int to (str, int)
        For every level that a memory may be at, the name and the channels of the features there.
    """

    def __init__(self, plan: MemoryPlan, places: Mapping[int, tuple[str, int]]) -> None:
        super().__init__()
        self._places = {level: places[level][0] for level in plan.levels}
        self.memories = nn.ModuleDict(
            {
                str(level): NormalityRecall(plan.size, places[level][1], plan.temperature)
                for level in plan.levels
            }
        )

    def append_recall(
        self, level: int, features: Tensor
    ) -> Tensor:  # (n, C, h, w) -> (n, 2C, h, w)
        """Lay beside the features what a memory recalls for them; without one, pass them on."""
        if level not in self._places:
            return features
        return torch.cat([features, self.memories[str(level)](features)], dim=1)

    def memory_inputs(self, features: Features) -> dict[int, tuple[NormalityRecall, Tensor]]:
        """Return for each level its memory, and which of the features lie before it."""
        return {
            level: (cast(NormalityRecall, self.memories[str(level)]), features[place])
            for level, place in self._places.items()
        }
