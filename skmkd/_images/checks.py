"""Input validation: X becomes a lazy sequence of checked images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from skmkd._images.images import Broken, Images
from skmkd._images.inputs import as_images, header, list_shape
from skmkd._images.pixel_range import (
    FIXED,
    PixelRange,
    extent,
    far_from_most,
    learned_range,
    seen_in,
)
from skmkd._warnings import warn


def check_images(estimator: BaseEstimator, X: Any, *, reset: bool) -> Images:
    """Check X, and learn from it (``reset=True``) or compare it with what was learned.

    Sets ``image_shape_``, ``pixel_range_`` and, where images have one size, ``n_features_in_``
    on the estimator when ``reset`` is true.

    Images that cannot be used are errors, unless the estimator's ``on_error`` is "skip": they are
    left out of a fit, and replaced later, with a warning each.

    Raises
    ------
    ValueError
        If X is empty, ragged, not numeric, not finite, of another size, channel count or
        pixel range than at fit, or holds a single image at fit.
    """
    images = as_images(estimator, X, reset)
    skip = estimator.on_error == "skip"
    if reset:
        images.kind = common_kind(images, tolerant=skip)
        if skip:
            images = images.usable()
        estimator.image_shape_ = images.shape
        if None not in images.shape:
            estimator.n_features_in_ = prod(images.shape)
        _learn_range(images, estimator.pixel_range)
        estimator.pixel_range_ = images.pixel_range
        estimator._seen_pixels = images.seen
        return images
    (height, width, _), fitted = images.shape, estimator.image_shape_
    if None not in (height, fitted[0]) and (height, width) != fitted[:2]:
        raise ValueError(
            f"X must hold images of shape (H, W, C) = {fitted}, as at fit; got {images.shape}."
        )
    known = estimator.pixel_range_
    checked = Images(images.items, (height, width, fitted[2]), _blank(estimator) if skip else None)
    checked.kind, checked.pixel_range = known.kind, known
    checked.seen = estimator._seen_pixels
    return checked


def image_list(items: np.ndarray | Sequence[ArrayLike]) -> Images:
    """Check images that belong to no estimator; arrays may differ in size.

    Raises
    ------
    ValueError
        If there is none, or they differ in kind of number, or are not finite.
    """
    if len(items) == 0:
        raise ValueError("X must hold at least one image; got none.")
    images = Images(items, list_shape(list(items)))
    images.kind = common_kind(images, tolerant=False)
    _learn_range(images, "auto")
    return images


def common_kind(images: Images, tolerant: bool) -> str:
    """Return the kind of number of all images, or of most.

    Raises
    ------
    ValueError
        If they differ and that is not tolerated.
    """
    if images.of_one_size:
        return header(images.items[0], 0)[1]
    kinds = {
        i: header(item, i)[1] for i, item in enumerate(images.items) if not isinstance(item, Broken)
    }
    found = Counter(kinds.values())
    if len(found) > 1 and not tolerant:
        first, *_ = kinds
        other = next(i for i, kind in kinds.items() if kind != kinds[first])
        raise ValueError(
            f"The images of X must all be of one kind; {images.name(first)} is {kinds[first]}, "
            f"{images.name(other)} {kinds[other]}."
        )
    return found.most_common(1)[0][0] if found else "uint8"


def _learn_range(images: Images, given: Any) -> None:
    """Set the range of pixels: as given, by the type of number, or as the images use it."""
    kind, has_alpha = str(images.kind), images.shape[2] == 4
    if isinstance(given, Sequence) and not isinstance(given, str):
        if has_alpha:
            raise ValueError("pixel_range must be 'auto' for images with an alpha channel.")
        images.pixel_range = PixelRange(float(given[0]), float(given[1]), kind)
        return
    if kind in FIXED:
        images.pixel_range = PixelRange(*FIXED[kind], kind)
        return
    extents = [extent(image) for image in images]
    images.pixel_range = learned_range(extents, kind, has_alpha)
    images.seen = seen_in(extents)
    if (far := far_from_most(extents)) is not None:
        index, value = far
        low, high, _ = images.pixel_range
        warn(
            f"{images.name(index)} has a pixel of {value:g}, far from most others, so that the "
            f"pixel range is {low:g} to {high:g}. If it marks missing pixels, replace it by a "
            "likely value; or set pixel_range=(low, high)."
        )


def _blank(estimator: BaseEstimator) -> np.ndarray:
    """Return an image of one pixel, with the lowest value that the estimator has learned."""
    low, _, kind = estimator.pixel_range_
    dtype = np.float32 if kind == "float" else np.dtype(kind)
    return np.full((1, 1, estimator.image_shape_[2]), low, dtype=dtype)
