"""Checked images become normalised tensors, augmented if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from skmkd._images.pixel_range import PixelRange
from skmkd._runtime import CPU, sent

MAX_ROTATION = 20.0  # degrees; this and the scales are MKD's for small sets (section 4.2.3)
SCALES = (0.9, 1.05)
STRIP_VALUES = 2**19  # converted at once, so that their floats stay in the processor's cache


@dataclass(frozen=True)
class Preprocessing:
    """Convert to three channels, resize, scale to 0-1, and normalise as the source was trained.

    Pixels are resized before they are scaled, first their width, in strips of rows, then their
    height: the floats of a whole image of 12 megapixels, 144 MB, would take twice the time. The
    resize computes in float32, or float64 for kinds of number that float32 cannot hold: resizing
    bytes as bytes is faster still, but rounds by up to 0.7 grey levels. A lowest value other than 0
    is subtracted first, since a large one would leave few digits to the differences of pixels.

    Parameters
    ----------
    size : tuple (height, width)
        Size that images are resized to, bilinearly with antialiasing; the aspect is not kept.
    pixel_range : PixelRange
        The values that become 0 and 1.
    mean, std : tuple of 3 floats
        Input normalisation of the source, for pixels from 0 to 1.
    """

    size: tuple[int, int]
    pixel_range: PixelRange
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Sequence[np.ndarray], device: torch.device = CPU) -> Tensor:
        """Turn n images of one shape (H, W, C) into a float32 tensor (n, 3, height, width)."""
        return self.normalised(self.scaled(images, device))

    def scaled(self, images: Sequence[np.ndarray], device: torch.device = CPU) -> Tensor:
        """Do the same, but for the normalisation: values are from 0 to 1."""
        low, high, _ = self.pixel_range
        white = (high - low) or 1.0
        pixels = np.stack(images) if len(images) > 1 else images[0][None]
        n, height, width, channels = pixels.shape
        rows = max(1, STRIP_VALUES // (n * width * channels)) if device == CPU else height
        # made before the floats of any strip, which else would leave gaps that none of them fits
        narrow = torch.empty(
            (n, height, self.size[1], min(channels, 3)), dtype=float_type(pixels), device=device
        ).permute(0, 3, 1, 2)  # (n, C, H, width), channels last
        for i in range(0, height, rows):
            strip = as_floats(pixels[:, i : i + rows], device)
            narrow[:, :, i : i + rows] = self._strip(strip, white)
        resized = transforms.resize(narrow, list(self.size), antialias=True)
        return (resized / white).float()

    def normalised(self, scaled: Tensor) -> Tensor:
        """Normalise scaled images (n, 3, height, width) as the source was trained."""
        mean, std = (_of_channels(each, scaled.device) for each in (self.mean, self.std))
        return (scaled - mean).div_(std)

    def _strip(self, floats: Tensor, white: float) -> Tensor:
        """Turn rows (n, h, W, C) into values from 0 to white, of the final width."""
        if (low := self.pixel_range.low) != 0:
            floats -= low
        tensor = floats.permute(0, 3, 1, 2)  # (n, C, h, W), channels last
        if tensor.shape[1] == 4:
            tensor = over_white(tensor, white)
        return transforms.resize(tensor, [tensor.shape[2], self.size[1]], antialias=True)


def as_floats(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Return a copy of pixels, on a device, as floats that hold them; bytes travel as bytes."""
    if device != CPU and pixels.dtype == np.uint8:
        return sent(torch.from_numpy(pixels.copy()), device).float()
    kind: Any = np.float32 if float_type(pixels) == torch.float32 else np.float64
    return sent(torch.from_numpy(pixels.astype(kind)), device)


def float_type(pixels: np.ndarray) -> torch.dtype:
    """Return the type of floats that hold pixels, as far as torch has one."""
    single = np.result_type(pixels.dtype, np.float32) == np.float32
    return torch.float32 if single else torch.float64


@lru_cache(maxsize=8)
def _of_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return one value per channel, as a tensor (3, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


def over_white(images: Tensor, white: float) -> Tensor:
    """Composite RGBA over white: (n, 4, H, W) -> (n, 3, H, W), all values from 0 to white."""
    colour, alpha = images[:, :3], images[:, 3:] / white
    return colour * alpha + white * (1 - alpha)


def mild_augmentation(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate each image by up to 20 degrees and scale it by 0.9 to 1.05, with mirrored edges.

    The ranges are those of MKD's experiment on few training images. Mirrored edges avoid dark
    corners, which no test image has.
    """
    n, _, height, width = images.shape
    draws = torch.rand(2, n, generator=generator, dtype=torch.float32)
    angle = torch.deg2rad((2 * draws[0] - 1) * MAX_ROTATION)
    zoom = 1 / (SCALES[0] + draws[1] * (SCALES[1] - SCALES[0]))
    cos, sin, still = zoom * angle.cos(), zoom * angle.sin(), torch.zeros(n)
    rows = [cos, -sin * height / width, still, sin * width / height, cos, still]
    theta = torch.stack(rows, dim=1).view(n, 2, 3).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
