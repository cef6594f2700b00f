"""Image files: read when they are needed, as plain arrays."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from skmkd._images import dicom, netpbm, pictures, tiff
from skmkd._images.contents import Contents, LazyImage
from skmkd._regular import state_of

MAX_PIXELS = 2**28  # of one image: a small file may declare any size
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)  # not the file's fault
CHANGED = "it was replaced or written to while it was read"
START = dicom.PREAMBLE + 4  # bytes that tell the format


class UnreadableImageError(ValueError):
    """A file is not an image that can be read."""


class ImageFile(LazyImage):
    """An image file that converts to an array; shape and dtype are read from its header.

    Grey images become (H, W), colours (H, W, 3), and with transparency (H, W, 4). Integers and
    floats keep their dtype and values; 1 bit becomes 0 and 255. Palettes, CMYK and YCbCr become
    RGB. The orientation that EXIF or TIFF states is applied. DICOM is rescaled to the units of
    its modality, as float32, and MONOCHROME1 turned round.

    Parameters
    ----------
    path : str or path-like
        The file: PNG, JPEG, BMP, WebP, TIFF, PGM, PPM or DICOM, whatever its suffix.
    max_pixels : int, default=2**28
        A file that claims more pixels is refused before memory is allocated for them.

    Raises
    ------
    UnreadableImageError
        On access to shape, dtype or pixels, if the file is missing, not an image, truncated,
        larger than `max_pixels`, of several images, or of a kind that has no plain array.
    """

    def __init__(self, path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> None:
        self.path = os.fspath(path)
        self.max_pixels = max_pixels

    def header(self) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype, as far as the file's header tells."""
        with opened(self.path, self.max_pixels) as contents:
            return contents.shape, contents.dtype

    def decode(self) -> np.ndarray:
        """Return the pixels."""
        with opened(self.path, self.max_pixels) as contents:
            return contents.read()


@contextmanager
def opened(path: str, max_pixels: int = MAX_PIXELS) -> Iterator[Contents]:
    """Open an image of at most `max_pixels`; all failures raise UnreadableImageError.

    That the file is another one in the end is a failure, too: some formats are read in steps.
    """
    before: tuple[int, ...] = ()
    try:
        before = signature(path)
        with of_its_format(path) as contents:
            height, width = contents.shape[:2]
            if height * width > max_pixels:
                raise ValueError(
                    f"it says that it has {width} x {height} pixels, and max_pixels is "
                    f"{max_pixels}: raise that if you trust the file, or cut the image up"
                )
            yield contents
        if is_changed(path, before):
            raise ValueError
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in SHORTAGES:
            raise
        why = CHANGED if before and is_changed(path, before) else reason(error)
        raise UnreadableImageError(f"{path} cannot be read as an image: {why}") from error


def signature(path: str) -> tuple[int, ...]:
    """Return what tells a file from others and earlier states of it; it must be a regular one."""
    state = state_of(path)
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, "It is a folder, not a file", path)
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def is_changed(path: str, before: tuple[int, ...]) -> bool:
    """Tell whether there is another file now, or another state of it."""
    try:
        return signature(path) != before
    except FileNotFoundError:  # after it was read
        return False


def reason(error: Exception) -> str:
    """Say what is wrong with a file; errors of other kinds speak of the decoder's insides."""
    words = " ".join(str(getattr(error, "strerror", None) or error).split())
    if isinstance(error, (OSError, ValueError)) and words:
        return words
    return f"it is broken ({words or type(error).__name__})"


def of_its_format(path: str) -> AbstractContextManager[Contents]:
    """Choose the reader of a file by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(START)
    if dicom.is_dicom(path, start):  # some begin as a TIFF does
        return dicom.open_dicom(path)
    if start.startswith(tiff.STARTS):
        return tiff.open_tiff(path)
    if netpbm.is_netpbm(start):
        return netpbm.open_netpbm(path)
    if pictures.is_picture(start):
        return pictures.open_picture(path, start)
    raise ValueError("it is no PNG, JPEG, BMP, WebP, TIFF, PGM, PPM or DICOM file")


def is_path_list(X: Any) -> bool:
    """Tell whether X is a list, an array or a column of paths."""
    return (
        (isinstance(X, (list, tuple)) or getattr(X, "ndim", None) == 1)
        and len(X) > 0
        and all(isinstance(item, (str, os.PathLike)) for item in X)
    )
