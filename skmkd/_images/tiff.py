"""TIFF files, by tifffile, and by Pillow where that needs imagecodecs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, TIFF, TiffFile, TiffFrame, TiffPage

from skmkd._images.contents import (
    SEVERAL,
    Contents,
    upright,
    upright_shape,
    with_grey_as_colour,
)
from skmkd._images.pictures import plain_pixels

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
ORIENTATION = 274
COPY, TRANSPARENCY = 1, 4  # bits of NewSubfileType: pages that are no images of their own
GREY = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK)
WHOLE = (1, 8, 16, 32, 64)  # bits of a number that tifffile reads without imagecodecs
PACKED = (12, COMPRESSION.NONE)  # the only other bits of a large number that Pillow knows
ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
PILLOW = (  # compressions that Pillow decodes
    COMPRESSION.NONE, COMPRESSION.CCITTRLE, COMPRESSION.CCITT_T4, COMPRESSION.CCITT_T6,
    COMPRESSION.LZW, COMPRESSION.JPEG, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE,
    COMPRESSION.PACKBITS,
)  # fmt: skip


@contextmanager
def open_tiff(path: str) -> Iterator[Contents]:
    """Open a file that holds one image, beside reduced copies of it."""
    with TiffFile(path) as tiff:
        page = only_page(tiff)
        check_complete(page)
        channels, dtype = kind(page)
        orientation = page.tags.valueof(ORIENTATION, 1)
        size = (page.imagelength, page.imagewidth)
        shape = size if channels == 1 else (*size, channels)
        plain = page.compression == COMPRESSION.NONE
        if is_right_in_pillow(page) and not (plain and is_decodable(page)):
            read = partial(decoded_by_pillow, path, page)  # faster than tifffile alone
        elif is_decodable(page):
            read = partial(decoded, page)
        else:
            raise ValueError(
                f"its pixels of {page.bitspersample} bits with the compression "
                f"{name(page.compression)} "
                + (
                    "are of a kind that is not read"
                    if has_imagecodecs()
                    else "need imagecodecs, which `pip install skmkd[tiff]` installs"
                )
            )
        yield Contents(upright_shape(shape, orientation), dtype, read)


def only_page(tiff: TiffFile) -> TiffPage:
    """Return the page of the only image; raise ValueError if there are several."""
    if not tiff.series:
        raise ValueError("it holds no image")
    series = tiff.series[0]
    copies = {page.offset for level in series.levels for page in level.pages if page is not None}
    others = [page for page in tiff.pages if page.offset not in copies and is_image(page)]
    page = series.keyframe
    count = math.prod(series.shape) // math.prod(page.shape) + len(others)
    if page.imagedepth > 1:
        count *= page.imagedepth
    if count > 1:
        raise ValueError(SEVERAL.format(count=count, reader="tifffile.imread"))
    if not is_image(page) and page.subifds:
        raise ValueError("its first page is a preview, as in raw files of cameras: develop it")
    return page


def is_image(page: TiffPage | TiffFrame) -> bool:
    """Tell an image from a reduced copy or a mask of another page."""
    return not getattr(page, "subfiletype", 0) & (COPY | TRANSPARENCY)


def kind(page: TiffPage) -> tuple[int, np.dtype]:
    """Return channels and dtype of the array that a page becomes."""
    photometric, samples, extras = page.photometric, page.samplesperpixel, page.extrasamples
    alpha = len(extras) == 1 and extras[0] in ALPHA
    byte = page.dtype == np.uint8 and page.bitspersample == 8
    if page.dtype is not None and (
        page.dtype.kind in "uif" or (page.dtype == bool and samples == 1)
    ):
        dtype = np.dtype(np.uint8) if page.dtype == bool else page.dtype.newbyteorder("=")
        if samples == 1 and photometric in (*GREY, PHOTOMETRIC.RGB):
            return 1, dtype
        if samples == 3 and photometric in (*GREY, PHOTOMETRIC.RGB):
            return 3, dtype
        if photometric == PHOTOMETRIC.RGB and samples == 4 and (alpha or not extras):
            return 4, dtype
        if photometric in GREY and samples == 2 and alpha:
            return 4, dtype
    if photometric == PHOTOMETRIC.PALETTE and samples == 1 and page.dtype in (np.uint8, np.uint16):
        return 3, np.dtype(np.uint8)
    if photometric == PHOTOMETRIC.SEPARATED and samples == 4 and byte:
        return 3, np.dtype(np.uint8)
    if photometric == PHOTOMETRIC.YCBCR and samples == 3 and byte:
        return 3, np.dtype(np.uint8)
    raise ValueError(
        f"its pixels are {name(photometric)} of {samples} channel(s)"
        f"{f', {len(extras)} of no stated meaning' if extras and not alpha else ''}, "
        f"{page.dtype or f'{page.bitspersample} bits'}; only grey, palette, RGB, RGBA and 8-bit "
        "CMYK and YCbCr images of real numbers are read"
    )


def is_decodable(page: TiffPage) -> bool:
    """Tell whether tifffile, with the packages that are installed, decodes a page."""
    return (
        page.photometric != PHOTOMETRIC.SEPARATED  # Pillow makes it RGB
        and (page.photometric != PHOTOMETRIC.YCBCR or page.compression == COMPRESSION.JPEG)
        and page.compression in TIFF.DECOMPRESSORS
        and page.predictor in TIFF.UNPREDICTORS
        and (page.bitspersample in WHOLE or is_packed_right(page))
    )


def is_packed_right(page: TiffPage) -> bool:
    """Tell whether tifffile decodes numbers of 9 to 15 bits, as of little-endian files alone."""
    return page.bitspersample > 8 and page.parent.byteorder == "<" and has_imagecodecs()


def has_imagecodecs() -> bool:
    """Tell whether tifffile has found imagecodecs."""
    return COMPRESSION.LZW in TIFF.DECOMPRESSORS


def is_right_in_pillow(page: TiffPage) -> bool:
    """Tell whether Pillow decodes a page as tifffile would; 2 and 4 bits are spread over 8."""
    if page.index != 0 or page.parent.is_bigtiff or page.compression not in PILLOW:
        return False
    limit = Image.MAX_IMAGE_PIXELS  # beyond it Pillow warns or raises
    if limit is not None and page.imagelength * page.imagewidth > limit:
        return False
    if page.planarconfig != 1 or page.fillorder != 1:
        return False
    if page.photometric == PHOTOMETRIC.YCBCR:
        return page.compression == COMPRESSION.JPEG
    if page.samplesperpixel == 1:
        if page.dtype in (bool, np.uint8):
            return page.bitspersample in (1, 2, 4, 8)
        return (
            page.dtype in (np.uint16, np.int32, np.float32)
            and page.photometric == PHOTOMETRIC.MINISBLACK
            and page.parent.byteorder == "<"
            and (page.bitspersample in WHOLE or (page.bitspersample, page.compression) == PACKED)
        )
    return (
        page.photometric not in GREY
        and page.bitspersample == 8
        and EXTRASAMPLE.ASSOCALPHA not in page.extrasamples
    )


def decoded(page: TiffPage) -> np.ndarray:
    """Decode a page: channels last, no palette, upright."""
    pixels = page.asarray(maxworkers=1)
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        pixels = np.moveaxis(pixels, 0, -1)
    if page.photometric == PHOTOMETRIC.PALETTE:
        pixels = (np.asarray(page.colormap) >> 8).astype(np.uint8).T[pixels]
    if pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels = with_grey_as_colour(pixels)
    if pixels.dtype == bool:
        pixels = np.multiply(pixels, 255, dtype=np.uint8)
    if EXTRASAMPLE.ASSOCALPHA in page.extrasamples:
        pixels = with_straight_alpha(pixels)
    pixels = upright(pixels, page.tags.valueof(ORIENTATION, 1))
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def with_straight_alpha(pixels: np.ndarray) -> np.ndarray:
    """Divide colours (H, W, 4) by the alpha that they are multiplied by."""
    opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1
    alpha = pixels[..., 3:].astype(np.float64)
    shares = np.divide(opaque, alpha, out=np.zeros_like(alpha), where=alpha > 0)
    colours = np.minimum(pixels[..., :3] * shares, opaque)
    colours = colours.round() if pixels.dtype.kind in "ui" else colours
    return np.concatenate([colours.astype(pixels.dtype), pixels[..., 3:]], axis=2)


def check_complete(page: TiffPage) -> None:
    """Raise ValueError if strips or tiles are missing, which tifffile fills or leaves random."""
    end, parts = page.parent.filehandle.size, (page.dataoffsets, page.databytecounts)
    if page.is_contiguous:
        complete = page.dataoffsets[0] + page.nbytes <= end
    else:
        complete = min(map(len, parts)) >= math.prod(page.chunked) and all(
            count and offset + count <= end for offset, count in zip(*parts, strict=False)
        )
    if not complete:
        raise ValueError("it is truncated: a part of its pixels is missing")


def decoded_by_pillow(path: str, page: TiffPage) -> np.ndarray:
    """Decode the first page with Pillow, with the numbers that tifffile would give."""
    with TiffImageFile(path) as image:
        pixels = plain_pixels(image)
    return ~pixels if page.photometric == PHOTOMETRIC.MINISWHITE else pixels


def name(code: int) -> str:
    """Return the name of a value of a TIFF tag."""
    return getattr(code, "name", str(code))
