"""Raw attribution becomes a localization map: blurred, opened, at the image's own size."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from skimage.morphology import disk
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms


def blur(maps: np.ndarray, sigma: float) -> np.ndarray:  # (n, H, W)
    """Smooth each map with a Gaussian of width sigma, in pixels (MKD, Eq. 6)."""
    return ndimage.gaussian_filter(maps, sigma, axes=(1, 2))


def blurred_maximum(maps: Tensor, sigma: float) -> Tensor:  # (n, H, W) -> (n,)
    """Return how anomalous the most anomalous place of each image is."""
    return torch.from_numpy(blur(maps.cpu().numpy(), sigma)).amax((1, 2))


def grey_opening(maps: np.ndarray, size: int) -> np.ndarray:  # (n, H, W)
    """Remove bright specks smaller than an ellipse, size pixels across (MKD, Eq. 6)."""
    return ndimage.grey_opening(maps, footprint=disk(size // 2)[None])


def localization_maps(attribution: np.ndarray, sigma: float, opening_size: int) -> np.ndarray:
    """Blur and open raw attributions of shape (n, H, W)."""
    return grey_opening(blur(attribution, sigma), opening_size)


def resize_map(single: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # (h, w) -> (H, W)
    """Bring one map to the size of its image, bilinearly."""
    resized = transforms.resize(torch.from_numpy(single)[None], list(size), antialias=True)
    return resized[0].numpy()
