from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from skmkd._images.roi import Roi, as_roi, as_rois

MASK = np.zeros((6, 8), bool)
MASK[1:5, 2:7] = True
HOLE = MASK.copy()
HOLE[2, 3] = False


def test_a_rectangle():
    for rectangle in [(1, 2, 5, 7), [1, 2, 5, 7], np.array([1, 2, 5, 7])]:
        assert as_roi(rectangle) == Roi((1, 2, 5, 7))


def test_a_mask_that_is_a_rectangle_is_one_of_images_of_its_size():
    for mask in (MASK, MASK.astype(np.uint8) * 255, MASK.astype(float), MASK.tolist()):
        assert as_roi(mask) == Roi((1, 2, 5, 7), None, (6, 8))


def test_a_mask_is_kept_within_its_rectangle():
    region = as_roi(HOLE)
    assert region.box == (1, 2, 5, 7)
    assert_array_equal(region.mask, HOLE[1:5, 2:7])
    assert region.size == (4, 5)


def test_a_file_of_a_mask(tmp_path):
    Image.fromarray(HOLE.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    for path in (tmp_path / "mask.png", str(tmp_path / "mask.png")):
        assert_array_equal(as_roi(path).mask, as_roi(HOLE).mask)


def test_a_region_is_itself():
    region = as_roi(HOLE)
    assert as_roi(region) is region


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ((5, 2, 1, 7), "0 <= top < bottom"),
        ((-1, 2, 5, 7), "0 <= top < bottom"),
        ((1, 2, 5, 2), "0 <= left < right"),
        ((1, 2, 5), "rectangle .* got"),
        ((1.5, 2, 5, 7), "rectangle .* got"),
        (3, "rectangle .* got 3"),
        (np.zeros((3, 4, 5)), r"got ndarray of shape \(3, 4, 5\)"),
        ([[1], [1, 2]], "ragged"),
        (torch.ones((4, 4), requires_grad=True), "requires grad"),
        (np.zeros((4, 4)), "a mask without any"),
        (np.full((2, 2), "a"), "rectangle"),
        (np.full((4, 4), np.nan), "mask without NaN"),
        ("no such file.png", "path of one; no such file.png cannot be read"),
    ],
)
def test_what_is_no_region(roi, message):
    with pytest.raises(ValueError, match=f"roi must .*{message}"):
        as_roi(roi)


def test_one_region_for_all_or_one_each(tmp_path):
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    assert as_rois((1, 2, 5, 7), 3) == [Roi((1, 2, 5, 7))] * 3
    assert as_rois(MASK, 2) == [as_roi(MASK)] * 2
    each = [(0, 0, 2, 2), MASK, tmp_path / "mask.png"]
    assert as_rois(each, 3) == [as_roi(roi) for roi in each]
    assert as_rois(np.stack([MASK, ~MASK]), 2)[0] == as_roi(MASK)
    with pytest.raises(ValueError, match="one for each of 2 images; got 3"):
        as_rois(each, 2)
    rectangles = [(0, 0, 2, 2), (1, 2, 5, 7)]
    expected = [as_roi(each) for each in rectangles]
    paths = [str(tmp_path / "mask.png")] * 2
    for several in (
        rectangles,
        np.array(rectangles),
        pd.DataFrame(rectangles),
        pd.Series(rectangles),
    ):
        assert as_rois(several, 2) == expected
    for several in (paths, np.array(paths), pd.Series(paths)):
        first, second = as_rois(several, 2)
        assert first is second  # read once
    assert as_rois(MASK.tolist(), 2) == [as_roi(MASK)] * 2
    with pytest.raises(ValueError, match=r"rectangle .* got \(0.0, 0.0, 2.0, 2.0\)"):
        as_rois((0.0, 0.0, 2.0, 2.0), 4)
    with pytest.raises(ValueError, match=r"roi\[1\] must be"):
        as_rois([(0, 0, 2, 2), (3, 3, 1, 1)], 2)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.float32])
def test_what_is_outside_has_the_mean_of_what_is_inside(dtype):
    rng = np.random.default_rng(0)
    image = rng.random((6, 8, 3)) * (1 if dtype is np.float32 else 2 if dtype is bool else 200)
    image = image.astype(dtype)
    found = as_roi(HOLE).cut(image)
    assert found.dtype == dtype
    assert found.shape == (4, 5, 3)
    inside = HOLE[1:5, 2:7]
    assert_array_equal(found[inside], image[HOLE])
    mean = image[HOLE].mean(axis=0, dtype=np.float64)
    expected = (mean if dtype is np.float32 else mean.round()).astype(dtype)
    assert_array_equal(found[1, 1], expected)


def test_what_is_outside_has_no_influence():
    image = np.random.default_rng(0).random((6, 8, 1))
    other = np.where(HOLE[..., None], image, np.nan)
    assert_array_equal(as_roi(HOLE).cut(image), as_roi(HOLE).cut(other))


def test_a_map_is_placed_in_its_frame():
    whole = as_roi(HOLE).placed(np.ones((4, 5), np.float32), (6, 8))
    assert whole.dtype == np.float32
    assert_array_equal(whole > 0, HOLE)


def test_images_of_another_size_do_not_fit():
    with pytest.raises(ValueError, match=r"size of the mask roi, \(6, 8\); got \(6, 9\)"):
        as_roi(HOLE).check((6, 9, 3))
    with pytest.raises(ValueError, match=r"must hold the rectangle roi=\(1, 2, 5, 7\)"):
        as_roi((1, 2, 5, 7)).check((9, 6))
    as_roi((1, 2, 5, 7)).check((5, 7))
