"""Image files: read when they are needed, and converted to a few plain kinds of array."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from skmkd._warnings import warn

MAX_PIXELS = 2**26  # of one image: a small file may declare any size
READERS = (PngImageFile, JpegImageFile, TiffImageFile, BmpImageFile, WebPImageFile)
FORMATS = tuple(reader.format for reader in READERS)
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)  # not the file's fault
TURNED = (5, 6, 7, 8)  # EXIF orientations by which height and width change places


class UnreadableImageError(ValueError):
    """A file is not an image that can be read."""


class ImageFile:
    """An image file that converts to an array; shape and dtype are read from its header.

    Grey images of 8 bits become (H, W) uint8, of 16 bits uint16; 1 bit becomes 0 and 255. With
    transparency of any kind an image becomes (H, W, 4) uint8, and all other colours (palettes,
    CMYK) (H, W, 3). Other integers and floats stay as they are. The orientation that
    EXIF states is applied. Of several frames, the first is read.

    Parameters
    ----------
    path : str or path-like
        The file.

    Raises
    ------
    UnreadableImageError
        On access to shape, dtype or pixels, if the file is missing, not an image, truncated, or
        larger than `MAX_PIXELS`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    @cached_property
    def _kind(self) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype, as far as the file's header tells."""
        with opened(self.path) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):  # newer Pillow has turned its size already
                width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
            if Image.Image.getexif(image).get(ExifTags.Base.Orientation) in TURNED:
                width, height = height, width
            mode, dtype = plain_mode(image)
            bands = len(Image.new(mode, (1, 1)).getbands())
            return (height, width) if bands == 1 else (height, width, bands), dtype

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
        with opened(self.path) as image:
            mode, plain = plain_mode(image)
            upright = ImageOps.exif_transpose(image)
            pixels = np.asarray(upright if upright.mode == mode else upright.convert(mode))
        array = pixels.astype(plain, copy=False)
        self._kind = array.shape, array.dtype  # EXIF may be at the end of a file
        return array if dtype is None else array.astype(dtype)


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """Open an image of at most `MAX_PIXELS`; all failures raise UnreadableImageError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"it must have at most {MAX_PIXELS} pixels, and says that it has "
                    f"{image.width} x {image.height}"
                )
            yield image
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in SHORTAGES:
            raise
        raise UnreadableImageError(f"{path} cannot be read as an image: {error}") from error


def plain_mode(image: Image.Image) -> tuple[str, np.dtype]:
    """Return the Pillow mode to convert an image to, and the dtype of its pixels."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        return mode, np.dtype(np.uint16)
    if mode in ("I", "F"):
        return mode, np.dtype(np.int32 if mode == "I" else np.float32)
    if image.has_transparency_data:
        return "RGBA", np.dtype(np.uint8)
    return ("L" if mode in ("1", "L") else "RGB"), np.dtype(np.uint8)


def is_path_list(X: Any) -> bool:
    """Tell whether X is a list, an array or a column of paths."""
    return (
        (isinstance(X, (list, tuple)) or getattr(X, "ndim", None) == 1)
        and len(X) > 0
        and all(isinstance(item, (str, os.PathLike)) for item in X)
    )


def readable(X: Any) -> Any:
    """Read all files of X and leave out those that cannot be read, with a warning for each."""
    if not is_path_list(X):
        return X
    kept = []
    for path in X:
        try:
            np.asarray(ImageFile(path))
        except UnreadableImageError as error:
            warn(f"{error}. It is left out.")
        else:
            kept.append(path)
    if not kept:
        raise ValueError(f"X must hold files that can be read; got {len(X)}, and none can.")
    return kept
