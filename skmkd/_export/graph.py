"""The whole way from raw pixels to scores and maps, as one module that can be exported."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skmkd._export.sessions import PREPARED
from skmkd._features.batches import Batch
from skmkd._images.pixel_range import FAR, FAR_ALPHA, FIXED
from skmkd._images.preparation import over_white
from skmkd._images.roi import Roi
from skmkd._maps.discrepancy import Features
from skmkd._maps.finishing import localization_maps, resized_masks
from skmkd._networks.cloners import plain_copy
from skmkd._networks.engines import OWN, folded_copy
from skmkd._runtime import CPU


class Graph(nn.Module):
    """Score and localize images as a fitted detector does, on the CPU and in float32.

    Weights are those that the detector computes with, rounded if it computes in bfloat16.

    Parameters
    ----------
    detector : MKDDetector or MemKDDetector
        A fitted detector that `check_exportable` lets pass.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.source = plain_copy(detector.source_).to(CPU)
        cloner = detector.cloner_
        if detector._folded and isinstance(cloner, OWN):
            cloner = folded_copy(cloner, detector.precision_)
        self.cloner = plain_copy(cloner).to(CPU)
        self.eval().requires_grad_(False)
        self._cloner_input = detector._cloner_input
        self._judge = partial(_judged, detector)
        self._prepare = detector._prepare
        self._roi: Roi | None = detector._roi
        self._inside = None
        if self._roi is not None and self._roi.mask is not None:
            self._inside = resized_masks([self._roi.mask], self._prepare.size, CPU)
        self._thresholds = [detector._threshold(name) for name in ("offset_", "map_offset_")]
        self._calibration = detector._score_calibration

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute all outputs for raw images (n, H, W, C), and what networks take and give."""
        prepared = self._prepared(images)
        batch = Batch(prepared, self.source(prepared))
        learned = self.cloner(self._cloner_input(batch))
        anomaly, raw = self._judge(batch, learned, self._inside)
        maps = self._placed(raw, images.shape[1], images.shape[2])
        offset, map_offset = self._thresholds
        score = -anomaly
        outputs = {
            "score": score,
            "decision": score - offset,
            "label": torch.where(score >= offset, 1, -1),
            "map": maps,
            "mask": ~(maps <= map_offset),
        }
        if (calibration := self._calibration) is not None:
            normal, shares = (torch.from_numpy(each).float() for each in calibration[:2])
            beyond = torch.where(normal[None] >= anomaly[:, None], shares[None], 0.0).sum(1)
            outputs["p_value"] = (beyond + 1) / (calibration.n_groups + 1)
        within = {f"source.{name}": each for name, each in batch.target.items()}
        within |= {f"cloner.{name}": learned[name] for name in batch.target}
        return outputs | {PREPARED: prepared} | within

    def _prepared(self, images: Tensor) -> Tensor:  # (n, H, W, C) -> (n, 3, h, w)
        """Cut, resize and normalise raw images, as `Preprocessing` does."""
        known, size = self._prepare.pixel_range, self._prepare.size
        pixels = images.float()
        if self._roi is not None:
            pixels = self._cut(pixels, known.kind)
        if known.kind not in FIXED:
            reach = (FAR_ALPHA if images.shape[3] == 4 else FAR) * known.width
            pixels = pixels.clamp(known.low - reach, known.high + reach)
        planes = (pixels - known.low).permute(0, 3, 1, 2)
        if images.shape[3] == 4:
            planes = over_white(planes, known.width)
        resized = resize(planes, size) / known.width
        mean, std = (
            torch.tensor(each).view(3, 1, 1) for each in (self._prepare.mean, self._prepare.std)
        )
        return (resized.expand(-1, 3, -1, -1) - mean) / std

    def _cut(self, pixels: Tensor, kind: str) -> Tensor:
        """Cut out the region, as `Roi.cut` does."""
        assert self._roi is not None
        top, left, bottom, right = self._roi.box
        pixels = pixels[:, top:bottom, left:right]
        if self._roi.mask is None:
            return pixels
        inside = torch.from_numpy(self._roi.mask)[..., None]
        mean = torch.where(inside, pixels, 0.0).sum((1, 2), keepdim=True) / inside.sum()
        return torch.where(inside, pixels, mean if kind == "float" else mean.round())

    def _placed(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Bring maps to the size of the images, 0 outside the region."""
        if self._roi is None:
            return resize(maps, (height, width))
        top, left, bottom, right = self._roi.box
        maps = resize(maps, self._roi.size)
        if self._roi.mask is not None:
            maps = maps * torch.from_numpy(self._roi.mask)
        return F.pad(maps, (left, width - right, top, height - bottom))


def _judged(
    detector: Any, batch: Batch, learned: Features, inside: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return anomaly scores and finished maps of a batch from a cloner's output."""
    judge = object.__new__(type(detector))
    judge.__dict__ = vars(detector) | {"_cloner_output": lambda _: learned}
    anomaly, raw = judge._judge(batch, True, True, None, inside)
    return anomaly, localization_maps(raw, judge.smoothing_sigma, judge.opening_size)


def resize(planes: Tensor, size: tuple[Any, Any]) -> Tensor:  # (..., H, W) -> (..., h, w)
    """Resize bilinearly with antialiasing, as torchvision does, by two matrix products.

    Engines do not agree on how their own operators smooth what they reduce.
    """
    rows, columns = (resizing(old, new) for old, new in zip(planes.shape[-2:], size, strict=True))
    return torch.matmul(torch.matmul(rows, planes), columns.T)


def resizing(old: int, new: int) -> Tensor:
    """Return the matrix (new, old) that resizes an axis: weights of a triangle, one in the sum.

    The triangle is as wide as two of the larger pixels, old or new, and stands on the middle of
    the new one.
    """
    scale = torch.ones(()) * old / new
    middles = (torch.arange(new).float() + 0.5) * scale
    places = torch.arange(old).float() + 0.5
    distance = (places[None] - middles[:, None]).abs() / scale.clamp_min(1.0)
    weights = F.relu(1 - distance)
    return weights / weights.sum(1, keepdim=True)
