"""How far cloner and source disagree: value and direction, per image and per position.

Training, scores and maps all come through here; nothing else compares activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Features = dict[str, Tensor]  # critical layer -> activations (n, C, h, w)


def value_map(source: Tensor, cloner: Tensor) -> Tensor:  # (n, C, h, w) x2 -> (n, h, w)
    """Squared difference at each position, averaged over channels."""
    return (source - cloner).square().mean(1)


def direction_map(source: Tensor, cloner: Tensor) -> Tensor:  # (n, C, h, w) x2 -> (n, h, w)
    """One minus the cosine along channels at each position; 0 where both are silent."""
    silent = ~(source.any(1) | cloner.any(1))
    return (1 - F.cosine_similarity(source, cloner, dim=1)).masked_fill(silent, 0)


def value_discrepancy(source: Tensor, cloner: Tensor) -> Tensor:  # (n, C, h, w) x2 -> (n,)
    """Squared difference averaged over all neurons of the layer (MKD, Eq. 1)."""
    return (source - cloner).square().flatten(1).mean(1)


def direction_discrepancy(
    source: Tensor, cloner: Tensor, direction: str = "vector"
) -> Tensor:  # (n, C, h, w) x2 -> (n,)
    """One minus the cosine of the whole layer (MKD, Eq. 3), or its mean over positions."""
    if direction == "position":
        return direction_map(source, cloner).flatten(1).mean(1)
    return 1 - F.cosine_similarity(source.flatten(1), cloner.flatten(1))


def discrepancies(
    source: Features, cloner: Features, layers: Sequence[str], direction: str = "vector"
) -> tuple[Tensor, Tensor]:  # -> (n,), (n,)
    """Sum the value and the direction discrepancies over the layers."""
    value = sum(value_discrepancy(source[i], cloner[i]) for i in layers)
    towards = sum(direction_discrepancy(source[i], cloner[i], direction) for i in layers)
    return torch.as_tensor(value), torch.as_tensor(towards)


def total_discrepancy(
    value: Tensor, direction: Tensor, value_weight: float, direction_weight: float
) -> Tensor:
    """Weigh both terms into the total (MKD, Eq. 4); images or positions alike."""
    return value_weight * value + direction_weight * direction


def balancing_weight(value: Tensor, direction: Tensor) -> float:
    """Return the weight that gives both terms the same mean (MKD, section 3.1)."""
    mean_value, mean_direction = float(value.mean()), float(direction.mean())
    return mean_value / mean_direction if mean_direction > 0 else 1.0
