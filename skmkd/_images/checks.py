"""Input validation: X becomes a lazy sequence of checked images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from math import isqrt, prod
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL.Image import Image
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from skmkd._images.image_files import ImageFile, UnreadableImageError, is_path_list
from skmkd._warnings import warn

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
INTEGER_RANGES = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
LARGEST = float(np.finfo(np.float32).max)
FAR_OUTSIDE = 10.0  # widths of the learned range that new floats may lie outside of it
ALPHA_OUTSIDE = 0.01  # the same for RGBA, since alpha beyond 0-1 has no meaning
PLAIN_MODES = ("1", "L", "I;16", "I", "F", "RGB", "RGBA")  # of Pillow: pixels are values

ImagesLike = ArrayLike | Sequence[ArrayLike] | Sequence[str | os.PathLike[str]]
ImageShape = tuple[int | None, int | None, int]


class PixelRange(NamedTuple):
    """What the lowest and the highest pixel value mean, and for which kind of number."""

    low: float
    high: float
    kind: str  # "bool", "uint8", "uint16" or "float"


class Images:
    """Images of one kind, read and checked when they are needed, by several threads if wanted.

    Parameters
    ----------
    items : sequence of array-like
        Anything with a length that gives one image, or one flattened row, for an integer.
    shape : tuple (H, W, C)
        Shape of each image; H and W are None where images differ in size.
    blank : ndarray of shape (1, 1, C), default=None
        Replaces files that cannot be read. None raises the error instead.
    unreadable : iterable of int, default=()
        Indices of items that have been replaced already; as a set that grows, an attribute.

    Attributes
    ----------
    pixel_range : PixelRange or None
        What new images are compared with.
    """

    def __init__(
        self,
        items: Any,
        shape: ImageShape,
        blank: np.ndarray | None = None,
        unreadable: Iterable[int] = (),
    ) -> None:
        self.items = items
        self.shape = shape
        self._blank = blank
        self.pixel_range: PixelRange | None = None
        self.unreadable = set(unreadable)
        self.errors: dict[int, UnreadableImageError] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read(i) for i in range(len(self)))

    @property
    def of_one_size(self) -> bool:
        """Whether the images came as one array."""
        return self.shape[0] is not None

    @property
    def are_files(self) -> bool:
        """Whether an image has to be decoded each time that it is read."""
        return isinstance(self.items[0], ImageFile)

    def sizes(self, indices: Iterable[int]) -> list[tuple[int, int]]:
        """Return height and width of the images at the indices, without reading pixels."""
        height, width, _ = self.shape
        if height is not None and width is not None:
            return [(height, width) for _ in indices]
        return [np.shape(self.items[i])[:2] for i in indices]

    def runs(self, indices: Sequence[int], n_pixels: int) -> list[list[int]]:
        """Split indices into runs of neighbours of one size, of at most so many pixels in all."""
        runs = []
        for (height, width), group in groupby(
            zip(self.sizes(indices), indices, strict=True), key=itemgetter(0)
        ):
            same = [index for _, index in group]
            step = max(1, n_pixels // (height * width))
            runs += [same[start : start + step] for start in range(0, len(same), step)]
        return runs

    def warn_of_unreadable(self, indices: Iterable[int]) -> None:
        """Warn once of each file at the indices that was replaced, in their order."""
        for index in indices:
            if (error := self.errors.pop(index, None)) is not None:
                warn(f"{error}. It is skipped.")

    def read(self, index: int) -> np.ndarray:
        """Return an image of shape (H, W, C)."""
        try:
            image = _as_numbers(self.items[index], index)
        except UnreadableImageError as error:
            if self._blank is None:
                raise
            if index not in self.unreadable:
                self.unreadable.add(index)
                self.errors[index] = error
            return self._blank
        height, width, channels = self.shape
        image = image.reshape(height or image.shape[0], width or image.shape[1], channels)
        kind = kind_of(image.dtype)
        fitted = self.pixel_range
        if fitted is not None and kind != fitted.kind:
            raise ValueError(
                f"{_named(self.items[index], index)} must hold {fitted.kind} pixels in the range "
                f"{fitted.low:g} to {fitted.high:g}, as at fit; got {kind} pixels."
            )
        if kind == "float":
            _check_values(image, index, fitted)
        return image


@cache
def kind_of(dtype: np.dtype) -> str:
    """Return the kind of number of pixels, as in `PixelRange`."""
    return dtype.name if dtype.name in INTEGER_RANGES else "float"


def check_images(estimator: BaseEstimator, X: Any, *, reset: bool) -> Images:
    """Check X, and learn from it (``reset=True``) or compare it with what was learned.

    Sets ``image_shape_``, ``pixel_range_`` and, where images have one size, ``n_features_in_``
    on the estimator when ``reset`` is true.

    Files that cannot be read are errors, too, unless the estimator's ``on_error`` is "skip" and
    ``reset`` is false.

    Raises
    ------
    ValueError
        If X is empty, ragged, not numeric, not finite, of another size, channel count or
        pixel range than at fit, or holds a single image at fit.
    """
    images = _as_images(estimator, X, reset)
    if reset:
        estimator.image_shape_ = images.shape
        if None not in images.shape:
            estimator.n_features_in_ = prod(images.shape)
        images.pixel_range = estimator.pixel_range_ = _learn_range(images)
        return images
    shape, fitted = images.shape, estimator.image_shape_
    sizes_differ = None not in (shape[0], fitted[0]) and shape[:2] != fitted[:2]
    if sizes_differ or shape[2] != fitted[2]:
        expected, got = (tuple("any" if s is None else s for s in t) for t in (fitted, shape))
        raise ValueError(
            f"X must hold images of shape (H, W, C) = {expected}, as at fit; got {got}."
        )
    images.pixel_range = estimator.pixel_range_
    return images


def image_list(items: np.ndarray | Sequence[ArrayLike]) -> Images:
    """Check images that belong to no estimator; arrays may differ in size.

    Raises
    ------
    ValueError
        If there is none, or they differ in channels or kind of number, or are not finite.
    """
    if len(items) == 0:
        raise ValueError("X must hold at least one image; got none.")
    images = Images(items, _list_shape(items))
    images.pixel_range = _learn_range(images)
    return images


def _as_images(estimator: BaseEstimator, X: Any, reset: bool) -> Images:
    minimum = 2 if reset else 1
    if isinstance(X, (str, os.PathLike)):
        raise ValueError(
            f"X must be a list of paths; got the single path {os.fspath(X)!r}. For the images of a "
            "folder, give skmkd.datasets.list_images(folder)."
        )
    if isinstance(X, (list, tuple)) and not X:
        raise ValueError("X must hold at least one image; got none.")
    may_be_list = getattr(X, "ndim", 1) < 2
    if may_be_list and is_path_list(X):
        blank = None if reset or estimator.on_error == "raise" else _blank(estimator)
        images = _open_files(X, blank)
    elif may_be_list and _is_image_list(X):
        images = Images(list(X), _list_shape(X))
    else:
        array = X if hasattr(X, "ndim") else _as_array(X)
        if array.ndim < 3:
            X = validate_data(
                estimator, X, reset=reset, ensure_all_finite=False, ensure_min_samples=minimum
            )
            return Images(X, _row_shape(estimator, X.shape[1]))
        images = Images(array, _array_shape(tuple(array.shape), estimator.image_shape))
    if len(images) < minimum:
        raise ValueError(
            f"Found {len(images)} image(s) in X while a minimum of {minimum} is required by "
            f"{type(estimator).__name__}."
        )
    return images


def _open_files(paths: Sequence[str | os.PathLike[str]], blank: np.ndarray | None) -> Images:
    """Read the headers of files; a blank, if there is one, replaces those that cannot be read."""
    files: list[ImageFile | np.ndarray] = [ImageFile(path) for path in paths]
    unreadable = set()
    for index, file in enumerate(files):
        try:
            _ = file.shape
        except UnreadableImageError as error:
            if blank is None:
                raise
            warn(f"{error}. It is skipped.")
            files[index] = blank
            unreadable.add(index)
    return Images(files, _list_shape(files), blank, unreadable)


def _blank(estimator: BaseEstimator) -> np.ndarray:
    """Return an image of one pixel, with the lowest value that the estimator has learned."""
    low, _, kind = estimator.pixel_range_
    dtype = np.float32 if kind == "float" else np.dtype(kind)
    return np.full((1, 1, estimator.image_shape_[2]), low, dtype=dtype)


def _is_image_list(X: Any) -> bool:
    """Tell a list of image arrays, of any sizes, from nested numbers."""
    if isinstance(X, np.ndarray) and X.dtype != object:
        return False
    return isinstance(X, (list, tuple, np.ndarray)) and any(
        (hasattr(item, "__array__") or hasattr(item, "__array_interface__")) and np.ndim(item) > 1
        for item in X
    )


def _as_array(X: Any) -> np.ndarray:
    try:
        return np.asarray(X)
    except ValueError as error:
        raise ValueError(
            "X must be an array of images of one shape, or a list of arrays if they differ; got "
            f"ragged nested sequences: {error}"
        ) from error


def _as_numbers(item: Any, index: int) -> np.ndarray:
    if isinstance(item, Image) and item.mode not in PLAIN_MODES:
        raise ValueError(
            f"X[{index}] must be an image of mode {', '.join(PLAIN_MODES)}; got {item.mode!r}: "
            "convert it first."
        )
    try:
        array = np.asarray(item)
        array = array.astype(np.float64) if array.dtype == object else array
    except UnreadableImageError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"X[{index}] must hold numbers; got objects that do not convert: {error}"
        ) from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"X[{index}] must hold real numbers; got dtype {array.dtype}.")
    return array


def _header(item: Any, index: int) -> tuple[tuple[int, ...], str]:
    """Return shape and kind of number of an image; of a file, no pixel is read."""
    array = item if isinstance(item, ImageFile) else _as_numbers(item, index)
    return array.shape, kind_of(array.dtype)


def _named(item: Any, index: int) -> str:
    """Name an image in an error, by its path if it has one."""
    return f"X[{index}] ({item.path})" if isinstance(item, ImageFile) else f"X[{index}]"


def _list_shape(X: np.ndarray | Sequence[Any]) -> ImageShape:
    """Check that all images of a list have the same channels; sizes may differ."""
    channels = [_channels(_header(item, i)[0], _named(item, i)) for i, item in enumerate(X)]
    if other := next((i for i, found in enumerate(channels) if found != channels[0]), None):
        raise ValueError(
            f"The images of X must all have the same channels; {_named(X[0], 0)} has "
            f"{channels[0]} and {_named(X[other], other)} has {channels[other]}."
        )
    return None, None, channels[0]


def _array_shape(shape: tuple[int, ...], image_shape: Any) -> ImageShape:
    if len(shape) == 3 and shape[-1] in (3, 4) and shape[1] > 4:
        raise ValueError(
            f"X has shape {shape}, which looks like one colour image; wrap it as X[None] "
            "(thin grey images take a channel axis: X[..., None])."
        )
    channels = _channels(shape[1:], "X")
    found = (shape[1], shape[2], channels)
    if image_shape is not None and found != _full_shape(image_shape):
        raise ValueError(
            f"image_shape must be the shape of the images; got {tuple(image_shape)} for images "
            f"of shape {shape[1:]}."
        )
    return found


def _channels(shape: tuple[int, ...], name: str) -> int:
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) == 3 and channels not in CHANNELS and shape[0] in CHANNELS:
        raise ValueError(
            f"{name} must hold images of shape (H, W, C); got {shape}, which looks channels-first: "
            "move the channels last with np.moveaxis(X, -3, -1)."
        )
    if len(shape) not in (2, 3) or channels not in CHANNELS or 0 in shape:
        raise ValueError(
            f"{name} must hold images of shape (H, W) or (H, W, C) with C in 1, 3, 4; got {shape}."
        )
    return channels


def _full_shape(image_shape: Any) -> tuple[int, int, int]:
    shape = tuple(image_shape)
    if len(shape) not in (2, 3) or not all(
        isinstance(side, (int, np.integer)) and side > 0 for side in shape
    ):
        raise ValueError(f"image_shape must be (H, W) or (H, W, C), positive; got {image_shape!r}.")
    return int(shape[0]), int(shape[1]), _channels(shape, "image_shape")


def _row_shape(estimator: BaseEstimator, n_features: int) -> ImageShape:
    """Return the shape of the images that rows of n_features stand for."""
    fitted = getattr(estimator, "image_shape_", (None, None, 1))
    if fitted[0] is not None:
        return fitted
    if estimator.image_shape is not None:
        shape = _full_shape(estimator.image_shape)
        if prod(shape) != n_features:
            raise ValueError(
                f"image_shape must hold as many pixels as a row of X; got {shape} = "
                f"{prod(shape)} for {n_features} features."
            )
        return shape
    side = isqrt(n_features)
    return (side, side, 1) if side * side == n_features else (1, n_features, 1)


def _learn_range(images: Images) -> PixelRange:
    """Return the range of integers by dtype; of floats 0-1, or their extremes outside of it."""
    n = 1 if None not in images.shape else len(images)  # an array has one kind
    kinds = [_header(images.items[i], i)[1] for i in range(n)]
    kind = kinds[0]
    if other := next((i for i, k in enumerate(kinds) if k != kind), None):
        raise ValueError(
            f"The images of X must all be of one kind; X[0] is {kind}, X[{other}] {kinds[other]}."
        )
    if kind in INTEGER_RANGES:
        return PixelRange(*INTEGER_RANGES[kind], kind)
    extremes = np.array([(image.min(), image.max()) for image in images], dtype=np.float64)
    low, high = float(extremes[:, 0].min()), float(extremes[:, 1].max())
    if low >= 0 and high <= 1:
        return PixelRange(0.0, 1.0, kind)
    if images.shape[2] == 4:
        raise ValueError(
            "X with an alpha channel must be uint8, uint16, or float from 0 to 1; got floats "
            f"from {low:g} to {high:g}."
        )
    return PixelRange(low, high, kind)


def _check_values(image: np.ndarray, index: int, known: PixelRange | None) -> None:
    low, high = float(image.min()), float(image.max())
    if np.isnan(low):
        raise ValueError(f"X[{index}] contains NaN.")
    if max(-low, high) > LARGEST:
        raise ValueError(f"X[{index}] contains infinity or a value too large for dtype('float32').")
    if known is None:
        return
    share = ALPHA_OUTSIDE if image.shape[2] == 4 else FAR_OUTSIDE
    reach = share * ((known.high - known.low) or 1.0)
    if low < known.low - reach or high > known.high + reach:
        raise ValueError(
            f"X[{index}] must lie near the pixel range {known.low:g} to {known.high:g} learned "
            f"at fit; got values from {low:g} to {high:g}. Scale X as it was scaled for fit."
        )
