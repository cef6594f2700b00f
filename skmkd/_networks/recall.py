"""Normality Recall memory of MemKD: normal features, recalled by their similarity to an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skmkd._maps.discrepancy import EPS, Features, cosine_distance, products


class MemoryPlan(NamedTuple):
    """The memories of a network."""

    size: int  # items in each
    levels: tuple[int, ...]  # that have a memory, counted from 1, the finest grid's
    temperature: float  # of the softmax

    def output_channels(self, level: int, channels: int) -> int:
        """Return the number of channels after `MemoryCloner.append_recall`."""
        return channels * (2 if level in self.levels else 1)


def chosen_levels(given: str | Sequence[int], n_levels: int, paradigm: str) -> tuple[int, ...]:
    """Return the levels that have a memory, of those that can: all, if it is "auto".

    Raises
    ------
    ValueError
        If a level is given that cannot.
    """
    possible = tuple(range(1, n_levels + 1))
    if given == "auto":
        return possible
    chosen = tuple(level for level in possible if level in given)
    if len(chosen) < len(given):
        raise ValueError(
            f"memory_levels must be among {list(possible)}, each once, with "
            f"paradigm={paradigm!r} and these critical layers; got {given}."
        )
    return chosen


def attention(features: Tensor, items: Tensor, temperature: float) -> Tensor:
    """Weight the items by their cosine with the feature at each position.

    (n, C, h, w), (L, C) -> (n, h, w, L); weights are positive and sum to 1 over the L items.
    """
    positions = features.to(items.dtype).movedim(1, -1)
    norms = torch.linalg.vector_norm(positions, dim=-1, keepdim=True).clamp_min(EPS)
    cosine = torch.matmul(positions, F.normalize(items).t()) / norms
    return torch.softmax(cosine / temperature, dim=-1)


def blend(weights: Tensor, items: Tensor) -> Tensor:  # (n, h, w, L), (L, C) -> (n, C, h, w)
    """Return the weighted sum of the items at each position."""
    return torch.matmul(weights, items).movedim(-1, 1)


def entropy(weights: Tensor) -> Tensor:  # (n, h, w, L) -> (n, h, w)
    """Return the entropy of the weights at each position, in nats, from 0 to log L."""
    return torch.special.entr(weights).sum(-1)


def mean_squared_cosine(items: Tensor) -> Tensor:  # (L, C) -> ()
    """Return the mean squared cosine between different items; 0 if all are orthogonal."""
    directions = F.normalize(items)
    cosines = (directions @ directions.t()).fill_diagonal_(0)
    return cosines.square().sum() / max(1, len(items) * (len(items) - 1))


class NormalityRecall(nn.Module):
    """A memory of keys, which features are compared with, and values, which are recalled."""

    def __init__(self, size: int, channels: int, temperature: float) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(size, channels))
        self.values = nn.Parameter(torch.empty(size, channels))
        self.temperature = temperature

    def draw(self, generator: torch.Generator) -> None:
        """Draw all keys and values from a standard normal distribution."""
        for items in (self.keys, self.values):
            nn.init.normal_(items, generator=generator)

    def attention(self, features: Tensor) -> Tensor:  # (n, C, h, w) -> (n, h, w, L)
        """Weight the values by the similarity of their keys to the features."""
        return attention(features, self.keys, self.temperature)

    def forward(self, features: Tensor) -> Tensor:  # (n, C, h, w) -> (n, C, h, w)
        """Recall values for the features at each position."""
        return blend(self.attention(features), self.values)

    def exemplar_loss(self, exemplars: Tensor) -> Tensor:  # (n, C, h, w) -> ()
        """Return the distance of normal features from their recall with values as keys (L_NM).

        At each position this is one minus the cosine, half the squared distance of unit vectors.
        """
        recalled = blend(attention(exemplars, self.values, self.temperature), self.values)
        return cosine_distance(products(exemplars, recalled)).mean()

    def orthogonality_loss(self) -> Tensor:  # -> ()
        """Return how far the keys, and the values, are from being orthogonal (L_orth)."""
        return (mean_squared_cosine(self.keys) + mean_squared_cosine(self.values)) / 2


class MemoryCloner(nn.Module):
    """Base class of cloners with memories at some of their levels.

    Parameters
    ----------
    plan : MemoryPlan
        The memories.
    inputs : dict of int to (str, int)
        For each level that can have a memory, the layer and the number of channels of its input.
    """

    def __init__(self, plan: MemoryPlan, inputs: Mapping[int, tuple[str, int]]) -> None:
        super().__init__()
        self._input_layers = {level: inputs[level][0] for level in plan.levels}
        self.memories = nn.ModuleDict(
            {
                str(level): NormalityRecall(plan.size, inputs[level][1], plan.temperature)
                for level in plan.levels
            }
        )

    def append_recall(
        self, level: int, features: Tensor
    ) -> Tensor:  # (n, C, h, w) -> (n, 2C, h, w)
        """Lay beside the features what a memory recalls for them; without one, pass them on."""
        if level not in self._input_layers:
            return features
        return torch.cat([features, self.memories[str(level)](features)], dim=1)

    def memory_inputs(self, features: Features) -> dict[int, tuple[NormalityRecall, Tensor]]:
        """Return the memory of each level and those of the features that are its input."""
        return {
            level: (cast(NormalityRecall, self.memories[str(level)]), features[layer])
            for level, layer in self._input_layers.items()
        }
