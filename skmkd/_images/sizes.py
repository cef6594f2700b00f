"""The size at which networks see images, or tiles of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, prod, sqrt
from statistics import median
from typing import Any

import numpy as np

from skmkd._images.tiles import Grid, Size
from skmkd._warnings import warn

SIDE = 128  # of an image, if nothing else is said
TILE_SIDE = 256  # of a tile, at most
LONG = 3.0  # times as long as wide is an image whose aspect is kept
MULTIPLE, LEAST = 16, 32  # of such an image's sides, and of any, in pixels
FACTOR = 4.0  # by which images are shrunk at most without a warning
SEEN = 4  # pixels of the resized image that a defect must have to be seen


def height_and_width(value: Any, name: str) -> Size:
    """Return height and width for a side or (height, width), in pixels.

    Raises
    ------
    ValueError
        If it is neither.
    """
    sides = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(sides) != 2 or not all(isinstance(s, (int, np.integer)) and s > 0 for s in sides):
        raise ValueError(f"{name} must be a side or (height, width) in pixels; got {value!r}.")
    return int(sides[0]), int(sides[1])


def network_size(image_size: Any, grids: Sequence[Grid]) -> Size:
    """Return the size that images, or tiles, are resized to.

    If it is "auto", tiles keep their size, up to as many pixels as 256 x 256, and images that are
    not cut have as many pixels as 128 x 128. A warning tells if that is less than a quarter of
    theirs on a side.
    """
    if image_size != "auto":
        return height_and_width(image_size, "image_size")
    cut = sorted(grids, key=lambda each: prod(each.tile))[len(grids) // 2]  # in the middle
    height, width = cut.tile
    whole = all(each.is_whole for each in grids)
    if whole:
        logarithms = [log(each.size[0] / each.size[1]) for each in grids]
        size = whole_size(exp(median(logarithms)))
    else:
        scale = min(1.0, TILE_SIDE / sqrt(height * width))
        size = max(LEAST, round(scale * height)), max(LEAST, round(scale * width))
    shrunk = max(height / size[0], width / size[1])
    if shrunk > FACTOR:
        what, remedy = "Tiles", "a smaller tile_size"
        if whole:
            what, remedy = "Images", "tile_size to cut images up"
        warn(
            f"{what} of {height} x {width} pixels are shrunk to {size[0]} x {size[1]}, and defects "
            f"of less than about {round(SEEN * shrunk)} pixels will not be seen. Set {remedy}, or "
            "image_size to silence this."
        )
    return size


def whole_size(aspect: float) -> Size:
    """Return a square, or, for images at least three times as long as wide, a rectangle.

    Both have as many pixels. `aspect` is the height in widths.
    """
    if max(aspect, 1 / aspect) < LONG:
        return SIDE, SIDE
    exact = SIDE * min(aspect, 1 / aspect) ** 0.5
    short = max(LEAST, MULTIPLE * round(exact / MULTIPLE))
    long = MULTIPLE * round(SIDE**2 / short / MULTIPLE)
    return (short, long) if aspect < 1 else (long, short)
