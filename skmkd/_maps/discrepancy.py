"""Discrepancy between the features of source and cloner: value and direction.

The loss, the anomaly scores and the localization maps are all computed from these functions, in
float32 or more, whatever the precision of the networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-8  # lower bound of norms in the denominator of the cosine
CHUNK_VALUES = 2**18  # activations of a layer that are in the processor's cache at once

Features = dict[str, Tensor]  # critical layer -> activations (n, C, h, w)


class Products(NamedTuple):
    """Inner products of the activations s of the source and c of the cloner.

    Both discrepancies follow from them: ``|s - c|^2 = ss + cc - 2 sc``, in which rounding shows
    where s and c differ by less than a hundredth, and ``cos(s, c) = sc / sqrt(ss * cc)``.
    """

    ss: Tensor  # (n, h, w) along channels, or (n,) of the whole layer
    cc: Tensor
    sc: Tensor
    size: int  # activations that each sums over

    def whole(self) -> Products:  # (n, h, w) -> (n,)
        """Sum over all positions."""
        n_positions = self.ss[0].numel()
        ss, cc, sc = (p.flatten(1).sum(1) for p in self[:3])
        return Products(ss, cc, sc, self.size * n_positions)


def products(source: Tensor, cloner: Tensor) -> Products:  # (n, C, h, w) x2 -> (n, h, w) x3
    """Compute the inner products along channels at each position.

    On a CPU chunks of the batch are computed one after another, so that no intermediate result
    leaves the processor's cache.
    """
    if torch.compiler.is_compiling():  # for export, in plain operations
        s, c = source.float(), cloner.float()
        return Products((s * s).sum(1), (c * c).sum(1), (s * c).sum(1), source.shape[1])
    on_cpu = source.device.type == "cpu"
    n = max(1, CHUNK_VALUES // source[0].numel() if on_cpu else len(source))
    last = source.movedim(1, -1), cloner.movedim(1, -1)
    ss, cc, sc = _InnerProducts.apply(*last, n)
    return Products(ss, cc, sc, source.shape[1])


class _InnerProducts(torch.autograd.Function):
    """Inner products along the last axis, in float32 or more, and their gradient."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, cloner: Tensor, chunk: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(source, cloner)
        ctx.chunk = chunk
        dtype = torch.promote_types(source.dtype, torch.float32)
        found = source.new_empty((3, *source.shape[:-1]), dtype=dtype)
        if source.is_cuda:  # norms are computed without intermediate results in memory
            for each, row in zip((source, cloner), found, strict=False):
                torch.linalg.vector_norm(each, dim=-1, dtype=dtype, out=row).square_()
            torch.sum(source.to(dtype) * cloner, -1, out=found[2])
            return found.unbind()
        parts = (each.split(chunk) for each in (source, cloner))
        for s, c, out in zip(*parts, found.split(chunk, dim=1), strict=True):
            s, c = s.to(dtype), c.to(dtype)
            for product, row in zip((s * s, c * c, s * c), out, strict=True):
                torch.sum(product, -1, out=row)
        return found.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved, found = ctx.saved_tensors, dict[int, Tensor]()
        of_ss, of_cc, of_sc = (each[..., None] for each in gradients)
        for i, of_own in enumerate((of_ss, of_cc)):
            if not ctx.needs_input_grad[i]:
                continue
            found[i] = torch.empty_like(saved[i])
            tensors = (found[i], saved[i], saved[1 - i], of_own, of_sc)
            for out, own, other, by_own, by_other in zip(
                *(each.split(ctx.chunk) for each in tensors), strict=True
            ):
                scaled = own * (2 * by_own)
                out.copy_(scaled.addcmul_(other.to(scaled), by_other))
        return found.get(0), found.get(1), None


def squared_distance(p: Products) -> Tensor:
    """Squared difference, averaged over the activations."""
    return (p.ss + p.cc - 2 * p.sc).clamp_min(0) / p.size


def cosine_distance(p: Products) -> Tensor:
    """One minus the cosine; 0, with a gradient of 0, where the source is 0.

    A zero vector has no direction for the cloner to learn.
    """
    norms = p.ss.clamp_min(EPS**2).sqrt() * p.cc.clamp_min(EPS**2).sqrt()
    return (1 - p.sc / norms).masked_fill(p.ss == 0, 0)


def value_discrepancy(positions: Products) -> Tensor:  # (n, h, w) -> (n,)
    """Squared difference averaged over all activations of the layer (MKD, Eq. 1)."""
    return squared_distance(positions.whole())


def direction_discrepancy(positions: Products, direction: str) -> Tensor:  # (n, h, w) -> (n,)
    """One minus the cosine of the whole layer (MKD, Eq. 3), or its mean over positions."""
    if direction == "position":
        return cosine_distance(positions).flatten(1).mean(1)
    return cosine_distance(positions.whole())


def discrepancies(
    source: Features, cloner: Features, layers: Sequence[str], direction: str
) -> tuple[Tensor, Tensor]:  # -> (n,), (n,)
    """Sum the value and the direction discrepancies over the layers."""
    positions = [products(source[layer], cloner[layer]) for layer in layers]
    values = [value_discrepancy(each) for each in positions]
    directions = [direction_discrepancy(each, direction) for each in positions]
    return torch.stack(values).sum(0), torch.stack(directions).sum(0)


def layer_map(
    source: Tensor,
    cloner: Tensor,
    size: tuple[int, int],
    value_weight: float,
    direction_weight: float,
) -> Tensor:  # (n, C, h, w) x2 -> (n, H, W)
    """Weighted discrepancy of a layer at each position, resized bilinearly to `size`."""
    positions = products(source, cloner)
    weighted = ((value_weight, squared_distance), (direction_weight, cosine_distance))
    total = sum(
        (w * compute(positions) for w, compute in weighted if w), torch.zeros_like(positions.sc)
    )
    return F.interpolate(total[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def discrepancy_map(
    source: Features,
    cloner: Features,
    layers: Mapping[str, float],
    size: tuple[int, int],
    value_weight: float,
    direction_weight: float,
) -> Tensor:  # (n, H, W)
    """Sum the maps of the layers, each times its weight in `layers`."""
    terms = (value_weight, direction_weight)
    maps = [w * layer_map(source[name], cloner[name], size, *terms) for name, w in layers.items()]
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
