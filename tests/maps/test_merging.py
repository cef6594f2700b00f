from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skmkd._images.images import Images
from skmkd._images.roi import Roi
from skmkd._images.tiles import Tiles, Tiling
from skmkd._maps.finishing import Output
from skmkd._maps.merging import image_output

SIZE = (23, 31)


def cut(tiling, region=None):
    images = Images(np.zeros((1, *SIZE), np.uint8), (*SIZE, 1))
    if region is not None:
        images.look_at([region], skip=False)
    return Tiles.cut(images, tiling)


def outputs(tiles, maps=True):
    rng = np.random.default_rng(0)
    sizes = tiles.sizes(range(len(tiles)))
    return [
        Output(i, float(rng.random()), rng.random(size, np.float32) if maps else None)
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_merged_map_is_the_weighted_mean_at_each_pixel(overlap):
    tiles = cut(Tiling((8, 12), overlap))
    parts = outputs(tiles)
    found = image_output(0, iter(parts), tiles)
    (grid,) = tiles.grids
    expected = np.zeros(SIZE)
    for row, column in np.ndindex(SIZE):  # by brute force
        weights, values = [], []
        for part in parts:
            rows, columns = grid.box(part.index)
            if rows.start <= row < rows.stop and columns.start <= column < columns.stop:
                down = min(row - rows.start, rows.stop - 1 - row) + 1
                across = min(column - columns.start, columns.stop - 1 - column) + 1
                weights.append((down * across) ** 2)
                values.append(part.map[row - rows.start, column - columns.start])
        expected[row, column] = np.average(values, weights=weights)
    assert found.map.dtype == np.float32
    assert_allclose(found.map, expected, rtol=1e-5)


def test_an_image_is_as_anomalous_as_its_worst_tile():
    tiles = cut(Tiling((8, 12), 0.25))
    parts = outputs(tiles, maps=False)
    found = image_output(0, iter(parts), tiles)
    assert found.score == min(part.score for part in parts)
    assert found.map is None


def test_constant_maps_merge_to_a_constant():
    tiles = cut(Tiling((8, 12), 0.5))
    parts = [
        Output(i, 0.0, np.full(size, 3, np.float32))
        for i, size in enumerate(tiles.sizes(range(len(tiles))))
    ]
    assert_allclose(image_output(0, parts, tiles).map, 3, rtol=1e-6)


def test_a_whole_image_has_its_own_map():
    tiles = cut(Tiling())
    (part,) = outputs(tiles)
    found = image_output(0, [part], tiles)
    assert found.map is part.map
    assert found.score == part.score


def test_the_map_is_0_outside_a_region():
    mask = np.zeros(SIZE, bool)
    mask[3:9, 4:30] = mask[3:20, 4:8] = True
    region = Roi((3, 4, 20, 30), mask[3:20, 4:30], SIZE)
    tiles = cut(Tiling((8, 8), 0.25), region)
    found = image_output(0, outputs(tiles), tiles)
    assert found.map.shape == SIZE
    assert_array_equal(found.map > 0, mask)


def test_an_image_that_could_not_be_read_has_no_score_and_no_map():
    tiles = cut(Tiling((8, 8), 0.25))
    tiles.images.unreadable.add(0)
    found = image_output(0, outputs(tiles), tiles)
    assert np.isnan(found.score)
    assert found.map.shape == SIZE
    assert np.isnan(found.map).all()
