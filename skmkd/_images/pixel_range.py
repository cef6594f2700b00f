"""What pixel values mean: their kind of number, and the range that images use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import count
from typing import NamedTuple, Self

import numpy as np

FIXED = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0)}  # kinds of number whose range is their type's
OPAQUE = {"bool": 1.0, "uint8": 255.0, "uint16": 65535.0, "float": 1.0}  # alpha, by kind
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)
FAR = 10.0  # widths of the range beyond which pixels are clipped, or a whole image is refused
FAR_ALPHA = 0.01  # the same for images with alpha, which has no meaning outside of the range
BESIDE = 0.5  # of the range of most pixels at fit: images beyond are at another scale
LESS = 0.5  # of the least contrast at fit: below, they are, too
APART = 3.0  # times as far as others, with none between, are pixels that do not count at fit
MOST = (0.1, 0.9)  # quantiles, over the images at fit, of what most pixels are between
GAP = 0.5  # of the distance to most pixels that holds no other value, if an extreme is isolated
DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras
CLOSE = 1 / 8  # of the range of the bits in use, below which integers have their extremes
ROUNDED = 1e-6  # of the range: the largest change when pixels become float32
DIVISORS = (255.0, 65535.0)  # what floats are divided by, once too often
LEVELS = 16  # more than these has an image that was divided, or of which most values are known
SAMPLE = 2000  # values of an image, drawn at random, that show what most pixels are


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
    """Lowest and highest pixel of an image, and what most of its pixels are between."""

    low: float
    high: float
    usual_low: float
    usual_high: float
    isolated: float | None  # an extreme that is far from all other values
    stray: float | None = None  # one that is so far that it does not count for the range
    beside: float | None = None  # the value next to the isolated one

    def without_isolated(self) -> Extent:
        """Return what the extremes would be without the isolated one."""
        if self.isolated is None or self.beside is None:
            return self
        return self._replace(**{"low" if self.isolated == self.low else "high": self.beside})


class Reach(NamedTuple):
    """What pixels are compared with that may be too far from most others to count for the range."""

    low: float
    high: float
    width: float

    @classmethod
    def of(cls, extents: Sequence[Extent]) -> Self:
        """Return what most pixels of most images are between, so that a few images do not count."""
        low = float(np.quantile([each.usual_low for each in extents], MOST[0]))
        high = float(np.quantile([each.usual_high for each in extents], MOST[1]))
        return cls(low, high, high - low)

    def near(self, widths: float = FAR) -> tuple[float, float]:
        """Return the lowest and the highest value that are not further away."""
        return self.low - widths * self.width, self.high + widths * self.width

    def is_beyond(self, each: Extent) -> bool:
        """Return whether most pixels of an image are too far away: it is at another scale."""
        lowest, highest = self.near(APART * FAR)
        far = each.usual_high < lowest or highest < each.usual_low
        return far and self.width >= SMALLEST

    def extremes(self, image: np.ndarray) -> tuple[dict[int, float], dict[int, float]]:
        """Return the lowest values of an image, and the highest, by steps of their distance.

        Step -1 is what is near; each further step ends at three times the distance.
        """
        lowest, highest = map(np.float64, self.near())
        inside = (image >= lowest) & (image <= highest)
        if not inside.any():
            inside[...] = True
        lows, highs = {-1: float(image[inside].min())}, {-1: float(image[inside].max())}
        below, above = (image[far].astype(np.float64) for far in (image < lowest, image > highest))
        for values, end, found in ((below, self.low, lows), (above, self.high, highs)):
            widths = np.abs(values - end) / (FAR * self.width)
            steps = np.maximum(np.floor(np.log(widths) / np.log(APART)), 0)
            for step in np.unique(steps).astype(int).tolist():
                chosen = values[steps == step]
                found[step] = float(chosen.min() if found is lows else chosen.max())
        return lows, highs


@cache
def kind_of(dtype: np.dtype) -> str:
    """Return the kind of number of pixels, as in `PixelRange`."""
    return dtype.name if dtype.name in OPAQUE else "float"


def dtype_of(kind: str) -> np.dtype:
    """Return the type that holds pixels of a kind."""
    return np.dtype(np.float32 if kind == "float" else kind)


def extent(image: np.ndarray) -> Extent:
    """Return the extent of an image."""
    low, high = float(image.min()), float(image.max())
    values = sample(image)
    usual_low, usual_high = np.quantile(values, (0.02, 0.98)).tolist()
    found = Extent(low, high, usual_low, usual_high, None)
    for end, others in ((low, values[values > low]), (high, values[values < high])):
        if np.unique(others).size <= LEVELS:
            continue  # it may be a row of a few numbers
        first, third = np.quantile(others, (0.25, 0.75)).tolist()
        near = first if end == low else third
        if abs(end - near) > FAR * (third - first) > 0:
            beside = float(
                image.min(where=image > low, initial=high)
                if end == low
                else image.max(where=image < high, initial=low)
            )
            if abs(end - beside) > GAP * abs(end - near):
                return found._replace(isolated=end, beside=beside)
    return found


def quantiles(image: np.ndarray, shares: Sequence[float]) -> list[float]:
    """Return quantiles of a random sample of an image's values."""
    return np.quantile(sample(image), shares).tolist()


