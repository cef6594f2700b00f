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
STRIP_VALUES = 2**20  # converted at once, so that copies stay small and in the cache
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
        if isinstance(image, PngImageFile) and raw_mode(image) in DEEP:
            channels = 4 if "transparency" in image.info else DEEP[raw_mode(image)]
            shape: tuple[int, ...] = (*image.size[::-1], channels)
            dtype, read = np.dtype(np.uint16), partial(deep_pixels, image, path)
        else:
            mode, dtype = plain_mode(image)
            shape, read = shape_as(mode, image), partial(plain_pixels, image)
        yield Contents(upright_shape(shape, orientation_of(image)), dtype, read)


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
    return numbers(image, mode, dtype)


def shape_as(mode: str, image: Image.Image) -> tuple[int, ...]:
    """Return the shape of an image's pixels in a mode: (H, W) or (H, W, C)."""
    channels = Image.getmodebands(mode)
    return image.size[::-1] if channels == 1 else (*image.size[::-1], channels)


def numbers(image: Image.Image, mode: str, dtype: Any) -> np.ndarray:
    """Return the pixels of an image in a mode."""
    pixels = np.empty(shape_as(mode, image), dtype)
    for rows, strip in strips(image, mode):
        pixels[rows] = strip
    return pixels


def strips(image: Image.Image, mode: str) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of an image and their pixels in a mode; Pillow converts by two copies or more."""
    width, height = image.size
    step = max(1, STRIP_VALUES // (width * Image.getmodebands(mode)))
    for top in range(0, height, step):
        box, strip = (0, top, width, min(top + step, height)), image
        if step < height:
            # cuts the strip out, as crop would, which has a limit on pixels that is a global one
            strip = image.resize((width, box[3] - top), Image.Resampling.NEAREST, box=box)
        converted = strip if strip.mode == mode else strip.convert(mode)
        yield slice(top, top + step), np.asarray(converted)


def deep_pixels(image: PngImageFile, path: str) -> np.ndarray:
    """Decode a PNG of 16 bits a channel, of which Pillow's modes hold one byte at a time."""
    raw = raw_mode(image)
    if raw == "LA;16B":
        grey_and_alpha = np.asarray(as_stored(image, "RGBA")).view(">u2")
        pixels = with_grey_as_colour(grey_and_alpha).astype(np.uint16)
    else:
        pixels = low_bytes(path, raw)
        for rows, high in strips(as_stored(image, raw), image.mode):
            pixels[rows] |= np.left_shift(high, 8, dtype=np.uint16)
    if (clear := image.info.get("transparency")) is not None:
        alpha = np.where((pixels == clear).all(axis=-1), 0, 65535).astype(np.uint16)
        pixels = np.dstack([pixels, alpha])
    return upright(pixels, orientation_of(image))


def low_bytes(path: str, raw: str) -> np.ndarray:
    """Decode the lower byte of each number of a PNG in such a raw mode, as uint16."""
    with PngImageFile(path) as image:
        return numbers(as_stored(image, raw.replace("16B", "16L")), image.mode, np.uint16)


def as_stored(image: PngImageFile, raw: str) -> PngImageFile:
    """Return a PNG to be decoded as if its pixels were stored in another raw mode of their size."""
    codec, extents, offset, _ = image.tile[0]
    tile: Any = (codec, extents, offset, raw)
    image.tile = [tile]
    return image
