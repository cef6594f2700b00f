"""Masks that stay in their files until they are asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from skmkd._images.image_files import ImageFile, opened


class LazyMasks(Sequence[np.ndarray]):
    """Masks of images, each read when it is asked for.

    An integer gives a mask, bool of shape (H, W), True = anomalous. A slice, an array of integers
    or of booleans gives those masks, still unread. The metrics take them as they are, and
    ``np.stack`` makes an array of masks of one size.

    Parameters
    ----------
    images : ndarray of shape (n,), object
        Path of each image.
    files : ndarray of shape (n,), object
        Path of its mask, in which anomalous pixels are not 0; None for a normal image.
    """

    def __init__(self, images: np.ndarray, files: np.ndarray) -> None:
        self._images = images
        self._files = files

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        images, files = self._images[index], self._files[index]
        if isinstance(index, Integral):
            return nothing_anomalous(images) if files is None else read_mask(files)
        return LazyMasks(images, files)


def nothing_anomalous(image: Path) -> np.ndarray:
    """Return a mask without anomaly, of the image's own size: no pixel is read for it."""
    return np.zeros(ImageFile(image).shape[:2], dtype=bool)


def read_mask(file: Path) -> np.ndarray:
    """Return as booleans (H, W) which pixels of a file are not 0, or not black."""
    with opened(os.fspath(file)) as image:
        mask = ImageOps.exif_transpose(image)
        if len(mask.getbands()) == 1:
            return np.asarray(mask) > 0
        return np.any(np.asarray(mask.convert("RGB")) > 0, axis=2)  # alpha does not count
