"""What pixel values mean: their kind of number, and the range that images use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

FIXED = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0)}  # kinds of number whose range is their type's
OPAQUE = {"bool": 1.0, "uint8": 255.0, "uint16": 65535.0, "float": 1.0}  # alpha, by kind
LARGEST = float(np.finfo(np.float32).max)
FAR = 10.0  # widths of the range beyond which pixels are clipped, or a whole image is refused
FAR_ALPHA = 0.01  # the same for images with alpha, which has no meaning outside of the range
BESIDE = 0.5  # of the difference of the extremes at fit: images beyond are at another scale
LESS = 0.5  # of the least contrast at fit: below, they are, too
DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras
CLOSE = 1 / 8  # of the range of the bits in use, below which integers have their extremes
SAMPLE = 2000  # pixels of an image, evenly spaced, that show what most pixels are


class PixelRange(NamedTuple):
    """What the lowest and the highest pixel value mean, and for which kind of number."""

    low: float
    high: float
    kind: str  # "bool", "uint8", "uint16" or "float"

    @property
    def width(self) -> float:
        """Difference of the two, or 1 if there is none."""
        return (self.high - self.low) or 1.0


class Extent(NamedTuple):
    """Lowest and highest pixel of an image, and those of most of its pixels."""

    low: float
    high: float
    usual_low: float
    usual_high: float


@cache
def kind_of(dtype: np.dtype) -> str:
    """Return the kind of number of pixels, as in `PixelRange`."""
    return dtype.name if dtype.name in OPAQUE else "float"


def extent(image: np.ndarray) -> Extent:
    """Return the extent of an image."""
    pixels = image.reshape(-1)
    some = pixels[:: max(1, pixels.size // SAMPLE)].astype(np.float64)
    usual = np.quantile(some, (0.02, 0.98))
    return Extent(float(image.min()), float(image.max()), *map(float, usual))


def learned_range(extents: Sequence[Extent], kind: str, has_alpha: bool) -> PixelRange:
    """Return the range that images use.

    Floats from 0 to 1 have that range; others have their extremes. Integers of 16 bits have the
    bits that they use, as cameras write 10 or 12 of them, or their extremes if these are close:
    thermal cameras count from an offset. With alpha, the range is that of an opaque pixel.

    Raises
    ------
    ValueError
        If floats with alpha are outside of 0 to 1.
    """
    low = min(each.low for each in extents)
    high = max(each.high for each in extents)
    if kind == "float" and has_alpha and not 0 <= low <= high <= 1:
        raise ValueError(
            "X with an alpha channel must be uint8, uint16, or float from 0 to 1; got floats "
            f"from {low:g} to {high:g}."
        )
    if has_alpha or (kind == "float" and 0 <= low <= high <= 1):
        return PixelRange(0.0, OPAQUE[kind], kind)
    if kind == "uint16":
        top = next(2.0**bits - 1 for bits in DEPTHS if high < 2**bits)
        if high - low >= CLOSE * top:
            return PixelRange(0.0, top, kind)
    return PixelRange(low, high, kind)


def far_from_most(extents: Sequence[Extent]) -> tuple[int, float] | None:
    """Return an image with a pixel far from what most pixels are, and that pixel's value.

    It may mark missing pixels, and stretches the range.
    """
    low = float(np.median([each.usual_low for each in extents]))
    high = float(np.median([each.usual_high for each in extents]))
    reach = FAR * (high - low)
    if reach == 0:
        return None
    lowest = min(range(len(extents)), key=lambda i: extents[i].low)
    highest = max(range(len(extents)), key=lambda i: extents[i].high)
    if extents[lowest].low < low - reach:
        return lowest, extents[lowest].low
    if extents[highest].high > high + reach:
        return highest, extents[highest].high
    return None


def clipped(image: np.ndarray, known: PixelRange, has_alpha: bool) -> np.ndarray:
    """Return an image whose pixels are at most ten widths outside of the range.

    Raises
    ------
    ValueError
        If most pixels are further outside, or any are where there is alpha.
    """
    low, high = float(image.min()), float(image.max())
    reach = (FAR_ALPHA if has_alpha else FAR) * known.width
    if known.low - reach <= low and high <= known.high + reach:
        return image
    if has_alpha or not known.low - reach <= np.median(image) <= known.high + reach:
        raise ValueError(
            f"must lie near the pixel range {known.low:g} to {known.high:g} learned at fit; got "
            f"values from {low:g} to {high:g}. Scale X as it was scaled for fit."
        )
    return image.clip(known.low - reach, known.high + reach)


def seen_in(extents: Sequence[Extent]) -> tuple[float, float, float]:
    """Return the lowest and the highest pixel of all images, and the least contrast of one."""
    return (
        min(each.low for each in extents),
        max(each.high for each in extents),
        min(each.high - each.low for each in extents),
    )


def plausible(image: np.ndarray, seen: tuple[float, float, float]) -> bool:
    """Return whether an image may be at the scale of those that were seen, by its extremes."""
    lowest, highest, contrast = seen
    low, high = float(image.min()), float(image.max())
    reach = BESIDE * ((highest - lowest) or 1.0)
    inside = lowest - reach <= low and high <= highest + reach
    return inside and high - low >= LESS * contrast
