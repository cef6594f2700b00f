from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from skmkd._images.images import Images
from skmkd._images.roi import Roi
from skmkd._images.tiles import Tiles, Tiling, crossfades, grid

SIDES = st.integers(1, 60)


@given(SIDES, SIDES, SIDES, SIDES, st.floats(0, 0.5))
def test_tiles_cover_images_evenly_and_overlap_enough(height, width, h, w, overlap):
    cut = grid((height, width), Tiling((h, w), overlap))
    assert cut.tile == (min(h, height), min(w, width))
    seen = np.zeros((height, width), int)
    for number in range(len(cut.cells)):
        seen[cut.box(number)] += 1
    assert seen.min() >= 1
    for first, side, length in zip((cut.rows, cut.columns), cut.tile, cut.size, strict=True):
        assert first[0] == 0
        assert first[-1] == length - side
        steps = np.diff(first)
        assert all(step <= max(1, side - round(overlap * side)) for step in steps)
        assert np.ptp(steps) <= 1 if len(steps) else True


@given(SIDES, SIDES, st.floats(0, 0.5))
def test_crossfades_add_up_to_one_and_fade_monotonically(length, side, overlap):
    cut = grid((length, 1), Tiling((side, 1), overlap))
    windows = crossfades(cut.rows, cut.tile[0], length)
    total = np.zeros(length)
    for start, window in zip(cut.rows, windows, strict=True):
        total[start : start + len(window)] += window
        assert window.min() > 0
    assert_allclose(total, 1, rtol=1e-6)


def test_a_crossfade_ends_near_zero():
    first = [0, 24]
    before, after = crossfades(first, 32, 56)
    assert before[-1] == pytest.approx(after[0])
    assert before[-1] < 0.02
    assert_allclose(before[:24], 1)
    assert (np.diff(before[24:]) < 0).all()


def test_tiles_are_parts_of_the_images_in_their_order():
    pixels = [np.arange(h * w, dtype=np.uint8).reshape(h, w) for h, w in [(10, 9), (4, 4), (4, 9)]]
    tiles = Tiles.cut(Images(pixels, (None, None, 1)), Tiling((4, 5), 0.25))
    cuts = [  # by hand: steps of at most 3 rows and 4 columns
        *(pixels[0][r : r + 4, c : c + 5] for r in (0, 3, 6) for c in (0, 4)),
        pixels[1],
        *(pixels[2][:, c : c + 5] for c in (0, 4)),
    ]
    assert len(tiles) == len(cuts) == 9
    for tile, expected in enumerate(cuts):
        assert_array_equal(tiles.read(tile)[..., 0], expected)
    assert [tiles.place(tile) for tile in (0, 5, 6, 7, 8)] == [
        (0, 0),
        (0, 5),
        (1, 0),
        (2, 0),
        (2, 1),
    ]
    assert tiles.of([2, 0]) == [7, 8, 0, 1, 2, 3, 4, 5]
    assert tiles.sizes([0, 6, 8]) == [(4, 5), (4, 4), (4, 5)]


def test_tiles_without_a_pixel_of_the_mask_are_left_out():
    mask = np.zeros((8, 12), bool)
    mask[1, 1] = mask[6, 9] = True
    images = Images(np.zeros((2, 8, 12), np.uint8), (8, 12, 1))
    images.look_at([Roi((0, 0, 8, 12), mask, (8, 12))] * 2, skip=False)
    tiles = Tiles.cut(images, Tiling((4, 4), 0.0))
    assert len(tiles) == 4
    assert [tiles.grids[0].cells, tiles.grids[1].cells] == [[(0, 0), (1, 2)]] * 2
    (first, second) = tiles.masks([2, 3])
    assert_array_equal(np.argwhere(first), [[1, 1]])
    assert_array_equal(np.argwhere(second), [[2, 1]])


def test_drawn_tiles_are_some_of_all_in_order():
    pixels = [np.arange(64, dtype=np.uint8).reshape(8, 8) + i for i in range(6)]
    tiles = Tiles.cut(Images(pixels, (None, None, 1)), Tiling((4, 4), 0.0))
    assert tiles.drawn(24, 0) is tiles
    drawn = tiles.drawn(10, 0)
    assert len(drawn) == 10
    everything = [(tiles.place(i)[0], tiles.read(i).tobytes()) for i in range(len(tiles))]
    found = [(drawn.place(i)[0], drawn.read(i).tobytes()) for i in range(len(drawn))]
    places = [everything.index(each) for each in found]
    assert places == sorted(set(places))
    again, other = tiles.drawn(10, 0), tiles.drawn(10, 1)
    assert [g.cells for g in again.grids] == [g.cells for g in drawn.grids]
    assert [g.cells for g in other.grids] != [g.cells for g in drawn.grids]


class Counted:
    """Images that count how often each is read."""

    def __init__(self, n):
        self.read = [0] * n
        self._lock = threading.Lock()

    def __len__(self):
        return len(self.read)

    def __getitem__(self, index):
        with self._lock:
            self.read[index] += 1
        return np.full((16, 16), index, np.uint8)


@pytest.mark.parametrize("n_threads", [1, 8])
def test_an_image_is_read_once_for_all_its_tiles(n_threads):
    items = Counted(6)
    tiles = Tiles.cut(Images(items, (16, 16, 1)), Tiling((4, 4), 0.0))
    order = iter(range(len(tiles)))
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                tile = next(order, None)
            if tile is None:
                return
            assert (tiles.read(tile) == tiles.place(tile)[0]).all()

    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert items.read == [1] * 6 if n_threads == 1 else max(items.read) <= 2


def test_only_a_few_images_stay_in_memory():
    items = Counted(50)
    tiles = Tiles.cut(Images(items, (16, 16, 1)), Tiling((8, 8), 0.0))
    for tile in range(len(tiles)):
        tiles.read(tile)
        assert len(tiles.images._recent) <= 2


def test_runs_are_neighbours_of_one_size_of_limited_area():
    large, small = np.zeros((600, 600), np.uint8), np.zeros((30, 40), np.uint8)
    images = Images([large] * 3 + [small] * 400 + [large], (None, None, 1))
    tiles = Tiles.cut(images, Tiling())
    order = [*range(404)][::-1]
    runs = tiles.runs(order, 2**18)
    assert [index for run in runs for index in run] == order
    assert [len(run) for run in runs] == [1, 218, 182, 1, 1, 1]
    assert tiles.runs([5, 6, 7, 0, 5], 2 * 30 * 40) == [[5, 6], [7], [0], [5]]
    assert tiles.runs([], 1) == []
