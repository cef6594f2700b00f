"""PNG, JPEG, BMP and WebP files, by Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from skmkd._images.contents import (
    SEVERAL,
    Contents,
    upright,
    upright_shape,
    with_grey_as_colour,
)

# Opened without Image.open, whose limit on pixels is a global one
READERS: dict[bytes, Callable[..., Image.Image]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": jpeg_factory,
    b"BM": BmpImageFile,
    b"RIFF": WebPImageFile,
}
DEEP = {"RGB;16B": 3, "RGBA;16B": 4, "LA;16B": 4}  # raw modes of PNG, and channels that they give


def is_picture(start: bytes) -> bool:
    """Tell by its first bytes whether a file is one of these."""
    return start.startswith(tuple(READERS))


@contextmanager
def open_picture(path: str, start: bytes) -> Iterator[Contents]:
    """Open a file of which the first bytes are known."""
    reader = next(READERS[magic] for magic in READERS if start.startswith(magic))
    with reader(path) as image:
        if (count := frames(image)) > 1:
            raise ValueError(SEVERAL.format(count=count, reader="PIL.ImageSequence"))
        height_width, orientation = image.size[::-1], orientation_of(image)
        if isinstance(image, PngImageFile) and raw_mode(image) in DEEP:
            channels = 4 if "transparency" in image.info else DEEP[raw_mode(image)]
            dtype, read = np.dtype(np.uint16), partial(deep_pixels, image, path)
        else:
            mode, dtype = plain_mode(image)
            channels = len(Image.new(mode, (1, 1)).getbands())
            read = partial(plain_pixels, image)
        shape = height_width if channels == 1 else (*height_width, channels)
        yield Contents(upright_shape(shape, orientation), dtype, read)


def frames(image: Image.Image) -> int:
    """Count the images of a file, without the previews that cameras add to a JPEG."""
    entries = (getattr(image, "mpinfo", None) or {}).get(0xB002, [])
    kinds = [entry["Attribute"]["MPType"] for entry in entries]
    return getattr(image, "n_frames", 1) - sum("Thumbnail" in kind for kind in kinds)


def orientation_of(image: Image.Image) -> int:
    """Return the orientation that EXIF states, as far as the file has been read."""
    exif = Image.Exif()  # the image would keep its own, which more of the file may change
    exif.load(image.info.get("exif", b""))
    return exif.get(ExifTags.Base.Orientation, 1)


def raw_mode(image: PngImageFile) -> Any:
    """Return how a PNG stores its pixels."""
    return image.tile[0][3] if image.tile else None


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


def plain_pixels(image: Image.Image, in_place: bool = True) -> np.ndarray:
    """Decode an image of the kinds that Pillow has modes for, and turn it upright.

    The image itself is turned if that may be done in place, which saves a copy.
    """
    mode, dtype = plain_mode(image)
    if in_place:
        ImageOps.exif_transpose(image, in_place=True)
    else:
        image = ImageOps.exif_transpose(image)
    converted = image if image.mode == mode else image.convert(mode)
    return np.asarray(converted).astype(dtype, copy=False)


def deep_pixels(image: PngImageFile, path: str) -> np.ndarray:
    """Decode a PNG of 16 bits a channel, of which Pillow's modes hold one byte at a time."""
    raw = raw_mode(image)
    if raw == "LA;16B":
        pixels = with_grey_as_colour(decoded(image, "RGBA").view(">u2")).astype(np.uint16)
    else:
        with PngImageFile(path) as again:
            low = decoded(again, raw.replace("16B", "16L"))  # takes the other byte
        pixels = np.left_shift(decoded(image, raw), 8, dtype=np.uint16) | low
    if (clear := image.info.get("transparency")) is not None:
        alpha = np.where((pixels == clear).all(axis=-1), 0, 65535).astype(np.uint16)
        pixels = np.dstack([pixels, alpha])
    return upright(pixels, orientation_of(image))


def decoded(image: PngImageFile, raw: str) -> np.ndarray:
    """Decode a PNG as if its pixels were stored in another raw mode of as many bytes."""
    codec, extents, offset, _ = image.tile[0]
    tile: Any = (codec, extents, offset, raw)
    image.tile = [tile]
    return np.asarray(image)
