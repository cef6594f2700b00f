"""Tiles: the parts that images are cut into, each an image of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, product
from math import ceil
from operator import itemgetter
from typing import NamedTuple, Self

import numpy as np

from skmkd._images.image_files import UnreadableImageError
from skmkd._images.images import Images

Size = tuple[int, int]  # height and width, in pixels
KEPT = 2  # images that stay in memory, at least, while their tiles are read


class Tiling(NamedTuple):
    """How images are cut into tiles: not at all, if there is no size."""

    size: Size | None = None  # in pixels of the image
    overlap: float = 0.0  # share of a tile that the next one has, too, at least


@dataclass(frozen=True)
class Grid:
    """The tiles of images of one size, and of one mask if there is any.

    Parameters
    ----------
    size : tuple (H, W)
        Size of the images.
    tile : tuple (h, w)
        Size of each tile.
    rows, columns : list of int
        The first pixel row of each row of tiles, and the first pixel column of each column.
    cells : list of tuple (int, int)
        Row and column of the tiles, without those that are outside the mask.
    """

    size: Size
    tile: Size
    rows: list[int]
    columns: list[int]
    cells: list[tuple[int, int]]

    def box(self, number: int) -> tuple[slice, slice]:
        """Return the rows and columns of pixels of a tile."""
        row, column = self.cells[number]
        top, left = self.rows[row], self.columns[column]
        return slice(top, top + self.tile[0]), slice(left, left + self.tile[1])

    @property
    def is_whole(self) -> bool:
        """Whether the only tile is the image."""
        return self.tile == self.size

    @cached_property
    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the pixel rows of each row of tiles, and of the columns: (n, h), (m, w)."""
        return (
            crossfades(self.rows, self.tile[0], self.size[0]),
            crossfades(self.columns, self.tile[1], self.size[1]),
        )


