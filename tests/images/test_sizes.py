from __future__ import annotations

import numpy as np
import pytest

from skmkd._images.sizes import height_and_width, network_size
from skmkd._images.tiles import Tiling, grid


@pytest.mark.parametrize("size", [(8, 8, 8), (8,), (0, 8), (8.5, 8), (), 0, None, "big"])
def test_bad_size(size):
    with pytest.raises(ValueError, match="tile_size must be a side or .* got"):
        height_and_width(size, "tile_size")


def test_size_of_either_kind():
    assert height_and_width(32, "image_size") == (32, 32)
    assert height_and_width([16, np.int64(24)], "image_size") == (16, 24)
    assert {type(side) for side in height_and_width([16, np.int64(24)], "image_size")} == {int}


def grids(*frames, tile_size=None):
    return [grid(frame, Tiling(tile_size, 0.25)) for frame in frames]


def test_an_explicit_size_is_taken_without_a_word():
    assert network_size((16, 8), grids((4000, 4000))) == (16, 8)


@pytest.mark.parametrize(
    ("frames", "tile_size", "expected"),
    [
        ([(100, 100)] * 3, None, (128, 128)),
        ([(512, 512)], None, (128, 128)),  # shrunk four times, not more
        ([(512, 512)] * 2 + [(5000, 5000)], None, (128, 128)),  # most are
        ([(250, 100)], None, (128, 128)),
        ([(64, 2048)], None, (32, 512)),
        ([(300, 100)], None, (208, 80)),
        ([(100, 500)] * 2 + [(100, 100)], None, (64, 256)),
        ([(100, 500)] * 2 + [(500, 100)] * 2, None, (128, 128)),
        ([(2048, 2048)], (64, 96), (64, 96)),
        ([(2048, 2048)], (512, 256), (362, 181)),  # as many pixels as 256 x 256
        ([(2048, 2048)], (1024, 1024), (256, 256)),
        ([(64, 4096)], (64, 2048), (45, 1448)),
        ([(64, 64)], (8, 8), (32, 32)),  # the least that most sources take
        ([(64, 64)] * 3, (100, 100), (128, 128)),  # tiles are whole images
        ([(64, 2048)], (64, 3000), (32, 512)),
    ],
)
def test_automatic_size(frames, tile_size, expected):
    assert network_size("auto", grids(*frames, tile_size=tile_size)) == expected


@pytest.mark.parametrize(
    ("frames", "tile_size", "words"),
    [
        (
            [(128, 128)] + [(2048, 2448)] * 2, None,
            r"Images of 2048 x 2448 .* to 128 x 128, .*about 76 pixels.*Set tile_size to cut",
        ),
        ([(400, 1024)], None, "about 32 pixels"),
        (
            [(100, 100), (4096, 4096)], (2048, 2048),
            r"Tiles of 2048 x 2048 .* to 256 x 256.*32 pixels.*Set a smaller tile_size",
        ),
    ],
)  # fmt: skip
def test_images_that_are_shrunk_a_lot_are_warned_of(frames, tile_size, words):
    with pytest.warns(UserWarning, match=f"{words}.*image_size"):
        network_size("auto", grids(*frames, tile_size=tile_size))
