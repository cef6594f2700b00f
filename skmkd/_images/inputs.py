"""X, in all the forms that people give it, becomes a sequence of images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set, ValuesView
from math import isqrt, prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL.Image import Image
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from skmkd._images.channels import CHANNELS, common_channels
from skmkd._images.contents import LazyImage
from skmkd._images.image_files import ImageFile, UnreadableImageError, is_path_list
from skmkd._images.images import Broken, Images, ImageShape, as_numbers, named
from skmkd._images.opened import OpenedImage
from skmkd._images.pixel_range import kind_of
from skmkd._interrupts import stop_if_interrupted
from skmkd._warnings import warn

ImagesLike = ArrayLike | Sequence[ArrayLike] | Sequence[str | os.PathLike[str]]
WANTED = "X must be an array of images, or a list of arrays, PIL images or paths"
ROWS_COMPARED = 8  # rows whose pixels show whether they are square images
SIMILAR = 0.5  # of other differences, that neighbouring lines of an image have at most
SHORTEST = 8  # values in a line


def as_images(estimator: BaseEstimator, X: Any, reset: bool) -> Images:
    """Return the images of X, in the shape that they have or, later, had at fit.

    Files that cannot be opened raise their error when they are read, if the estimator's `on_error`
    is "skip".
    """
    minimum = 2 if reset else 1
    X = _plain(X)
    if isinstance(X, (list, tuple)) and not X:
        raise ValueError("X must hold at least one image; got none.")
    may_be_list = getattr(X, "ndim", 1) < 2
    if may_be_list and is_path_list(X):
        files = [ImageFile(path, estimator.max_pixels) for path in X]
        images = listed(files, skip=estimator.on_error == "skip")
    elif may_be_list and _is_image_list(X):
        images = listed(list(X), skip=estimator.on_error == "skip")
    else:
        array = X if hasattr(X, "ndim") else _as_array(X)
        if array.ndim < 3:
            _check_rows(estimator, array, reset)
            X = validate_data(
                estimator, X, reset=reset, ensure_all_finite=False, ensure_min_samples=minimum
            )
            return Images(X, _row_shape(estimator, X))
        _check_array(estimator, tuple(array.shape), reset)
        images = Images(array, _array_shape(tuple(array.shape), estimator.image_shape))
    if len(images) < minimum:
        raise ValueError(
            f"Found {len(images)} image(s) in X while a minimum of {minimum} is required by "
            f"{type(estimator).__name__}."
        )
    return images


def _plain(X: Any) -> Any:
    """Return X, or the paths in its only column, if it is of a type that can be used.

    Raises
    ------
    ValueError
        If it is not, with what to give instead.
    """
    if isinstance(X, (str, os.PathLike)):
        raise ValueError(
            f"X must be a list of paths; got the single path {os.fspath(X)!r}. For the images of a "
            "folder, give skmkd.datasets.list_images(folder)."
        )
    kind = type(X).__name__
    if isinstance(X, (Image, bytes)) or callable(getattr(X, "read", None)):
        raise ValueError(f"{WANTED}; got a single {kind}: give [image], opened by PIL.Image.open.")
    if isinstance(X, (Iterator, Set, ValuesView)):
        raise ValueError(f"{WANTED}; got {kind}: give list(X), or sorted(X) if it has no order.")
    if hasattr(X, "to_numpy") and not hasattr(X, "iloc"):  # polars and the like
        X = X.to_numpy()
    if hasattr(X, "iloc") and X.ndim == 1:
        X = list(X)
    if getattr(X, "ndim", 1) == 2 and (column := _paths_of_a_column(X)) is not None:
        return column
    if isinstance(X, (list, tuple)) or getattr(X, "ndim", None) == 1:
        _check_items(X)
    elif not any(hasattr(X, name) for name in ("ndim", "__array__", "__array_interface__")):
        raise ValueError(
            f"{WANTED}; got {kind}. For a data set of pairs, give [image for image, _ in X]."
        )
    return X


def _paths_of_a_column(X: Any) -> Any:
    """Return the paths in an array or data frame of one column of them, else None."""
    is_frame = hasattr(X, "iloc")
    if not is_frame and not _may_hold_text(X):
        return None
    first = X.iloc[:1].to_numpy() if is_frame else X[:1]
    cells = np.asarray(first, dtype=object).ravel().tolist()
    if not any(isinstance(cell, (str, os.PathLike)) for cell in cells):
        return None
    if X.shape[1] != 1:
        raise ValueError(
            f"{WANTED}; got a table of {X.shape[1]} columns: give the one of the paths."
        )
    column = X.iloc[:, 0] if is_frame else X[:, 0]
    _check_items(column)
    return column


def _may_hold_text(array: Any) -> bool:
    return getattr(getattr(array, "dtype", None), "kind", "") in ("O", "U", "T")


def _check_items(X: Any) -> None:
    """Check that a list holds paths everywhere or nowhere, and nothing that has to be opened."""
    if not _may_hold_text(X) and not isinstance(X, (list, tuple)):
        return
    paths = [isinstance(item, (str, os.PathLike)) for item in X]
    for i, (item, is_path) in enumerate(zip(X, paths, strict=True)):
        if isinstance(item, (bytes, bytearray, Mapping)) or callable(getattr(item, "read", None)):
            raise ValueError(
                f"{WANTED}; X[{i}] is {type(item).__name__}: open files and uploads with "
                "PIL.Image.open, bytes through io.BytesIO."
            )
        if any(paths) and not is_path:
            got = repr(item) if item is None or np.isscalar(item) else type(item).__name__
            raise ValueError(f"X[{i}] must be a path, as others are; got {got}.")
        if isinstance(item, (list, tuple)) and any(map(_is_image, item[:1])):
            raise ValueError(f"{WANTED}; X[{i}] is a pair: give [image for image, _ in X].")


def _is_image(item: Any) -> bool:
    arrays = hasattr(item, "__array__") or hasattr(item, "__array_interface__")
    return isinstance(item, Image) or (arrays and np.ndim(item) > 1)


def listed(items: list[Any], skip: bool = False) -> Images:
    """Return the images of a list, whose sizes, channels and kinds may differ.

    Of a file, no pixel is read. With `skip`, one that cannot be opened is `Broken`.
    """
    images = Images(items, (None, None, 1))
    for i, item in enumerate(items):
        stop_if_interrupted()
        if isinstance(item, Image):
            item = items[i] = OpenedImage(item, i)
        try:
            array = item if isinstance(item, LazyImage) else as_numbers(item, i)
            images.headers[i] = _channels(array.shape, named(item, i)), kind_of(array.dtype)
        except UnreadableImageError as error:
            if not skip:
                raise
            items[i] = Broken(error, item)
    if images.headers:
        found = [channels for channels, _ in images.headers.values()]
        images.shape = (None, None, common_channels(found))
    return images


def _is_image_list(X: Any) -> bool:
    """Tell a list of image arrays, of any sizes, from nested numbers."""
    if isinstance(X, np.ndarray) and X.dtype != object:
        return False
    return isinstance(X, (list, tuple, np.ndarray)) and any(map(_is_image, X))


def _as_array(X: Any) -> np.ndarray:
    try:
        return np.asarray(X)
    except ValueError as error:
        raise ValueError(
            "X must be an array of images of one shape, or a list of arrays if they differ; got "
            f"ragged nested sequences: {error}"
        ) from error


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


def _check_rows(estimator: BaseEstimator, X: Any, reset: bool) -> None:
    """Check that the rows of X are not those of one grey image."""
    if reset or X.ndim != 2:
        return
    height, width, channels = estimator.image_shape_
    if tuple(X.shape) == (height, width) and X.shape[1] != height * width * channels:
        raise ValueError(f"X has shape {tuple(X.shape)}, that of one image; wrap it as X[None].")
    if X.shape[0] == X.shape[1] > 1:
        warn(
            f"X has shape {tuple(X.shape)}, and each of its rows is taken for an image of {height} "
            f"x {width}. If X is one image, wrap it as X[None]."
        )


def _check_array(estimator: BaseEstimator, shape: tuple[int, ...], reset: bool) -> None:
    """Check that three grey images are not one in colour."""
    if reset or len(shape) != 3:
        return
    *size, channels = estimator.image_shape_
    if channels == 3 and shape == (3, *size):
        raise ValueError(
            f"X has shape {shape}, which looks like one colour image with its channels first; give "
            "np.moveaxis(X, 0, -1)[None] (three grey images take a channel axis: X[..., None])."
        )


def _row_shape(estimator: BaseEstimator, X: np.ndarray) -> tuple[int, int, int]:
    """Return the shape of the images that rows of pixels stand for."""
    fitted: Any = getattr(estimator, "image_shape_", (None, None, 1))
    n_features = X.shape[1]
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
    shape = (side, side, 1) if side * side == n_features else (1, n_features, 1)
    if (line := better_line(X, shape[1])) is not None:
        warn(
            f"Rows of {n_features} pixels are taken for grey images of shape {shape[:2]}, but "
            f"their pixels repeat after {line}. Set image_shape to (H, W), or to (H, W, 3) for "
            "colour images."
        )
    return shape


def better_line(X: np.ndarray, width: int) -> int | None:
    """Return a length of lines, in values, by which rows of pixels look more like images.

    Neighbouring lines of an image differ little: half as much, at most, as rows differ at a wrong
    width, or as pixels do half a line apart.
    """
    pixels = np.asarray(X[:ROWS_COMPARED], dtype=np.float64)
    n = pixels.shape[1]

    def difference(lag: int) -> float:
        with np.errstate(over="ignore", invalid="ignore"):  # of infinite pixels, told later
            return float(np.abs(pixels[:, lag:] - pixels[:, :-lag]).mean())

    lines = [k for k in range(max(SHORTEST, width // 4 if width < n else 0), n // 2) if n % k == 0]
    found = {k: difference(k) for k in lines}
    limits = {k: min(difference(k // 2), difference(width) if width < n else np.inf) for k in lines}
    better = [k for k in lines if found[k] < SIMILAR * limits[k]]
    return min(better, key=found.__getitem__, default=None)
