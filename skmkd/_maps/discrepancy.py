"""Discrepancy between the features of source and cloner: value and direction.

The loss, the anomaly scores and the localization maps are all computed from these functions, in
float32 or more, whatever the precision of the networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8  # lower bound of norms in the denominator of the cosine

Features = dict[str, Tensor]  # critical layer -> activations (n, C, h, w)


def _cosine_distance(source: Tensor, cloner: Tensor) -> Tensor:  # (..., d) x2 -> (...)
    """One minus the cosine along the last axis; 0, with a gradient of 0, where the source is 0.

    A zero vector has no direction for the cloner to learn.
    """
    dtype = torch.promote_types(source.dtype, torch.float32)
    source, cloner = source.to(dtype), cloner.to(dtype)
    norm, cloner_norm = (torch.linalg.vector_norm(each, dim=-1) for each in (source, cloner))
    cosine = (source * cloner).sum(-1) / (norm.clamp_min(EPS) * cloner_norm.clamp_min(EPS))
    return (1 - cosine).masked_fill(norm == 0, 0)


def value_map(source: Tensor, cloner: Tensor) -> Tensor:  # (n, C, h, w) x2 -> (n, h, w)
    """Squared difference at each position, averaged over channels."""
    dtype = torch.promote_types(source.dtype, torch.float32)
    return (source.to(dtype) - cloner.to(dtype)).square().mean(1)


def direction_map(source: Tensor, cloner: Tensor) -> Tensor:  # (n, C, h, w) x2 -> (n, h, w)
    """One minus the cosine along channels at each position."""
    return _cosine_distance(source.movedim(1, -1), cloner.movedim(1, -1))


def value_discrepancy(source: Tensor, cloner: Tensor) -> Tensor:  # (n, C, h, w) x2 -> (n,)
    """Squared difference averaged over all activations of the layer (MKD, Eq. 1)."""
    dtype = torch.promote_types(source.dtype, torch.float32)
    # channels last, as activations are in channels-last memory, so that nothing is copied
    target, predicted = (each.movedim(1, -1).flatten(1).to(dtype) for each in (source, cloner))
    squares = F.mse_loss(predicted, target, reduction="none")
    return squares.sum(1) / squares.shape[1]


def direction_discrepancy(
    source: Tensor, cloner: Tensor, direction: str
) -> Tensor:  # (n, C, h, w) x2 -> (n,)
    """One minus the cosine of the whole layer (MKD, Eq. 3), or its mean over positions."""
    if direction == "position":
        return direction_map(source, cloner).flatten(1).mean(1)
    return _cosine_distance(*(each.movedim(1, -1).flatten(1) for each in (source, cloner)))


def discrepancies(
    source: Features, cloner: Features, layers: Sequence[str], direction: str
) -> tuple[Tensor, Tensor]:  # -> (n,), (n,)
    """Sum the value and the direction discrepancies over the layers."""
    values = [value_discrepancy(source[i], cloner[i]) for i in layers]
    directions = [direction_discrepancy(source[i], cloner[i], direction) for i in layers]
    return torch.as_tensor(sum(values)), torch.as_tensor(sum(directions))


def discrepancy_map(
    source: Features,
    cloner: Features,
    layers: Sequence[str],
    size: tuple[int, int],
    value_weight: float,
    direction_weight: float,
) -> Tensor:  # (n, H, W)
    """Weighted discrepancy at each position, resized bilinearly to `size`, summed over layers."""
    maps = []
    for layer in layers:
        features = source[layer], cloner[layer]
        weighted = ((value_weight, value_map), (direction_weight, direction_map))
        total = torch.as_tensor(sum(w * compute(*features) for w, compute in weighted if w))
        resized = F.interpolate(total[:, None], size, mode="bilinear", align_corners=False)
        maps.append(resized[:, 0])
    return torch.stack(maps).sum(0)


def total_discrepancy(
    value: Tensor, direction: Tensor, value_weight: float, direction_weight: float
) -> Tensor:  # (n,) x2 -> (n,)
    """Weighted sum of both terms (MKD, Eq. 4).

    A term of weight 0 is left out, so that an infinite one does not give NaN.
    """
    terms = ((value_weight, value), (direction_weight, direction))
    return sum((w * term for w, term in terms if w), torch.zeros_like(direction))


def balancing_weight(value: Tensor, direction: Tensor) -> float:
    """Return the direction weight that gives both terms the same mean (MKD, section 3.1)."""
    mean_value, mean_direction = float(value.mean()), float(direction.mean())
    return mean_value / mean_direction if mean_direction > 0 else 1.0
