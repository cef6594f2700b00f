"""From raw attributions to localization maps: blur, grey opening, resizing to the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from skimage.morphology import disk
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

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


def blur(maps: np.ndarray, sigma: float) -> np.ndarray:  # (n, H, W)
    """Smooth each map with a Gaussian of standard deviation sigma, in pixels (MKD, Eq. 6)."""
    return ndimage.gaussian_filter(maps, sigma, axes=(1, 2))


def blurred_maximum(maps: Tensor, sigma: float) -> Tensor:  # (n, H, W) -> (n,)
    """Return the maximum of each blurred map, as an anomaly score of the image."""
    return torch.from_numpy(blur(maps.cpu().numpy(), sigma)).amax((1, 2))


def grey_opening(maps: np.ndarray, size: int) -> np.ndarray:  # (n, H, W)
    """Remove bright spots that a disk, ``2 * (size // 2) + 1`` pixels wide, does not fit into.

    MKD (Eq. 6) opens its maps likewise.
    """
    return ndimage.grey_opening(maps, footprint=disk(size // 2)[None])


def localization_maps(attribution: np.ndarray, sigma: float, opening_size: int) -> np.ndarray:
    """Blur and open raw attributions of shape (n, H, W)."""
    return grey_opening(blur(attribution, sigma), opening_size)


def resize_map(single: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # (h, w) -> (H, W)
    """Resize one map bilinearly, with antialiasing."""
    resized = transforms.resize(torch.from_numpy(single)[None], list(size), antialias=True)
    return resized[0].numpy()
