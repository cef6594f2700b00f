"""Masks that are read from their files on access."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from skmkd._images.image_files import ImageFile
from skmkd._images.roi import read_mask
from skmkd._warnings import warn

ASPECT = 0.02  # by which that of a mask may differ from its image's, as by rounding


class LazyMasks(Sequence[np.ndarray]):
    """Masks of images, each read on access.

    Indexing with an integer reads a mask, bool of shape (H, W), True = anomalous. Indexing with a
    slice or an array of integers or booleans selects masks without reading them. The metrics accept
    the sequence; if all masks have one size, ``np.stack`` makes an array.

    Parameters
    ----------
    images : ndarray of shape (n,), object
        Path of each image.
    files : ndarray of shape (n,), object
        Path of its mask, in which anomalous pixels are nonzero, or a tuple of the paths of several:
        what is anomalous in any of them is. None for a normal image.
    """

    def __init__(self, images: np.ndarray, files: np.ndarray) -> None:
        self._images = images
        self._files = files

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        images, files = self._images[index], self._files[index]
        if not isinstance(index, Integral):
            return LazyMasks(images, files)
        if files is None:
            return nothing_anomalous(images)
        several = files if isinstance(files, tuple) else (files,)
        size = ImageFile(images).shape[:2]
        return np.logical_or.reduce([of_size(read_mask(f), size, f, images) for f in several])


def of_size(mask: np.ndarray, size: tuple[int, ...], file: Path, image: Path) -> np.ndarray:
    """Return a mask in the size of its image: the nearest pixels, with a warning, if it differs.

    Raises
    ------
    ValueError
        If it has another aspect: it was cut, or turned otherwise than the image.
    """
    if mask.shape == size:
        return mask
    (h, w), (height, width) = mask.shape, size
    if abs(h * width / (w * height) - 1) > ASPECT:
        raise ValueError(
            f"The mask {file} must have the aspect of its image {image}, which is {height} x "
            f"{width} pixels once its EXIF orientation is applied; the mask is {h} x {w}."
        )
    warn(f"The mask {file} of {h} x {w} pixels is resized to its image's {height} x {width}.")
    rows, columns = (np.arange(n) * m // n for n, m in ((height, h), (width, w)))
    return mask[rows][:, columns]


def nothing_anomalous(image: Path) -> np.ndarray:
    """Return an all-False mask of the image's size, without decoding its pixels."""
    return np.zeros(ImageFile(image).shape[:2], dtype=bool)
