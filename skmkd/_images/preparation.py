"""Checked images become normalised tensors, their order shuffled, augmented if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from skmkd._images.checks import PixelRange

MAX_ROTATION = 20.0  # degrees; this and the scales are MKD's for small sets (section 4.2.3)
SCALES = (0.9, 1.05)
RUN_PIXELS = 2**18  # brought to size at once


@dataclass(frozen=True)
class Preprocessing:
    """Scale to 0-1, bring to three channels, resize, normalise as the source was trained.

    Parameters
    ----------
    size : tuple (height, width)
        What images are resized to, bilinear with antialiasing; the aspect is not kept.
    pixel_range : PixelRange
        The values that become 0 and 1.
    mean, std : tuple of 3 floats
        Input normalisation of the source, for pixels from 0 to 1.
    """

    size: tuple[int, int]
    pixel_range: PixelRange
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Turn images (H, W, C), in number n, into a float32 tensor (n, 3, height, width)."""
        resized = torch.cat([self._resize(over_white(self._scale(run))) for run in runs(images)])
        return transforms.normalize(resized.expand(-1, 3, -1, -1), self.mean, self.std)

    def _scale(self, pixels: np.ndarray) -> Tensor:  # (n, H, W, C) -> (n, C, H, W), 0-1
        low, high, _ = self.pixel_range
        scaled = pixels.astype(np.result_type(pixels.dtype, np.float32))
        scaled -= low
        scaled /= (high - low) or 1.0
        return torch.from_numpy(scaled.astype(np.float32, copy=False)).permute(0, 3, 1, 2)

    def _resize(self, images: Tensor) -> Tensor:
        return transforms.resize(images.contiguous(), list(self.size), antialias=True)


def resized_shape(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width for a side or (height, width), in pixels."""
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(s, (int, np.integer)) and s > 0 for s in size):
        raise ValueError(
            f"image_size must be a side or (height, width) in pixels; got {image_size!r}."
        )
    return int(size[0]), int(size[1])


def runs(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Stack neighbours of one size, few enough that their floats stay small next to a network's."""
    for (height, width, _), group in groupby(images, key=np.shape):
        neighbours = list(group)
        step = max(1, RUN_PIXELS // (height * width))
        for start in range(0, len(neighbours), step):
            yield np.stack(neighbours[start : start + step])


def over_white(images: Tensor) -> Tensor:  # (n, 4, H, W) -> (n, 3, H, W)
    """Lay RGBA over white, pixels from 0 to 1; grey and RGB stay as they are."""
    if images.shape[1] != 4:
        return images
    colour, alpha = images[:, :3], images[:, 3:]
    return colour * alpha + (1 - alpha)


def mild_augmentation(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate each image by up to 20 degrees and scale it by 0.9 to 1.05, edges mirrored.

    The ranges are those of MKD's experiment on few training images. Mirroring keeps out the
    dark corners that no test image has.
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


def shuffled_batches(n_images: int, batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Split the indices of all images, in random order, into batches of near-equal size.

    No batch holds a single image: batch norm could not learn from it.
    """
    n_batches = max(1, min(ceil(n_images / batch_size), n_images // 2))
    order = torch.randperm(n_images, generator=generator).numpy()
    return [indices.tolist() for indices in np.array_split(order, n_batches)]
