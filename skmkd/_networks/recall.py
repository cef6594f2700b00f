"""Normality Recall memory of MemKD: normal features, recalled by their similarity to an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skmkd._maps.discrepancy import EPS, Features, cosine_distance, products

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
NOISE = 0.1  # of items beside the features they begin as, which have a deviation of 1


class MemoryPlan(NamedTuple):
    """The memories of a network."""

    size: int  # items in each
    levels: tuple[int, ...]  # that have a memory, counted from 1, the finest grid's
    temperature: float  # of the softmax
    of_source: bool = False  # whether items are the source's features, standardized; old ones not

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

    def __init__(self, plan: MemoryPlan, channels: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(plan.size, channels))
        self.values = nn.Parameter(torch.empty(plan.size, channels))
        self.temperature = plan.temperature
        # Rectified features all point much the same way, so that cosines would hardly differ.
        self.norm = nn.BatchNorm2d(channels, affine=False) if plan.of_source else nn.Identity()

    def draw(self, generator: torch.Generator) -> None:
        """Draw all keys and values from a standard normal distribution."""
        for items in (self.keys, self.values):
            nn.init.normal_(items, generator=generator)

    @torch.no_grad()
    def remember(self, features: Tensor, generator: torch.Generator) -> None:
        """Move keys and values to the features (n, C, h, w) of random positions.

        What was drawn stays as noise: there may be fewer positions than items.
        """
        positions = self._standardized(features).movedim(1, -1).flatten(0, 2)
        chosen = torch.randint(len(positions), (len(self.keys),), generator=generator)
        for items in (self.keys, self.values):
            items.mul_(NOISE).add_(positions[chosen.to(positions.device)])

    def attention(self, features: Tensor) -> Tensor:  # (n, C, h, w) -> (n, h, w, L)
        """Weight the values by the similarity of their keys to the features."""
        return attention(self._standardized(features), self.keys, self.temperature)

    def _standardized(self, features: Tensor) -> Tensor:
        return self.norm(features.to(self.keys.dtype))

    def forward(self, features: Tensor) -> Tensor:  # (n, C, h, w) -> (n, C, h, w)
        """Recall values for the features at each position."""
        return blend(self.attention(features), self.values)

    def exemplar_loss(self, features: Tensor, n_exemplars: int) -> Tensor:  # (n, C, h, w) -> ()
        """Return the distance of the first images from their recall with values as keys (L_NM).

        At each position this is one minus the cosine, half the squared distance of unit vectors.
        All images are standardized together.
        """
        exemplars = self._standardized(features)[:n_exemplars]
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
    asks_source : bool, default=False
        Whether the source's features are what memories are asked with, where it has that layer.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        inputs: Mapping[int, tuple[str, int]],
        asks_source: bool = False,
    ) -> None:
        super().__init__()
        self._asks_source = asks_source
        self._input_layers = {level: inputs[level][0] for level in plan.levels}
        self.memories = nn.ModuleDict(
            {str(level): NormalityRecall(plan, inputs[level][1]) for level in plan.levels}
        )

    def append_recall(
        self, level: int, features: Tensor, source: Features
    ) -> Tensor:  # (n, C, h, w) -> (n, 2C, h, w)
        """Lay beside the features what a memory recalls; without one, pass them on."""
        if level not in self._input_layers:
            return features
        layer = self._input_layers[level]
        query = self._query(layer, features, source)
        return torch.cat([features, self.memories[str(level)](query)], dim=1)

    def reader(self, level: int) -> nn.Sequential:
        """Return the residual stage that reads what the memory of a level recalls."""
        raise NotImplementedError

    @torch.no_grad()
    def begin(self, source: Features, output: Features, generator: torch.Generator) -> None:
        """Fill the memories with normal features; what is recalled weighs nothing yet."""
        for memory, features in self.exemplars(source, output):
            memory.remember(features, generator)
        for level in self._input_layers:
            first = self.reader(level)[0]
            for way in (first.get_submodule("body"), first.get_submodule("shortcut")):
                layer = next(m for m in way.modules() if isinstance(m, CONVOLUTIONS))
                inputs = 0 if layer.transposed else 1  # dimension of the weights
                layer.weight.chunk(2, dim=inputs)[1].zero_()

    def exemplars(self, source: Features, output: Features) -> list[tuple[NormalityRecall, Tensor]]:
        """Return each memory and its input, from the source where it has that layer."""
        normal = {layer: source.get(layer, own.detach()) for layer, own in output.items()}
        return list(self.memory_inputs(normal).values())

    def queries(self, source: Features, own: Features) -> Features:
        """Return the features of each layer that memories are asked with."""
        return {layer: self._query(layer, features, source) for layer, features in own.items()}

    def _query(self, layer: str, own: Tensor, source: Features) -> Tensor:
        return source.get(layer, own) if self._asks_source else own

    def memory_inputs(self, features: Features) -> dict[int, tuple[NormalityRecall, Tensor]]:
        """Return the memory of each level and those of the features that are its input."""
        return {
            level: (cast(NormalityRecall, self.memories[str(level)]), features[layer])
            for level, layer in self._input_layers.items()
        }
