"""Input validation: X becomes a lazy sequence of checked images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from skmkd._images.channels import common_channels
from skmkd._images.image_files import UnreadableImageError
from skmkd._images.images import Images, as_numbers
from skmkd._images.inputs import as_images, listed
from skmkd._images.pixel_range import (
    FIXED,
    OPAQUE,
    Extent,
    PixelRange,
    Reach,
    extent,
    kind_of,
    learned_range,
    seen_in,
    without_strays,
)
from skmkd._images.roi import as_rois
from skmkd._warnings import warn


def check_images(estimator: BaseEstimator, X: Any, *, reset: bool, roi: Any = None) -> Images:
    """Check X, and learn from it (``reset=True``) or compare it with what was learned.

    Of each image, only the region of interest is read, if there is one.

    Sets ``image_shape_``, ``pixel_range_`` and, where images have one size, ``n_features_in_``
    on the estimator when ``reset`` is true.

    Images that cannot be used are errors, unless the estimator's ``on_error`` is "skip": they are
    left out of a fit, and replaced later, with a warning each.

    Raises
    ------
    ValueError
        If X is empty, ragged, not numeric, not finite, of another size, channel count or
        pixel range than at fit, or holds a single image at fit; or if `roi` does not fit.
    """
    images = as_images(estimator, X, reset)
    skip = estimator.on_error == "skip"
    if roi is not None:
        images.look_at(as_rois(roi, len(images)), skip)
    if reset:
        _settle(images, tolerant=skip)
        images.pixel_range = _given_range(images, estimator.pixel_range)
        if skip:
            images = images.usable()
        if images.pixel_range is None:
            images = _with_learned_range(images, skip)
        if skip and len(images) < 2:
            raise ValueError("X must hold two images at least that can be used; got one.")
        estimator.image_shape_ = images.shape
        if None not in images.shape:
            estimator.n_features_in_ = prod(images.shape)
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
    checked.regions = images.regions
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
    images = listed(list(items))
    _settle(images, tolerant=False)
    images.pixel_range = _given_range(images, "auto")
    if images.pixel_range is None:
        extents = [extent(image) for image in images]
        images.pixel_range = learned_range(extents, str(images.kind), images.shape[2] == 4)
        images.seen = seen_in(extents)
    return images


def _settle(images: Images, tolerant: bool) -> None:
    """Settle the kind of number and the channels that all images have, or most.

    Raises
    ------
    ValueError
        If their kinds differ and that is not tolerated.
    """
    if images.of_one_size:
        images.kind = kind_of(as_numbers(images.items[0], 0).dtype)
        return
    kinds = {i: kind for i, (_, kind) in images.headers.items()}
    if len(set(kinds.values())) > 1 and not tolerant:
        first, *_ = kinds
        other = next(i for i, kind in kinds.items() if kind != kinds[first])
        raise ValueError(
            f"The images of X must all be of one kind; {images.name(first)} is {kinds[first]}, "
            f"{images.name(other)} {kinds[other]}. on_error='skip' leaves out those of other kinds "
            "than most."
        )
    if kinds:
        images.kind = Counter(kinds.values()).most_common(1)[0][0]
        alike = [channels for channels, kind in images.headers.values() if kind == images.kind]
        images.shape = (None, None, common_channels(alike))


def _given_range(images: Images, given: Any) -> PixelRange | None:
    """Return the range of pixels that is given or that of their type, if either is known."""
    kind = str(images.kind)
    if isinstance(given, Sequence) and not isinstance(given, str):
        if images.shape[2] == 4:
            raise ValueError("pixel_range must be 'auto' for images with an alpha channel.")
        return PixelRange(float(given[0]), float(given[1]), kind)
    return PixelRange(*FIXED[kind], kind) if kind in FIXED else None


def _with_learned_range(images: Images, skip: bool) -> Images:
    """Return the images that are at one scale, with the range of their pixels.

    A few pixels that are far from all others do not count for the range; a warning names them.

    Raises
    ------
    ValueError
        If an image is at another scale than most; with `skip`, it is left out with a warning.
    """
    extents: Sequence[Extent] = [extent(image) for image in images]
    alpha = images.shape[2] == 4
    if not alpha:
        at_scale = _at_one_scale(images, extents, skip)
        images, extents = images.only(at_scale), [extents[i] for i in at_scale]
    everything = learned_range(extents, str(images.kind), alpha)
    near = extents if alpha else without_strays(extents, images.read)
    images.pixel_range = learned_range(near, str(images.kind), alpha)
    if images.pixel_range == everything:
        near = extents  # a far pixel that is within the range needs no word
    images.seen = seen_in(near)
    _warn_of_far(images, near)
    return images


def _at_one_scale(images: Images, extents: Sequence[Extent], skip: bool) -> list[int]:
    """Return the indices of all images, or with `skip` of those at the scale of most."""
    reach = Reach.of(extents)
    others = [i for i, each in enumerate(extents) if reach.is_beyond(each)]
    for i in others:
        message = (
            f"{images.name(i)} must be at the scale of the other images, most of whose pixels are "
            f"between {reach.low:g} and {reach.high:g}; most of its own are between "
            f"{extents[i].usual_low:g} and {extents[i].usual_high:g}."
        )
        if not skip:
            raise UnreadableImageError(
                f"{message} Scale it like the others, leave it out, or set pixel_range=(low, high)."
            )
        warn(f"{message} It is left out.")
    return [i for i in range(len(images)) if i not in others]


def _warn_of_far(images: Images, extents: Sequence[Extent]) -> None:
    """Warn of pixels that do not count for the range, and of a single one that sets it."""
    assert images.pixel_range is not None  # learned from the extents
    low, high, _ = images.pixel_range
    remedy = "replace it by a likely value; or set pixel_range=(low, high)."
    strays = [i for i, each in enumerate(extents) if each.stray is not None]
    if strays:
        others = f", and so have {len(strays) - 1} other image(s)" if len(strays) > 1 else ""
        warn(
            f"{images.name(strays[0])} has pixels of up to {extents[strays[0]].stray:g}, far from "
            f"all others{others}. They do not count for the pixel range, {low:g} to {high:g}, and "
            f"are clipped. If such a value marks missing pixels, {remedy}"
        )
    isolated = [i for i, each in enumerate(extents) if each.isolated in (low, high)]
    rest = [each.without_isolated() for each in extents]
    alpha = images.shape[2] == 4
    if isolated and learned_range(rest, images.pixel_range.kind, alpha) != images.pixel_range:
        others = f", and so have {len(isolated) - 1} other image(s)" if len(isolated) > 1 else ""
        warn(
            f"{images.name(isolated[0])} has pixels of {extents[isolated[0]].isolated:g}, far from "
            f"all others{others}, so that the pixel range is {low:g} to {high:g}. If such a value "
            f"marks missing pixels, {remedy}"
        )


def _blank(estimator: BaseEstimator) -> np.ndarray:
    """Return an image of one pixel, with the lowest value that the estimator has learned."""
    low, _, kind = estimator.pixel_range_
    if kind == "float":
        return np.full((1, 1, estimator.image_shape_[2]), low, np.float32)
    held = np.clip(low, 0, OPAQUE[kind])  # a given range may be wider than the type
    return np.full((1, 1, estimator.image_shape_[2]), held, np.dtype(kind))