def sample(image: np.ndarray) -> np.ndarray:
    """Return a random sample of an image's values, as float64; the same for every call."""
    places = np.random.default_rng(0).integers(0, image.size, SAMPLE)
    return image[np.unravel_index(places, image.shape)].astype(np.float64)


def without_strays(
    extents: Sequence[Extent], read: Callable[[int], np.ndarray]
) -> Sequence[Extent]:
    """Return extents without pixels that are so far from all others that they do not count.

    Pixels count within ten widths of what most are between, and beyond as long as there are others
    at less than a third of the distance, as where bright spots fade into a dark ground.

    Parameters
    ----------
    extents : sequence of n Extent
        What images use.
    read : callable
        Returns the image of an index.
    """
    reach = Reach.of(extents)
    lowest, highest = reach.near()
    far = [i for i, each in enumerate(extents) if each.low < lowest or highest < each.high]
    if reach.width < SMALLEST or not far:
        return extents
    lows, highs = zip(*(reach.extremes(read(i)) for i in far), strict=True)
    ends = first_gap(lows), first_gap(highs)
    found = list(extents)
    for i, low, high in zip(far, lows, highs, strict=True):
        kept_low, kept_high = (
            steps[max(step for step in steps if step < end)]
            for steps, end in zip((low, high), ends, strict=True)
        )
        strays = [v for v in (extents[i].low, extents[i].high) if not kept_low <= v <= kept_high]
        if strays:
            found[i] = Extent(
                kept_low, kept_high, max(kept_low, extents[i].usual_low),
                min(kept_high, extents[i].usual_high), None, max(strays, key=abs),
            )  # fmt: skip
    return found


def first_gap(of_images: Sequence[Mapping[int, float]]) -> int:
    """Return the first step of distance at which no image has a pixel."""
    taken = set().union(*of_images)
    return next(step for step in count() if step not in taken)


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


def clipped(
    image: np.ndarray, extremes: tuple[float, float], known: PixelRange, has_alpha: bool
) -> np.ndarray:
    """Return an image of known extremes whose pixels are at most ten widths outside of the range.

    Raises
    ------
    ValueError
        If most pixels are further outside, or any are where there is alpha.
    """
    low, high = extremes
    reach = (FAR_ALPHA if has_alpha else FAR) * known.width
    if known.low - reach <= low and high <= known.high + reach:
        return image
    (median,) = quantiles(image, (0.5,))
    if has_alpha or not known.low - reach <= median <= known.high + reach:
        raise ValueError(
            f"must lie near the pixel range {known.low:g} to {known.high:g} learned at fit; got "
            f"values from {low:g} to {high:g}. Scale X as it was scaled for fit."
        )
    return image.clip(known.low - reach, known.high + reach)


def rounded(image: np.ndarray, known: PixelRange) -> np.ndarray:
    """Return an image in the type that holds pixels of its kind.

    Raises
    ------
    ValueError
        If float32 does not hold them.
    """
    found = image.astype(dtype_of(known.kind), copy=False)
    if not np.can_cast(image.dtype, found.dtype):
        error = float(np.abs(image - found).max())
        if error > ROUNDED * known.width:
            raise ValueError(
                f"must hold pixels that float32 tells apart; rounding changes them by {error:.2g}, "
                f"in a range of {known.width:g}. Subtract a constant from all images, then fit and "
                "export again."
            )
    return found


def drawable(image: np.ndarray, known: PixelRange) -> np.ndarray:
    """Return an image whose pixels are finite; those that are not get a value within the range."""
    if image.dtype.kind != "f":
        return image
    return np.nan_to_num(image, nan=known.low, posinf=known.high, neginf=known.low)


def seen_in(extents: Sequence[Extent]) -> tuple[float, float, float]:
    """Return what most pixels of all images are between, and the least contrast of an image."""
    return (
        min(each.usual_low for each in extents),
        max(each.usual_high for each in extents),
        min(each.usual_high - each.usual_low for each in extents),
    )


def plausible(image: np.ndarray, seen: tuple[float, float, float]) -> bool:
    """Return whether most pixels of an image may be at the scale of those that were seen."""
    return _is_like(sample(image), seen)


def divided(image: np.ndarray, seen: tuple[float, float, float]) -> bool:
    """Return whether an image is like those that were seen once it is multiplied by 255 or 65535.

    Dark images of few levels are not, whose noise looks like anything if it is magnified.
    """
    values = sample(image)
    several = np.unique(values).size > LEVELS
    return several and any(_is_like(factor * values, seen) for factor in DIVISORS)


def _is_like(values: np.ndarray, seen: tuple[float, float, float]) -> bool:
    lowest, highest, contrast = seen
    low, high = np.quantile(values, (0.02, 0.98)).tolist()
    reach = BESIDE * ((highest - lowest) or 1.0)
    inside = lowest - reach <= low and high <= highest + reach
    return inside and high - low >= LESS * contrast