def grid(size: Size, tiling: Tiling, mask: np.ndarray | None = None) -> Grid:
    """Cut images of a size into tiles, which are as large as the image at most.

    They are spread evenly, the first at one edge of the image and the last at the other.
    """
    wanted = tiling.size or size
    tile = min(size[0], wanted[0]), min(size[1], wanted[1])
    rows, columns = (
        starts(length, side, tiling.overlap) for length, side in zip(size, tile, strict=True)
    )
    whole = Grid(size, tile, rows, columns, list(product(range(len(rows)), range(len(columns)))))
    if mask is None:
        return whole
    cells = [cell for i, cell in enumerate(whole.cells) if mask[whole.box(i)].any()]
    return Grid(size, tile, rows, columns, cells)


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Return the first pixel of each tile along an axis."""
    step = max(1, side - round(overlap * side))
    n = 1 + ceil((length - side) / step)
    return np.linspace(0, length - side, n).round().astype(int).tolist()


def crossfades(first: Sequence[int], side: int, length: int) -> np.ndarray:  # (n, side)
    """Return windows that fade each tile of an axis into the next, and add up to one everywhere.

    The weight is the squared distance to the nearer end of the tile, before it is normalised.
    """
    places = np.arange(1, side + 1)
    window = np.minimum(places, places[::-1]).astype(np.float64) ** 2
    total = np.zeros(length)
    for start in first:
        total[start : start + side] += window
    return np.stack([window / total[start : start + side] for start in first]).astype(np.float32)


class Tiles:
    """The tiles of images, in the order of the images, read when they are needed.

    Parameters
    ----------
    images : Images
        The images, or their regions of interest.
    grids : list of n Grid
        How each image is cut; tiles may be missing.

    Attributes
    ----------
    poses : ndarray of shape (n, 3), float64
        The pose that each tile was registered with when it was last read.
    """

    def __init__(self, images: Images, grids: list[Grid]) -> None:
        self.images = images
        self.grids = grids
        self._first = np.cumsum([0, *(len(each.cells) for each in grids)]).tolist()
        self.poses = np.zeros((self._first[-1], 3))
        self._kept: deque[np.ndarray] = deque(maxlen=KEPT)

    @classmethod
    def cut(cls, images: Images, tiling: Tiling) -> Self:
        """Cut images; tiles in which the mask of a region of interest is empty are left out."""
        found: dict[tuple[Size, int], Grid] = {}
        grids = []
        for i, size in enumerate(images.sizes(range(len(images)))):
            mask = images.mask(i)
            key = size, id(mask)
            if key not in found:
                found[key] = grid(size, tiling, mask)
            grids.append(found[key])
        return cls(images, grids)

    def drawn(self, n: int, seed: int) -> Tiles:
        """Return n of the tiles, drawn at random; all, if there are not more."""
        if n >= len(self):
            return self
        cells: list[list[tuple[int, int]]] = [[] for _ in self.grids]
        for tile in np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False)):
            image, number = self.place(int(tile))
            cells[image].append(self.grids[image].cells[number])
        return Tiles(
            self.images, [replace(g, cells=c) for g, c in zip(self.grids, cells, strict=True)]
        )

    def __len__(self) -> int:
        return self._first[-1]

    @property
    def are_whole(self) -> bool:
        """Whether each image is one tile."""
        return all(each.is_whole for each in self.grids)

    def of(self, indices: Iterable[int]) -> list[int]:
        """Return the tiles of the images at the indices."""
        return [tile for i in indices for tile in range(self._first[i], self._first[i + 1])]

    def place(self, tile: int) -> tuple[int, int]:
        """Return the image of a tile, and its number among those of the image."""
        image = bisect_right(self._first, tile) - 1
        return image, tile - self._first[image]

    def sizes(self, tiles: Iterable[int]) -> list[Size]:
        """Return height and width of each tile; of whole images, as they are once read."""
        places = [self.place(tile)[0] for tile in tiles]
        whole = iter(self.images.sizes(i for i in places if self.grids[i].is_whole))
        return [next(whole) if self.grids[i].is_whole else self.grids[i].tile for i in places]

    def runs(self, tiles: Sequence[int], n_pixels: int) -> list[list[int]]:
        """Split tiles into runs of neighbours of one size, of at most so many pixels in all."""
        runs = []
        for (height, width), group in groupby(
            zip(self.sizes(tiles), tiles, strict=True), key=itemgetter(0)
        ):
            same = [tile for _, tile in group]
            step = max(1, n_pixels // (height * width))
            runs += [same[start : start + step] for start in range(0, len(same), step)]
        return runs

    def read(self, tile: int) -> np.ndarray:
        """Return a tile of shape (h, w, C), or the blank if its image cannot be used.

        That is an error, too, if an image that is cut up has another size than its header says.
        """
        index, number = self.place(tile)
        cut = self.grids[index]
        if cut.is_whole:
            return self.images.read(index)
        image = self.images.read_once(index)
        self._kept.append(image)
        if index in self.images.unreadable:
            return image
        if image.shape[:2] != cut.size:
            turned = UnreadableImageError(
                f"{self.images.name(index)} must have the size in its header, {cut.size}, to be "
                f"cut into tiles; got {image.shape[:2]}: its end says that it is turned, or it was "
                "replaced meanwhile."
            )
            return self.images.replaced(index, turned)
        return image[cut.box(number)]

    def masks(self, tiles: Sequence[int]) -> list[np.ndarray | None]:
        """Return the mask (h, w) of each tile, bool; None if all of it counts."""
        found: list[np.ndarray | None] = []
        for tile in tiles:
            index, number = self.place(tile)
            mask = self.images.mask(index)
            found.append(None if mask is None else mask[self.grids[index].box(number)])
        return found

    def warn_of_unreadable(self, tiles: Iterable[int]) -> None:
        """Warn once of each image that was replaced, in the order of its tiles."""
        self.images.warn_of_unreadable(self.place(tile)[0] for tile in tiles)
