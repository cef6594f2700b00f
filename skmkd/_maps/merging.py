"""From the scores and maps of tiles to those of their image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from skmkd._images.tiles import Grid, Tiles
from skmkd._maps.finishing import Output


def image_output(index: int, parts: Iterable[Output], tiles: Tiles) -> Output:
    """Return the output for an image from those for its tiles, which are taken one by one.

    The score is that of the most anomalous tile.
    """
    images = tiles.images
    cut = tiles.grids[index]
    scores: list[float] = []
    whole: Any = None
    for part in parts:
        scores.append(part.score)
        if part.map is None:
            continue
        if cut.is_whole:
            whole = part.map
            break
        if whole is None:
            whole = np.zeros(cut.size, dtype=np.float32)
        add_tile(whole, part.map, tiles.place(part.index)[1], cut)
    score = scores[0] if len(scores) == 1 else float(np.min(scores))
    if index in images.unreadable:
        score = np.nan
        if whole is not None:
            whole = np.full(images.frames([index])[0], np.nan, np.float32)
    elif whole is not None and images.regions is not None:
        whole = images.regions[index].placed(whole, images.frames([index])[0])
    return Output(index, score, whole)


def add_tile(whole: np.ndarray, part: np.ndarray, number: int, cut: Grid) -> None:
    """Add the map of a tile to that of its image, by weights that add up to one at each pixel."""
    row, column = cut.cells[number]
    by_row, by_column = cut.windows
    whole[cut.box(number)] += part * by_row[row][:, None] * by_column[column]
