"""Regions of interest: the part of an image that is learned from, scored and drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skmkd._images.image_files import ImageFile, UnreadableImageError

JPEG, LOSSY_WEBP = b"\xff\xd8\xff", b"WEBPVP8 "  # how such files begin, the latter after 8 bytes
Box = tuple[int, int, int, int]  # top, left, bottom, right, in pixels; half-open
RoiLike = ArrayLike | Sequence[int] | str | os.PathLike[str] | Sequence[Any] | None
WANTED = "a rectangle (top, left, bottom, right), a mask (H, W) or the path of one"


@dataclass(frozen=True)
class Roi:
    """A rectangle of an image, and a mask of what counts within it.

    Parameters
    ----------
    box : tuple (top, left, bottom, right)
        The rectangle in pixels, half-open.
    mask : ndarray of shape (bottom - top, right - left), bool, or None
        True = inside. None means all of the rectangle.
    frame : tuple (H, W) or None
        Size that the image must have; None for any that holds the rectangle.
    """

    box: Box
    mask: np.ndarray | None = None
    frame: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the rectangle."""
        top, left, bottom, right = self.box
        return bottom - top, right - left

    def check(self, frame: Sequence[int]) -> None:
        """Check that the region is one of images of a size (H, W).

        Raises
        ------
        ValueError
            If it is not.
        """
        height, width = frame[:2]
        if self.frame is not None and self.frame != (height, width):
            raise ValueError(
                f"must have the size of the mask roi, {self.frame}; got {(height, width)}."
            )
        if self.box[2] > height or self.box[3] > width:
            raise ValueError(f"must hold the rectangle roi={self.box}; got {(height, width)}.")

    def rectangle(self, array: np.ndarray) -> np.ndarray:  # (H, W[, C]) -> (h, w[, C])
        """Return the rectangle of an image or a map, with what the mask leaves out."""
        top, left, bottom, right = self.box
        return array[top:bottom, left:right]

    def inside(self, array: np.ndarray) -> np.ndarray:  # (H, W) -> (h, w) or (n,)
        """Return what counts of a map: the rectangle, or the pixels of the mask."""
        return self.rectangle(array)[... if self.mask is None else self.mask]

    def cut(self, image: np.ndarray) -> np.ndarray:  # (H, W, C) -> (h, w, C)
        """Return the rectangle of an image; pixels outside the mask have the mean of those inside.

        What is outside has no influence, and its border is as weak as one colour makes it.
        """
        image = self.rectangle(image)
        if self.mask is None:
            return image
        mean = image.mean(axis=(0, 1), where=self.mask[..., None], dtype=np.float64)
        mean = mean.round() if image.dtype.kind in "biu" else mean
        return np.where(self.mask[..., None], image, mean.astype(image.dtype))

    def placed(self, map_: np.ndarray, frame: tuple[int, int]) -> np.ndarray:  # (h, w) -> (H, W)
        """Return the map of a whole image, 0 outside the region, from that of the rectangle."""
        if self.mask is not None:
            np.multiply(map_, self.mask, out=map_)
        if self.size == tuple(frame):
            return map_
        top, left, bottom, right = self.box
        whole = np.zeros(frame, dtype=map_.dtype)
        whole[top:bottom, left:right] = map_
        return whole


def as_roi(roi: Any, name: str = "roi") -> Roi:
    """Return the region that a rectangle, a mask or the path of a mask describes, or a region.

    Raises
    ------
    ValueError
        If it describes none, or an empty one.
    """
    if isinstance(roi, Roi):
        return roi
    if isinstance(roi, (str, os.PathLike)):
        try:
            return _of_mask(read_mask(Path(roi)), name)
        except UnreadableImageError as error:
            raise ValueError(f"{name} must be {WANTED}; {error}") from error
    try:
        array = np.asarray(roi)
    except ValueError:
        raise ValueError(f"{name} must be {WANTED}; got ragged sequences.") from None
    except RuntimeError as error:  # of a tensor that requires gradients
        raise ValueError(f"{name} must be {WANTED}; got {error}") from error
    if array.ndim == 2 and array.dtype.kind in "biuf":
        if np.isnan(array).any():
            raise ValueError(f"{name} must be a mask without NaN, 0 outside; got NaN.")
        return _of_mask(array != 0, name)
    if array.shape != (4,) or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be {WANTED}; got {_shortened(roi)}.")
    top, left, bottom, right = array.tolist()
    if not (0 <= top < bottom and 0 <= left < right):
        raise ValueError(
            f"{name} must be (top, left, bottom, right) with 0 <= top < bottom and "
            f"0 <= left < right; got {(top, left, bottom, right)}."
        )
    return Roi((top, left, bottom, right))


def _of_mask(mask: np.ndarray, name: str) -> Roi:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError(f"{name} must hold pixels that are not 0; got a mask without any.")
    top, bottom, left, right = (
        int(side) for side in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
    )
    inside = mask[top:bottom, left:right]
    return Roi((top, left, bottom, right), None if inside.all() else inside.copy(), mask.shape)


def _shortened(roi: Any) -> str:
    text = repr(roi)
    return text if len(text) <= 60 else f"{type(roi).__name__} of shape {np.shape(roi)}"


def as_rois(roi: Any, n: int) -> list[Roi]:
    """Return the region of each of n images: one for all, or one each.

    Several are a list, a column or an array of regions; a table of whole numbers with four columns
    is one of rectangles. Equal ones are kept once.

    Raises
    ------
    ValueError
        If there are not as many as images, or as in `as_roi`.
    """
    roi = roi.to_numpy() if hasattr(roi, "iloc") else roi
    if not _is_one_each(roi):
        return [as_roi(roi)] * n
    if len(roi) != n:
        raise ValueError(f"roi must be one region, or one for each of {n} images; got {len(roi)}.")
    items = list(roi)  # keeps them, so that none has the identity of another
    keys = [os.fspath(r) if isinstance(r, (str, os.PathLike)) else id(r) for r in items]
    found: dict[str | int, Roi] = {}
    for i, key in enumerate(keys):
        if key not in found:
            found[key] = as_roi(items[i], f"roi[{i}]")
    return [found[key] for key in keys]


def _is_one_each(roi: Any) -> bool:
    if isinstance(roi, (Roi, str, os.PathLike)):
        return False
    try:
        array = np.asarray(roi)
    except ValueError:  # of different shapes
        return True
    except RuntimeError:  # a tensor that requires gradients
        return False
    if array.ndim == 2 and array.shape[1] == 4 and array.dtype.kind in "iu":
        return True
    return array.ndim == 3 or (array.ndim > 0 and array.dtype.kind not in "biuf")


def read_mask(file: Path) -> np.ndarray:
    """Return a mask (H, W), bool: True where the file's pixels are not 0, black or transparent.

    JPEG and lossy WebP turn black to dark grey near edges: there, a pixel is True if a channel is
    above 127.
    """
    pixels = np.asarray(ImageFile(file))
    with open(file, "rb") as opened:
        start = opened.read(16)
    lossy = start.startswith(JPEG) or start[8:] == LOSSY_WEBP
    marked = np.greater(pixels, 127) if lossy else np.not_equal(pixels, 0)
    if marked.ndim == 2:
        return marked
    anything = np.logical_or.reduce(marked[..., :3], axis=2)
    return anything & marked[..., 3] if marked.shape[2] == 4 else anything
