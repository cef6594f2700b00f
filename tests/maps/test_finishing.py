from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage.morphology import disk

from skmkd._maps.finishing import (
    blur,
    blurred_maximum,
    grey_opening,
    localization_maps,
    resize_maps,
    resized_maps,
)


@pytest.fixture
def maps():
    return torch.from_numpy(np.random.default_rng(0).random((3, 20, 30), dtype=np.float32))


@pytest.mark.parametrize("sigma", [0, 0.3, 2.0, 4, 15.0])
def test_blur_is_the_gaussian_filter_of_scipy(maps, sigma):
    for got, single in zip(blur(maps, sigma), maps.numpy(), strict=True):
        assert_allclose(got, ndimage.gaussian_filter(single, sigma), atol=1e-6)


def test_blur_of_a_point_is_the_gaussian():
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1
    r, c = np.mgrid[-20:21, -20:21]
    gaussian = np.exp(-(r**2 + c**2) / (2 * 3.0**2)) / (2 * np.pi * 3.0**2)
    assert_allclose(blur(point, 3.0)[0], gaussian, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9])
def test_opening_is_the_grey_opening_of_scipy(maps, size):
    for got, single in zip(grey_opening(maps, size), maps.numpy(), strict=True):
        assert_array_equal(got, ndimage.grey_opening(single, footprint=disk(size // 2)))


def test_a_disk_larger_than_the_map_leaves_its_minimum(maps):
    small = maps[:, :3, :4]
    assert_array_equal(grey_opening(small, 21), small.amin((1, 2), keepdim=True).expand(3, 3, 4))


def test_opening_removes_specks_and_keeps_what_the_disk_fits_into():
    cross = ndimage.generate_binary_structure(2, 1)
    bright = torch.zeros(1, 12, 12)
    bright[0, 1, 1] = 5
    bright[0, 4:7, 4:7][cross] = 3
    opened = grey_opening(bright, 3)
    assert opened[0, 1, 1] == 0
    assert (opened[0, 4:7, 4:7][cross] == 3).all()
    assert opened.sum() == 15


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9])
def test_opening_keeps_a_disk_and_removes_an_incomplete_one(size):
    r, c = np.mgrid[-6:7, -6:7]
    whole = torch.from_numpy(np.float32(r**2 + c**2 <= (size // 2) ** 2))[None]
    assert_array_equal(grey_opening(whole, size), whole)
    whole[0, 6, 6] = 0
    assert not grey_opening(whole, size).any()


def test_sigma_0_and_size_1_leave_maps_unchanged(maps):
    assert_array_equal(localization_maps(maps, 0, 1), maps)


def test_localization_maps_are_blurred_then_opened(maps):
    assert_array_equal(localization_maps(maps, 1.5, 3), grey_opening(blur(maps, 1.5), 3))


def test_blurred_maximum_is_that_of_each_map(maps):
    got = blurred_maximum(maps, 1.5)
    expected = [ndimage.gaussian_filter(single, 1.5).max() for single in maps.numpy()]
    assert_allclose(got, expected, rtol=1e-6)
    inside = torch.zeros(3, 20, 30, dtype=torch.bool)
    inside[0, 3:9, 4:] = inside[1] = True
    first = ndimage.gaussian_filter(maps[0].numpy(), 1.5)[3:9, 4:].max()
    assert_allclose(blurred_maximum(maps, 1.5, inside), [first, expected[1], 0], rtol=1e-6)


def test_a_map_is_averaged_where_it_is_made_smaller():
    stripes = torch.tensor([1.0, 0, 0, 0]).repeat(1, 16, 4)
    assert_allclose(resize_maps(stripes, (4, 4))[0, :, 1:-1], 0.25, atol=1e-6)


def test_resize(maps):
    up = resize_maps(maps, (57, 33))
    assert up.shape == (3, 57, 33)
    assert up.dtype == torch.float32
    assert maps.min() <= up.min() <= up.max() <= maps.max()
    assert_array_equal(resize_maps(maps, (20, 30)), maps)
    assert_allclose(resize_maps(torch.full((1, 4, 4), 2.0), (9, 3)), 2, rtol=1e-6)


@pytest.mark.parametrize("pixels", [1, 2000, 2**22])
def test_maps_are_resized_to_sizes_of_their_own_in_order(maps, monkeypatch, pixels):
    monkeypatch.setattr("skmkd._maps.finishing.RESIZED_PIXELS", pixels)
    sizes = [(20, 30), (20, 30), (9, 9), (40, 5), (40, 5), (20, 30)]
    six = torch.cat([maps, maps + 1])
    made = list(resized_maps(six, sizes))
    assert [single.shape for single in made] == sizes
    for got, single, size in zip(made, six, sizes, strict=True):
        assert_allclose(got, resize_maps(single[None], size)[0], rtol=1e-6)
    assert list(resized_maps(maps[:0], [])) == []
