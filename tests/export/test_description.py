"""What is read of an exported file's metadata, and what is said of metadata that was edited."""

from __future__ import annotations

import pytest

from skmkd._export.description import read_description
from skmkd._images.pixel_range import PixelRange

TOLD = {
    "offset": -0.5, "map_offset": 1, "image_shape": [None, None, 3],
    "pixel_range": [0, 255, "uint8"], "seen_pixels": None, "image_size": [16, 20],
    "roi": [1, 2, 10, 12], "frame": None,
}  # fmt: skip


def test_all_that_is_told():
    found = read_description(TOLD)
    assert (found.offset, found.map_offset) == (-0.5, 1.0)
    assert found.image_shape == (None, None, 3)
    assert found.pixel_range == PixelRange(0, 255, "uint8")
    assert found.seen_pixels is None
    assert found.image_size == (16, 20)
    assert found.roi.box == (1, 2, 10, 12)
    assert found.roi.frame is None
    assert read_description(TOLD | {"roi": None}).roi is None


@pytest.mark.parametrize("name", TOLD)
def test_what_is_missing_is_named(name):
    told = {key: value for key, value in TOLD.items() if key != name}
    with pytest.raises(ValueError, match=f"must have a valid '{name}'; got none"):
        read_description(told)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offset", "low"), ("map_offset", None), ("image_shape", [1, 2]), ("image_shape", None),
        ("pixel_range", [0, 1]), ("pixel_range", [0, 1, "int4"]), ("seen_pixels", [1]),
        ("image_size", [0, 0]), ("image_size", "x"), ("roi", [1]), ("frame", [4, -1]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(name, value):
    with pytest.raises(ValueError, match=f"must have a valid '{name}'; got "):
        read_description(TOLD | {name: value})
