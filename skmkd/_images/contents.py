"""What an image holds that is not decoded yet, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

TURNS: dict[int, tuple[bool, slice, slice]] = {  # EXIF orientation: transpose? rows, columns
    2: (False, slice(None), slice(None, None, -1)),
    3: (False, slice(None, None, -1), slice(None, None, -1)),
    4: (False, slice(None, None, -1), slice(None)),
    5: (True, slice(None), slice(None)),
    6: (True, slice(None), slice(None, None, -1)),
    7: (True, slice(None, None, -1), slice(None, None, -1)),
    8: (True, slice(None, None, -1), slice(None)),
}
SEVERAL = (
    "it holds {count} images, and one file must be one image: split it, or read it with {reader} "
    "and give the images as an array"
)


@dataclass(frozen=True)
class Contents:
    """An open file: its header, and a function that decodes its pixels.

    Parameters
    ----------
    shape : tuple of int
        (H, W) or (H, W, C) of the upright image.
    dtype : dtype
        Type of its pixels.
    read : callable
        Returns the pixels as an array, while the file is open.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class LazyImage(ABC):
    """An image that is decoded whenever it converts to an array; shape and dtype come before."""

    @abstractmethod
    def header(self) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype, as far as they are known before the image is decoded."""

    @abstractmethod
    def decode(self) -> np.ndarray:
        """Return the pixels."""

    @cached_property
    def _kind(self) -> tuple[tuple[int, ...], np.dtype]:
        return self.header()

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, C)."""
        return self._kind[0]

    @property
    def ndim(self) -> int:
        """2 for grey, 3 for colours."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Type of the pixels."""
        return self._kind[1]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.decode()
        self._kind = array.shape, array.dtype  # EXIF may be at the end of a file
        return array if dtype is None else array.astype(dtype)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image (H, W) or (H, W, C) as its EXIF or TIFF orientation states."""
    if orientation not in TURNS:
        return pixels
    transpose, rows, columns = TURNS[orientation]
    return (pixels.swapaxes(0, 1) if transpose else pixels)[rows, columns]


def upright_shape(shape: tuple[int, ...], orientation: int) -> tuple[int, ...]:
    """Return the shape of an image once it is upright."""
    turned = orientation in TURNS and TURNS[orientation][0]
    return (shape[1], shape[0], *shape[2:]) if turned else shape


def with_grey_as_colour(pixels: np.ndarray) -> np.ndarray:
    """Turn grey and alpha (H, W, 2) into (H, W, 4)."""
    return pixels[..., [0, 0, 0, 1]]
