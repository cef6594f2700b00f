"""Registration: where an object is in an image, and how images and maps are moved by that.

The object may be shifted and turned against a template. A pose is how: an angle in degrees, and a
shift of rows and of columns in pixels of the template. A template is small, has the aspect of the
images, and consists of edges, so that light and contrast matter little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy import fft, ndimage
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

PIXELS = 2**14  # of a template, those of 128 x 128
TURN = 10.0  # degrees to either side at most
SHIFT = 0.2  # of each side of the image at most
TEMPLATE_IMAGES = 40  # that a template is learned from at most
STEP = 0.5  # degrees between the angles that are tried; of these, each other one at first


@dataclass(frozen=True, eq=False)
class Template:
    """The edges of an object where it usually is, with which images are compared.

    Parameters
    ----------
    edges : ndarray of shape (h, w), float32
        As of `edges_of`, averaged over images.
    """

    edges: np.ndarray

    @classmethod
    def learned(cls, images: Sequence[Tensor], frame: tuple[int, int]) -> Self:
        """Learn from prepared images (C, H, W) of objects; the frame is the size that they had.

        The template has the pose that is nearest to the median of all, so that none is far from it.
        """
        size = template_size(frame)
        edges = [edges_of(image, size) for image in images]
        edges = [each for each in edges if each.any()] or edges[:1]  # constant images show nothing
        first = cls(edges[0])
        poses = np.stack([first.pose(each) for each in edges])
        middle = np.abs(poses - np.median(poses, axis=0)).sum(1).argmin()
        central = cls(edges[middle])
        poses = np.stack([central.pose(each) for each in edges])
        stacked = torch.from_numpy(np.stack(edges))[:, None]
        return cls(sampled(stacked, central.transforms(poses))[:, 0].mean(0).numpy())

    @cached_property
    def _angles(self) -> np.ndarray:
        return np.arange(-TURN, TURN + STEP / 2, STEP)

    @cached_property
    def _spectra(self) -> np.ndarray:
        """Conjugate spectra of the template at each angle, (n, h, w // 2 + 1)."""
        turned = [ndimage.rotate(self.edges, a, reshape=False, order=1) for a in self._angles]
        return np.conj(fft.rfft2(np.stack(turned)))

    def poses(self, images: Tensor) -> np.ndarray:  # (n, C, H, W) -> (n, 3)
        """Return the pose of the object in each prepared image, whatever the others are."""
        size = self.edges.shape
        return np.stack([self.pose(edges_of(image, size)) for image in images])

    def pose(self, edges: np.ndarray) -> np.ndarray:  # (h, w) -> (3,)
        """Return the pose at which the template correlates best with edges; 0 if one has none."""
        if not (edges.any() and self.edges.any()):
            return np.zeros(3)
        spectrum = fft.rfft2(edges)
        reach = [int(SHIFT * side) for side in edges.shape]
        window = np.ix_(*(np.arange(-most, most + 1) for most in reach))
        found: dict[int, np.ndarray] = {}

        def best(number: int) -> float:
            """Return the highest correlation at an angle."""
            if number not in found:
                found[number] = fft.irfft2(spectrum * self._spectra[number], s=edges.shape)
            return float(found[number][window].max())

        last = len(self._angles) - 1
        coarse = max(range(0, last + 1, 2), key=best)
        number = max(range(max(0, coarse - 1), min(last, coarse + 1) + 1), key=best)
        angle = vertex(*(best(min(max(0, n), last)) for n in (number - 1, number, number + 1)))
        height, width = edges.shape
        at = found[number]
        place = at[window].argmax()
        row, column = np.array(np.unravel_index(place, at[window].shape)) - reach
        rows = vertex(*(at[r % height, column] for r in (row - 1, row, row + 1)))
        columns = vertex(*(at[row, c % width] for c in (column - 1, column, column + 1)))
        return np.array([self._angles[number] + STEP * angle, row + rows, column + columns])

    def transforms(self, poses: np.ndarray) -> np.ndarray:  # (n, 3) -> (n, 3, 3)
        """Return the matrices that take places (x, y, 1) of the template to those of images.

        Both are from -1 to 1 from edge to edge, as in `torch.nn.functional.affine_grid`.
        """
        height, width = self.edges.shape
        angle, rows, columns = np.deg2rad(poses[:, 0]), poses[:, 1], poses[:, 2]
        cos, sin, zero, one = np.cos(angle), np.sin(angle), 0 * angle, 0 * angle + 1
        matrices = [
            [cos, sin * height / width, 2 * columns / width],
            [-sin * width / height, cos, 2 * rows / height],
            [zero, zero, one],
        ]
        return np.moveaxis(np.array(matrices), 2, 0)

    def registered(self, images: Tensor, poses: np.ndarray) -> Tensor:  # (n, C, H, W)
        """Move images so that their objects are where that of the template is.

        What an image does not show has the colour of its nearest edge.
        """
        return sampled(images, self.transforms(poses), "bicubic", "border")

    def covered(self, inside: Tensor, poses: np.ndarray) -> Tensor:  # (n, H, W), bool
        """Return what registered images show of what is inside of the images."""
        return sampled(inside[:, None].float(), self.transforms(poses))[:, 0] > 0.5

    def returned(self, maps: Tensor, poses: np.ndarray) -> Tensor:  # (n, H, W)
        """Move maps of registered images to where the images had it; 0 where there is no map."""
        return sampled(maps[:, None], np.linalg.inv(self.transforms(poses)))[:, 0]


def sampled(
    images: Tensor, matrices: np.ndarray, mode: str = "bilinear", padding: str = "zeros"
) -> Tensor:  # (n, C, H, W)
    """Sample each image at the places that its matrix takes each pixel to."""
    theta = torch.from_numpy(matrices[:, :2]).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=False)


def template_size(frame: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the templates of images of a size."""
    height, width = (max(1, round(sqrt(PIXELS * a / b))) for a, b in (frame, frame[::-1]))
    return height, width


def edges_of(image: Tensor, size: tuple[int, ...]) -> np.ndarray:  # (C, H, W) -> (h, w)
    """Return the strength of edges at each place of a resized image, of mean 0 and deviation 1."""
    grey = transforms.resize(image.mean(0, keepdim=True), list(size), antialias=True)[0]
    strength = ndimage.gaussian_gradient_magnitude(grey.cpu().numpy(), 1.0)
    strength -= strength.mean()
    return strength / (strength.std() or 1.0)


def vertex(before: float, middle: float, after: float) -> float:
    """Return where the parabola through three values, one apart, is highest, from the middle.

    It is 0 if the middle one is not the highest, or all are the same.
    """
    if middle < max(before, after) or before == middle == after:
        return 0.0
    return 0.5 * float(before - after) / float(before - 2 * middle + after)
