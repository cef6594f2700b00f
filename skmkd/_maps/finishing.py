"""From raw attributions to localization maps: blur, grey opening, resizing to the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.morphology import disk
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

RESIZED_PIXELS = 2**22  # of the maps that are resized at once

Maps = np.ndarray | list[np.ndarray]  # (n, H, W), or one (H, W) for each of n images


@dataclass(frozen=True, slots=True)
class Output:
    """What a detector computes for an image.

    Parameters
    ----------
    index : int
        Place of the image in X.
    score : float
        Higher = more normal; NaN for an unreadable file, and if it was not asked for.
    map : ndarray of shape (H, W), float32, or None
        Localization map, higher = more anomalous; NaN for an unreadable file; None if it was not
        asked for.
    """

    index: int
    score: float
    map: Any


def blur(maps: Tensor, sigma: float) -> Tensor:  # (n, H, W)
    """Smooth each map with a Gaussian of standard deviation sigma, in pixels (MKD, Eq. 6).

    It is linear along columns and along rows, and so is computed as two matrix products.
    """
    if sigma == 0:
        return maps
    columns, rows = (_gaussian(side, sigma, maps.device) for side in maps.shape[1:])
    return columns @ maps @ rows.T


@cache
def _gaussian(side: int, sigma: float, device: torch.device) -> Tensor:
    """Return the matrix (side, side) of a Gaussian filter with mirrored edges.

    It stays where it is, as what was recorded on a GPU needs it.
    """
    matrix = ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0)
    return torch.from_numpy(matrix).float().to(device)


def blurred_maximum(
    maps: Tensor, sigma: float, inside: Tensor | None = None
) -> Tensor:  # (n, H, W) -> (n,)
    """Return the maximum of each blurred map, which has no negative values, as an anomaly score.

    It is that of what is inside; 0 if nothing is.
    """
    blurred = blur(maps, sigma)
    if inside is not None:
        blurred = blurred.masked_fill(~inside, 0)
    return blurred.amax((1, 2))


def resized_masks(
    masks: Sequence[np.ndarray | None], size: tuple[int, int], device: torch.device
) -> Tensor | None:
    """Return where resized images hold something of their masks: (n, H, W), bool.

    None, for an image or for all of them, means everywhere.
    """
    if all(mask is None for mask in masks):
        return None
    inside = torch.ones(len(masks), *size, dtype=torch.bool)
    for row, mask in zip(inside, masks, strict=True):
        if mask is not None:
            floats = torch.from_numpy(mask.astype(np.float32))
            row.copy_(F.adaptive_max_pool2d(floats[None], size)[0] > 0)
    return inside.to(device)


def grey_opening(maps: Tensor, size: int) -> Tensor:  # (n, H, W)
    """Remove bright spots that a disk, ``2 * (size // 2) + 1`` pixels wide, does not fit into.

    MKD (Eq. 6) opens its maps likewise.
    """
    radius = size // 2
    eroded = _over_disk(torch.minimum, maps, radius, float("inf"))
    return _over_disk(torch.maximum, eroded, radius, float("-inf"))


def _over_disk(
    extreme: Callable[[Tensor, Tensor], Tensor], maps: Tensor, radius: int, outside: float
) -> Tensor:
    """Return the minimum or maximum over a disk around each pixel."""
    padded = F.pad(maps, [radius] * 4, value=outside)
    height, width = maps.shape[1:]
    offsets = np.argwhere(disk(radius)).tolist()
    return reduce(extreme, (padded[:, r : r + height, c : c + width] for r, c in offsets))


def localization_maps(attribution: Tensor, sigma: float, opening_size: int) -> Tensor:
    """Blur and open raw attributions of shape (n, H, W)."""
    return grey_opening(blur(attribution, sigma), opening_size)


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:  # (n, h, w) -> (n, H, W)
    """Resize maps bilinearly, with antialiasing."""
    return transforms.resize(maps, list(size), antialias=True)


def resized_maps(maps: Tensor, sizes: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Yield each map (h, w) in a size of its own, neighbours of one size made together."""
    start = 0
    for (height, width), group in groupby(sizes):
        stop = start + len(list(group))
        for part in maps[start:stop].split(max(1, RESIZED_PIXELS // (height * width))):
            yield from resize_maps(part, (height, width)).cpu().numpy()
        start = stop
