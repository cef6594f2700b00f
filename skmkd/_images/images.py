"""A sequence of images that are read, checked and converted when they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import ArrayLike

from skmkd._conformal import as_groups
from skmkd._images.channels import with_channels
from skmkd._images.contents import LazyImage
from skmkd._images.image_files import ImageFile, UnreadableImageError
from skmkd._images.pixel_range import (
    FIXED,
    LARGEST,
    PixelRange,
    clipped,
    divided,
    drawable,
    kind_of,
    plausible,
)
from skmkd._images.roi import Roi
from skmkd._interrupts import stop_if_interrupted
from skmkd._warnings import warn

SEVERAL = 5  # images that show, whatever is in them, whether they are on the scale of fit
N_LOCKS = 64
FEW = 0.1  # of the images of a call, that seem to be on that scale, where all are on another

ImageShape = tuple[int | None, int | None, int]


class Broken:
    """Stands for an image that cannot be used; reading it raises the error."""

    def __init__(
        self, error: UnreadableImageError, item: Any, shape: tuple[int, int] = (1, 1)
    ) -> None:
        self._error = error
        self.shape = shape
        self.path: str | None = getattr(item, "path", None)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise self._error


class Images:
    """Images of one kind, read and checked when they are needed, by several threads if wanted.

    Parameters
    ----------
    items : sequence of array-like
        Anything with a length that gives one image, or one flattened row, for an integer.
    shape : tuple (H, W, C)
        Shape of each image; H and W are None where images differ in size.
    blank : ndarray of shape (1, 1, C), default=None
        Replaces images that cannot be read. None raises the error instead.

    Attributes
    ----------
    kind : str or None
        The kind of number that pixels must be.
    pixel_range : PixelRange or None
        What new images are compared with.
    headers : dict of int to (int, str)
        Channels and kind of number of the items of a list that could be opened.
    regions : list of n Roi, or None
        The part of each image that is read; None means all of it.
    seen : tuple of 3 floats or None
        What most pixels at fit are between, and the smallest such difference in an image.
    kept : ndarray of bool
        Which of the images that X held these are; all, unless they are its usable ones.
    unreadable : set of int
        Indices of images that were replaced.
    errors : dict of int to str
        Why they were, until somebody has been told.
    silent : bool
        Whether the caller looks at the errors, so that no warning tells them.
    """

    def __init__(self, items: Any, shape: ImageShape, blank: np.ndarray | None = None) -> None:
        self.items = items
        self.shape = shape
        self.kind: str | None = None
        self.pixel_range: PixelRange | None = None
        self.headers: dict[int, tuple[int, str]] = {}
        self.regions: list[Roi] | None = None
        self.seen: tuple[float, float, float] | None = None
        self.kept = np.ones(len(items), dtype=bool)
        self.unreadable: set[int] = set()
        self.errors: dict[int, str] = {}
        self.silent = False
        self._blank = blank
        self._plausible: dict[int, bool] = {}  # by several threads, in any order
        self._divided: set[int] = set()  # of those that are not plausible
        self._recent: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()
        self._locks = [Lock() for _ in range(N_LOCKS)]

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
        return isinstance(self.items[0], LazyImage | Broken)

    def name(self, index: int) -> str:
        """Name an image of X in an error, by its path if it has one."""
        return named(self.items[index], int(np.flatnonzero(self.kept)[index]))

    def path(self, index: int) -> str | None:
        """Return the path of an image, if it is a file."""
        item = self.items[index]
        return item.path if isinstance(item, ImageFile | Broken) else None

    def frames(self, indices: Iterable[int]) -> list[tuple[int, int]]:
        """Return height and width of the images at the indices, without reading pixels."""
        height, width, _ = self.shape
        if height is not None and width is not None:
            return [(height, width) for _ in indices]
        return [np.shape(self.items[i])[:2] for i in indices]

    def sizes(self, indices: Iterable[int]) -> list[tuple[int, int]]:
        """Return height and width of what is read of the images at the indices."""
        if self.regions is None:
            return self.frames(indices)
        return [
            (1, 1) if isinstance(self.items[i], Broken) else self.regions[i].size for i in indices
        ]

    def mask(self, index: int) -> np.ndarray | None:
        """Return what counts of the pixels that are read of an image; None for all."""
        if self.regions is None or isinstance(self.items[index], Broken):
            return None
        return self.regions[index].mask

    def look_at(self, regions: list[Roi], skip: bool) -> None:
        """Read of each image its region only.

        Raises
        ------
        ValueError
            If a region is not one of images of that size; with `skip`, an image of a list becomes
            one that cannot be read.
        """
        for i, frame in enumerate(self.frames(range(len(self)))):
            if isinstance(self.items[i], Broken):
                continue
            try:
                regions[i].check(frame)
            except ValueError as error:
                unfit = UnreadableImageError(f"{self.name(i)} {error}")
                if self.of_one_size or not skip:
                    raise unfit from None
                self.items[i] = Broken(unfit, self.items[i], frame)
        self.regions = regions

    def read(self, index: int) -> np.ndarray:
        """Return an image of shape (H, W, C), or the blank if it cannot be read."""
        stop_if_interrupted()
        try:
            return self._read(index)
        except UnreadableImageError as error:
            return self.replaced(index, error)

    def read_once(self, index: int) -> np.ndarray:
        """Do the same, once for all threads and tilings as long as one of them holds the image."""
        with self._locks[index % N_LOCKS]:
            image = self._recent.get(index)
            if image is None:
                image = self._recent[index] = self.read(index)
        return image

    def replaced(self, index: int, error: UnreadableImageError) -> np.ndarray:
        """Return the blank for an image that cannot be used; raise the error if there is none."""
        if self._blank is None:
            raise error
        if index not in self.unreadable:
            self.unreadable.add(index)
            self.errors[index] = str(error)
        return self._blank

    def whole(self, index: int) -> np.ndarray:
        """Return an image (H, W, C) for drawing, with what is outside its region of interest."""
        assert self.pixel_range is not None  # known once images have a region
        return drawable(self._pixels(self.items[index], index), self.pixel_range)

    def _pixels(self, item: Any, index: int) -> np.ndarray:
        """Return the numbers of an item of X as an image (H, W, C)."""
        image = as_numbers(item, index)
        if image.ndim == 1:
            return image.reshape([side or -1 for side in self.shape])  # a row
        return image[..., None] if image.ndim == 2 else image

    def _read(self, index: int) -> np.ndarray:
        """Read, check and convert an image.

        Raises
        ------
        UnreadableImageError
            If it cannot be read, or does not fit to the others or to those of fit.
        """
        item = self.items[index]
        image = self._pixels(item, index)
        kind = kind_of(image.dtype)
        try:
            if self.kind is not None and kind != self.kind:
                raise ValueError(self._kind_expected(kind))
            if self.regions is not None:
                self.regions[index].check(image.shape)  # some headers do not tell
                image = self.regions[index].cut(image)
            image = with_channels(image, self.shape[2])
            if kind not in FIXED:
                image = self._checked(image, index)
        except ValueError as error:
            raise UnreadableImageError(f"{named(item, index)} {error}") from None
        return image

    def _kind_expected(self, kind: str) -> str:
        if (known := self.pixel_range) is None:
            return f"must hold {self.kind} pixels, as most images do; got {kind} pixels."
        return (
            f"must hold {known.kind} pixels in the range {known.low:g} to {known.high:g}, as at "
            f"fit; got {kind} pixels."
        )

    def _checked(self, image: np.ndarray, index: int) -> np.ndarray:
        """Check the values of an image, and clip those that are far from the known range."""
        low, high = float(image.min()), float(image.max())
        if np.isnan(low):
            raise ValueError(
                "contains NaN. If it marks missing pixels, replace it by a likely value first; "
                "on_error='skip' leaves such images out."
            )
        if max(-low, high) > LARGEST:
            raise ValueError("contains infinity or a value too large for dtype('float32').")
        if self.pixel_range is None:
            return image
        image = clipped(image, (low, high), self.pixel_range, self.shape[2] == 4)
        if self.seen is not None:
            self._plausible[index] = plausible(image, self.seen)
            if not self._plausible[index] and divided(image, self.seen):
                self._divided.add(index)
        return image

    def usable(self) -> Images:
        """Read all images and return those that can be read; warn of each other one.

        Raises
        ------
        ValueError
            If there is none.
        """
        kept = []
        for index in range(len(self)):
            try:
                self._read(index)
            except UnreadableImageError as error:
                warn(f"{str(error).rstrip('.')}. It is left out.")
            else:
                kept.append(index)
        if not kept:
            raise ValueError(f"X must hold images that can be read; got {len(self)}, and none can.")
        return self.only(kept)

    def only(self, indices: Sequence[int]) -> Images:
        """Return the images at the indices as those of X that can be used; all, if they are."""
        if len(indices) == len(self):
            return self
        images = self.of(indices)
        images.kept = np.zeros_like(self.kept)
        images.kept[np.flatnonzero(self.kept)[list(indices)]] = True
        return images

    def groups_of(self, groups: ArrayLike | None) -> np.ndarray | None:
        """Return the label of each image, of those for all that X held.

        Raises
        ------
        ValueError
            If there is not one for each.
        """
        return None if groups is None else as_groups(groups, len(self.kept))[self.kept]

    def of(self, indices: Sequence[int]) -> Images:
        """Return the images at the indices; none of them is replaced if it cannot be read."""
        images = Images([self.items[i] for i in indices], self.shape)
        images.kind, images.pixel_range, images.seen = self.kind, self.pixel_range, self.seen
        images.regions = self.regions and [self.regions[i] for i in indices]
        return images

    def warn_of_unreadable(self, indices: Iterable[int]) -> None:
        """Warn once of each image at the indices that was replaced, in their order."""
        for index in [] if self.silent else indices:
            if (error := self.errors.pop(index, None)) is not None:
                warn(f"{error.rstrip('.')}. It is skipped.")

    def warn_of_scale(self) -> None:
        """Warn if nearly all of several images seem to be on another scale than those of fit.

        Few images are warned of if each seems to have been divided.
        """
        found, self._plausible = self._plausible, {}  # told once, whoever reads the images
        n_plausible = sum(found.values())
        if self.seen is None or not found or n_plausible > FEW * len(found):
            return
        if len(found) < SEVERAL and not found.keys() <= self._divided:
            return
        first = min(index for index, is_plausible in found.items() if not is_plausible)
        low, high, contrast = self.seen
        warn(
            "Nearly none of the images of X seem to be on the scale of those of fit, most of whose "
            f"pixels are between {low:g} and {high:g} and differ by at least {contrast:g} in each "
            f"image. The first that does not is {self.name(first)}. Scale X as it was scaled for "
            "fit."
        )


def named(item: Any, index: int) -> str:
    """Name an item of X, by its path if it has one."""
    return f"X[{index}] ({item.path})" if isinstance(item, ImageFile) else f"X[{index}]"


def as_numbers(item: Any, index: int) -> np.ndarray:
    """Return an image as an array of numbers.

    Raises
    ------
    ValueError
        If it does not hold real numbers.
    """
    if isinstance(item, np.ma.MaskedArray) and np.ma.is_masked(item):
        raise UnreadableImageError(
            f"X[{index}] has masked pixels; fill them with a likely value: X.filled(value)."
        )
    try:
        array = np.asarray(item)
        array = array.astype(np.float64) if array.dtype == object else array
    except UnreadableImageError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{named(item, index)} must hold numbers; got objects that do not convert: {error}"
        ) from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{named(item, index)} must hold real numbers; got dtype {array.dtype}.")
    return array
