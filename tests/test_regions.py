"""Regions against scipy.ndimage, which finds and measures them one by one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_array_equal
from scipy import ndimage

from skmkd import regions

NEIGHBOURS = np.ones((3, 3))
NAN = float("nan")


def expected_regions(single, mask):
    """Return (box, area, centroid, peak, mean) of each region of a mask, in the stated order."""
    labels, n = ndimage.label(mask, NEIGHBOURS)
    found = []
    for i, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels == i
        found.append((
            (box[0].start, box[1].start, box[0].stop, box[1].stop), int(inside.sum()),
            ndimage.center_of_mass(inside), float(single[inside].max()),
            pytest.approx(float(single[inside].astype(float).mean())),
            tuple(np.argwhere(inside)[0].tolist()),
        ))  # fmt: skip
    assert len(found) == n
    found.sort(key=lambda each: (-each[1], -each[3], each[5]))
    return [each[:5] for each in found]


def same(found, expected):
    assert [region._replace(centroid=pytest.approx(region.centroid)) for region in found] == [
        tuple(each) for each in expected
    ]


SMALL = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9),
               elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0, NAN]))  # fmt: skip
LEVELS = st.sampled_from([-2.0, -1.0, 0.0, 0.3, 0.5, 1.0, 3.0])


@given(SMALL, LEVELS)
def test_regions_are_those_of_ndimage(single, threshold):
    same(regions([single], threshold)[0], expected_regions(single, single > threshold))


@given(SMALL, LEVELS, LEVELS, st.integers(1, 6))
def test_hysteresis_and_least_area(single, one, other, min_area):
    low, high = sorted((one, other))
    mask = ndimage.binary_propagation(single > high, NEIGHBOURS, single > low)
    expected = [e for e in expected_regions(single, mask) if e[1] >= min_area]
    same(regions([single], high, low_threshold=low, min_area=min_area)[0], expected)


def test_large_smooth_maps_with_thousands_of_regions():
    single = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(700, 900)), 2)
    threshold = float(np.quantile(single, 0.9))
    (found,) = regions(single[None].astype(np.float32), threshold)
    labels, n = ndimage.label(single.astype(np.float32) > threshold, NEIGHBOURS)
    assert len(found) == n > 1000
    assert [r.area for r in found] == sorted(np.bincount(labels.ravel())[1:].tolist())[::-1]
    assert sum(r.area for r in found) == (labels > 0).sum()


def test_regions_of_equal_area_are_ordered_by_peak_then_position():
    single = np.zeros((5, 9))
    single[4, 0], single[0, 8], single[2, 4], single[0, 2], single[4, 6:8] = 2, 2, 3, 2, 1
    boxes = [region.box[:2] for region in regions([single], 0.5)[0]]
    assert boxes == [(4, 6), (2, 4), (0, 2), (0, 8), (4, 0)]


def test_position_is_that_of_the_first_pixel_in_reading_order():
    single = np.zeros((4, 7))
    single[0, 6] = single[1, 5] = single[2, 4] = 1  # reaches farther to the left, begins higher
    single[1, 1] = single[2, 1] = single[3, 1] = 1
    assert [region.box for region in regions([single], 0)[0]] == [(0, 4, 3, 7), (1, 1, 4, 2)]


def test_arrays_and_lists_and_their_types():
    maps = np.random.default_rng(0).random((3, 8, 9))
    found = regions(maps, 0.6)
    assert regions(list(maps), 0.6) == regions(maps.tolist(), 0.6) == found
    assert regions([maps[0], maps[1, :3]], 0.6)[0] == found[0]
    assert regions([], 0.6) == []
    region = found[0][0]
    assert {type(n) for n in (*region.box, region.area)} == {int}
    assert {type(x) for x in (*region.centroid, region.peak, region.mean)} == {float}
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_any_real_numbers(kind):
    single = np.array([[0, 1, 1], [0, 0, 0]]).astype(kind)
    (region,) = regions([single], 0.5)[0]
    assert region == ((0, 1, 1, 3), 2, (0.0, 1.5), 1.0, 1.0)


def test_unreadable_images_have_none():
    assert regions(np.full((2, 4, 4), NAN, np.float32), 0.5, low_threshold=-1) == [[], []]
    assert regions([np.empty((0, 5))], 0.5) == [[]]


def test_the_caller_keeps_the_maps():
    maps = np.random.default_rng(0).random((1, 6, 6)).astype(np.float32)
    before = maps.copy()
    regions(maps, 0.5, low_threshold=0.1)
    assert_array_equal(maps, before)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.zeros((4, 4)), r"got maps\[0\] of shape \(4,\)\. Wrap a single map as \[map\]"),
        (np.zeros((2, 4, 4, 1)), r"got maps\[0\] of shape \(4, 4, 1\)"),
        ([np.zeros((2, 2)), 3.0], r"got maps\[1\] of shape \(\)"),
        ([np.full((2, 2), "a")], r"must hold real numbers; got dtype <U1 in maps\[0\]"),
        ([np.zeros((2, 2), complex)], "must hold real numbers; got dtype complex128"),
    ],
)
def test_other_maps_are_refused(maps, message):
    with pytest.raises(ValueError, match=message):
        regions(maps, 0.5)


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": NAN}, {"threshold": "0.5"}, {"threshold": None}, {"min_area": 0},
     {"min_area": 2.5}, {"low_threshold": NAN}, {"low_threshold": "low"}],
)  # fmt: skip
def test_other_parameters_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"The '{name}' parameter of regions must be"):
        regions([], **{"threshold": 0.5} | wrong)
    with pytest.raises(ValueError, match=r"low_threshold must be at most threshold = 0\.5; got 1"):
        regions([], 0.5, low_threshold=1)
