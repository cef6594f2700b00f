from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from skmkd._maps.finishing import (
    blur,
    blurred_maximum,
    grey_opening,
    localization_maps,
    resize_map,
)


@pytest.fixture
def maps():
    return np.random.default_rng(0).random((3, 20, 30), dtype=np.float32)


def test_blur_treats_each_map_separately(maps):
    for got, single in zip(blur(maps, 2.0), maps, strict=True):
        assert_array_equal(got, ndimage.gaussian_filter(single, 2.0))


def test_blur_of_a_point_is_the_gaussian():
    point = np.zeros((1, 41, 41), np.float32)
    point[0, 20, 20] = 1
    r, c = np.mgrid[-20:21, -20:21]
    gaussian = np.exp(-(r**2 + c**2) / (2 * 3.0**2)) / (2 * np.pi * 3.0**2)
    assert_allclose(blur(point, 3.0)[0], gaussian, atol=1e-4)


def test_opening_removes_specks_and_keeps_what_the_disk_fits_into():
    cross = ndimage.generate_binary_structure(2, 1)
    bright = np.zeros((1, 12, 12), np.float32)
    bright[0, 1, 1] = 5
    bright[0, 4:7, 4:7][cross] = 3
    opened = grey_opening(bright, 3)
    assert opened[0, 1, 1] == 0
    assert (opened[0, 4:7, 4:7][cross] == 3).all()
    assert opened.sum() == 15


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9])
def test_opening_keeps_a_disk_and_removes_an_incomplete_one(size):
    r, c = np.mgrid[-6:7, -6:7]
    whole = np.float32(r**2 + c**2 <= (size // 2) ** 2)[None]
    assert_array_equal(grey_opening(whole, size), whole)
    whole[0, 6, 6] = 0
    assert not grey_opening(whole, size).any()


def test_opening_treats_each_map_separately(maps):
    for got, single in zip(grey_opening(maps, 5), maps, strict=True):
        assert_array_equal(got, grey_opening(single[None], 5)[0])


def test_sigma_0_and_size_1_leave_maps_unchanged(maps):
    assert_array_equal(localization_maps(maps, 0, 1), maps)


def test_localization_maps_are_blurred_then_opened(maps):
    assert_array_equal(localization_maps(maps, 1.5, 3), grey_opening(blur(maps, 1.5), 3))


def test_blurred_maximum_is_that_of_each_map(maps):
    got = blurred_maximum(torch.from_numpy(maps), 1.5)
    assert torch.is_tensor(got)
    assert_array_equal(got, [ndimage.gaussian_filter(single, 1.5).max() for single in maps])


def test_a_map_is_averaged_where_it_is_made_smaller():
    stripes = np.tile(np.float32([1, 0, 0, 0]), (16, 4))
    assert_allclose(resize_map(stripes, (4, 4))[:, 1:-1], 0.25, atol=1e-6)


def test_resize(maps):
    up = resize_map(maps[0], (57, 33))
    assert up.shape == (57, 33)
    assert up.dtype == np.float32
    assert maps[0].min() <= up.min() <= up.max() <= maps[0].max()
    assert_array_equal(resize_map(maps[0], maps[0].shape), maps[0])
    assert_allclose(resize_map(np.full((4, 4), 2, np.float32), (9, 3)), 2, rtol=1e-6)
