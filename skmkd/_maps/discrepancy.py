"""How far cloner and source disagree: value and direction, per image and per position.

Training, scores and maps all come through here; nothing else compares activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SILENCE = 1e-8  # norms below count as this, so that a silent layer has no direction

Features = dict[str, Tensor]  # critical layer -> activations (n, C, h, w)


def _precise(activations: Tensor) -> Tensor:
    """Compare in float32 at least, whatever the networks compute in."""
    return activations.to(torch.promote_types(activations.dtype, torch.float32))


def _positions(activations: Tensor) -> Tensor:  # (n, C, h, w) -> (n, h, w, C)
    """Put channels last, as they lie in channels-last memory, which costs no copy."""
    return _precise(activations).movedim(1, -1)


def _neurons(activations: Tensor) -> Tensor:  # (n, C, h, w) -> (n, h * w * C)
    """Lay out each image's neurons."""
    return _positions(activations).flatten(1)


def _cosine_distance(taught: Tensor, learned: Tensor) -> Tensor:  # (..., d) x2 -> (...)
    """One minus the cosine along the last axis; 0 where the source is silent.

    There is no direction to learn at such a place, and no gradient that would.
    """
    a, b = (torch.linalg.vector_norm(each, dim=-1) for each in (taught, learned))
    cosine = (taught * learned).sum(-1) / (a.clamp_min(SILENCE) * b.clamp_min(SILENCE))
    return (1 - cosine).masked_fill(a == 0, 0)


def value_map(source: Tensor, cloner: Tensor) -> Tensor:  # (n, C, h, w) x2 -> (n, h, w)
    """Squared difference at each position, averaged over channels."""
    return (_precise(source) - _precise(cloner)).square().mean(1)


def direction_map(source: Tensor, cloner: Tensor) -> Tensor:  # (n, C, h, w) x2 -> (n, h, w)
    """One minus the cosine along channels at each position."""
    return _cosine_distance(_positions(source), _positions(cloner))


def value_discrepancy(source: Tensor, cloner: Tensor) -> Tensor:  # (n, C, h, w) x2 -> (n,)
    """Squared difference averaged over all neurons of the layer (MKD, Eq. 1)."""
    squares = F.mse_loss(_neurons(cloner), _neurons(source), reduction="none")
    return squares.sum(1) / squares.shape[1]


def direction_discrepancy(
    source: Tensor, cloner: Tensor, direction: str
) -> Tensor:  # (n, C, h, w) x2 -> (n,)
    """One minus the cosine of the whole layer (MKD, Eq. 3), or its mean over positions."""
    if direction == "position":
        return direction_map(source, cloner).flatten(1).mean(1)
    return _cosine_distance(_neurons(source), _neurons(cloner))


def discrepancies(
    source: Features, cloner: Features, layers: Sequence[str], direction: str
) -> tuple[Tensor, Tensor]:  # -> (n,), (n,)
    """Sum the value and the direction discrepancies over the layers."""
    value = sum(value_discrepancy(source[i], cloner[i]) for i in layers)
    towards = sum(direction_discrepancy(source[i], cloner[i], direction) for i in layers)
    return torch.as_tensor(value), torch.as_tensor(towards)


def total_discrepancy(
    value: Tensor, direction: Tensor, value_weight: float, direction_weight: float
) -> Tensor:
    """Weigh both terms into the total (MKD, Eq. 4); images or positions alike.

    A term of weight 0 has no part in it, and none in its gradient.
    """
    terms = ((value_weight, value), (direction_weight, direction))
    return sum((w * term for w, term in terms if w), torch.zeros_like(direction))


def balancing_weight(value: Tensor, direction: Tensor) -> float:
    """Return the weight that gives both terms the same mean (MKD, section 3.1)."""
    mean_value, mean_direction = float(value.mean()), float(direction.mean())
    return mean_value / mean_direction if mean_direction > 0 else 1.0


def discrepancy_map(
    source: Features,
    cloner: Features,
    layers: Sequence[str],
    size: tuple[int, int],
    value_weight: float,
    direction_weight: float,
) -> Tensor:
    """Sum the layers' per-position discrepancies, each upsampled bilinearly to the image."""

    def upsampled(layer: str) -> Tensor:
        value = value_map(source[layer], cloner[layer])
        direction = direction_map(source[layer], cloner[layer])
        total = total_discrepancy(value, direction, value_weight, direction_weight)
        return F.interpolate(total[:, None], size, mode="bilinear", align_corners=False)[:, 0]

    return torch.stack([upsampled(layer) for layer in layers]).sum(0)
