"""Pictures and maps that are written: small, and still showing every region."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from skmkd._cli.localization import (
    LONGEST,
    compact_map,
    picture,
    picture_size,
    region_rows,
    write_files,
)
from skmkd._images.checks import image_list
from skmkd._images.pixel_range import PixelRange
from skmkd._maps.finishing import resize_maps
from skmkd._regions import regions

NAN = float("nan")


def test_pictures_of_large_images_are_small_and_keep_their_aspect():
    assert picture_size((2048, 2448)) == (857, LONGEST)
    assert picture_size((5000, 3)) == (LONGEST, 1)
    assert picture_size((25, LONGEST)) == (25, LONGEST)


def drawn(image, single, threshold=0.5):
    pixel_range = image_list([image]).pixel_range
    return np.asarray(picture(image, single, threshold, pixel_range)).astype(int)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_pictures_show_the_image_shrunk(kind, channels):
    rows, columns = np.mgrid[:1536, :2048] / 2048
    grey = (rows + columns) / 2
    image = np.stack([grey] * (channels[0] if channels else 1), axis=-1)
    if channels == (4,):
        image[..., 3] = 0.25
    white = 1.0 if kind == "float32" else np.iinfo(kind).max
    image = (white * image).astype(kind)
    pixels = drawn(image if channels else image[..., 0], np.zeros((1536, 2048), np.float32))
    assert pixels.shape == (768, 1024, 3)
    expected = grey.reshape(768, 2, 1024, 2).mean(axis=(1, 3))[..., None]
    if channels == (4,):
        expected = 0.25 * expected + 0.75
    assert np.abs(pixels / 255 - expected).max() < 2 / 255


def test_every_region_is_seen_in_the_picture():
    image, single = np.zeros((3000, 2000), np.uint8), np.zeros((3000, 2000), np.float32)
    places = [(0, 0), (1501, 7), (2999, 1999), (1234, 1001)]
    for place in places:
        single[place] = 0.6  # one pixel of each 2.9 x 2.9
    coloured = drawn(image, single).any(axis=2)
    assert coloured.shape == (1024, 683)
    for row, column in places:
        assert coloured[row * 1024 // 3000, column * 683 // 2000]
    assert coloured.sum() <= 4 * len(places)


def test_pictures_of_small_images_have_their_pixels():
    image = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    single = np.full((20, 30), NAN, np.float32)
    assert_array_equal(drawn(image, single), np.repeat(image[..., None], 3, axis=2))


def test_pictures_show_what_is_outside_the_region_of_interest():
    image = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    kept = image.copy()
    image[0, :3] = NAN, np.inf, -np.inf
    single, pixel_range = np.zeros((20, 30), np.float32), PixelRange(0.0, 1.0, "float")
    pixels = np.asarray(picture(image, single, 0.5, pixel_range))
    assert np.abs(pixels[1:, :, 0] / 255 - kept[1:]).max() < 1 / 255
    assert pixels[0, :3, 0].tolist() == [0, 255, 0]
    assert_array_equal(image[0, :3], [NAN, np.inf, -np.inf])  # the caller's image is not changed


def test_a_map_in_its_own_size_is_only_rounded():
    single = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
    found = compact_map(single, (9, 12))
    assert found.dtype == np.float16
    assert_array_equal(found, single.astype(np.float16))


@pytest.mark.parametrize("size", [(45, 60), (128, 128), (37, 51), (9, 200)])
def test_a_map_is_had_back_in_the_size_of_the_networks(size):
    import torch

    rng = np.random.default_rng(0)
    original = resize_maps(torch.from_numpy(rng.random((1, 3, 4), dtype=np.float32)), (9, 12))
    large = resize_maps(original, size)[0].numpy()
    found = compact_map(large, (9, 12)).astype(np.float32)
    assert_allclose(found, original[0], atol=0.03)
    assert np.abs(found - original[0].numpy()).mean() < 0.005


@pytest.mark.parametrize("scale", [1e-7, 1e7])
def test_maps_beyond_the_range_of_float16_stay_float32(scale):
    single = (scale * np.random.default_rng(0).random((5, 5))).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compact_map(single, (5, 5))
    assert found.dtype == np.float32
    assert_array_equal(found, single)


@pytest.mark.parametrize("value", [0.0, NAN])
def test_maps_without_contrast_are_float16(value):
    found = compact_map(np.full((8, 8), value, np.float32), (4, 4))
    assert found.dtype == np.float16
    assert_array_equal(found, np.full((4, 4), value))


def test_files_are_sharp_and_their_folder_is_made(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 190, (40, 40, 3), dtype=np.uint8)
    pixels[10:20, 10:20] = (255, 120, 0)
    write_files(tmp_path / "a/b.c", Image.fromarray(pixels), np.zeros((2, 2)))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b.c.jpg", "b.c.npy"]
    with Image.open(tmp_path / "a/b.c.jpg") as read:
        assert np.abs(np.asarray(read).astype(int) - pixels).mean() < 5  # noise is the worst case
    write_files(tmp_path / "d", Image.fromarray(pixels), None)
    assert not (tmp_path / "d.npy").exists()


def test_a_picture_of_a_plate_is_compact():
    rng = np.random.default_rng(0)
    image = (128 + rng.normal(0, 6, (2048, 2448))).clip(0, 255).astype(np.uint8)
    file = BytesIO()
    single, pixel_range = np.zeros(image.shape, np.float32), PixelRange(0.0, 255.0, "uint8")
    shown = picture(image, single, 0.5, pixel_range)
    shown.save(file, "JPEG", quality=95, subsampling=0)
    assert len(file.getvalue()) < 500_000


def test_rows_are_the_regions_with_their_numbers():
    (found,) = regions([[[0, 3, 3], [0, 0, 0], [1, 0, 0]]], 0.5)
    assert region_rows("a.png", found) == [
        ("a.png", 1, 0, 1, 1, 3, 2, 0.0, 1.5, 3.0, 3.0),
        ("a.png", 2, 2, 0, 3, 1, 1, 2.0, 0.0, 1.0, 1.0),
    ]
