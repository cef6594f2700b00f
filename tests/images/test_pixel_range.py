from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skmkd._images.pixel_range import (
    PixelRange,
    Reach,
    clipped,
    extent,
    kind_of,
    learned_range,
    plausible,
    quantiles,
    rounded,
    seen_in,
    without_strays,
)

RNG = np.random.default_rng(0)
UNIT = PixelRange(0.0, 1.0, "float")


def fitted_in(image, known, has_alpha):
    return clipped(image, (image.min(), image.max()), known, has_alpha)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("?", "bool"), ("u1", "uint8"), ("u2", "uint16"), (">u2", "uint16"), ("i2", "float"),
     ("u4", "float"), ("f2", "float"), ("f8", "float")],
)  # fmt: skip
def test_kinds_of_number(dtype, kind):
    assert kind_of(np.dtype(dtype)) == kind


def test_extent_tells_most_pixels_from_a_single_one():
    image = RNG.normal(100, 5, (200, 300, 1))
    image[7, 7] = -9999
    got = extent(image)
    assert got.low == got.isolated == -9999
    assert got.high == image.max()
    assert got[2:4] == pytest.approx(np.quantile(image, (0.02, 0.98)), abs=1)


@pytest.mark.parametrize("shape", [(1000, 1000, 3), (2000, 1000, 1), (3000, 4000, 1)])
def test_most_pixels_are_those_of_all_columns_and_channels(shape):
    image = np.broadcast_to(np.linspace(0, 1, shape[1])[:, None], shape).copy()
    image[..., 0] *= 2
    assert quantiles(image, (0.25, 0.5, 0.75)) == pytest.approx(
        np.quantile(image, (0.25, 0.5, 0.75)), abs=0.1
    )
    assert quantiles(image, (0.1,)) == quantiles(image, (0.1,))


SCENE = RNG.normal(280, 8, (60, 60, 1))
BORDER = np.pad(SCENE, ((4, 4), (4, 4), (0, 0)), constant_values=-9999)
SPOTS = np.abs(RNG.normal(0, 1, (60, 60, 1)))
SPOTS[10:13, 20:26] = np.linspace(5, 900, 18).reshape(3, 6, 1)
PRINT = np.where(np.arange(60)[None, :, None] % 7 == 0, RNG.uniform(0, 250, (60, 60, 1)), 250)


@pytest.mark.parametrize(
    ("image", "isolated"),
    [(SCENE, None), (BORDER, -9999), (-BORDER, 9999), (SPOTS, None), (PRINT, None),
     (np.full((9, 9, 1), 3.0), None), (np.array([[[0.1], [0.11], [2.9]]]), None)],
    ids=["scene", "border", "high border", "bright spots", "print", "one value", "three numbers"],
)  # fmt: skip
def test_an_isolated_value_is_told_from_rare_ones(image, isolated):
    assert extent(image).isolated == isolated


@pytest.mark.parametrize(
    ("values", "kind", "has_alpha", "expected"),
    [
        ((0.1, 0.9), "float", False, (0, 1)),
        ((-0.1, 0.9), "float", False, (-0.1, 0.9)),
        ((51241, 52181), "uint16", False, (51241, 52181)),
        ((3, 900), "uint16", False, (0, 1023)),
        ((800, 4095), "uint16", False, (0, 4095)),
        ((16, 65520), "uint16", False, (0, 65535)),
        ((20, 21), "uint16", False, (20, 21)),
        ((9, 9), "uint16", False, (9, 9)),
        ((100, 200), "uint16", True, (0, 65535)),
        ((0.3, 0.4), "float", True, (0, 1)),
        ((7.0, 7.0), "float", False, (7, 7)),
    ],
)
def test_learned_range(values, kind, has_alpha, expected):
    extents = [extent(np.full((2, 2, 1), value)) for value in values]
    assert learned_range(extents, kind, has_alpha) == (*expected, kind)


def test_floats_with_alpha_are_from_0_to_1():
    with pytest.raises(ValueError, match="got floats from 0 to 255"):
        learned_range([extent(np.array([0.0, 255.0]))], "float", True)


def test_pixels_far_outside_are_clipped_at_ten_widths():
    image = np.full((5, 5, 1), 0.5, np.float32)
    image[0, 0], image[1, 1], image[2, 2] = 90, -90, 10.9
    got = fitted_in(image, UNIT, False)
    assert [got[i, i, 0] for i in range(4)] == pytest.approx([11, -10, 10.9, 0.5])
    assert image[0, 0] == 90
    inside = np.full((5, 5, 1), 10.9)
    assert fitted_in(inside, UNIT, False) is inside


@pytest.mark.parametrize(("value", "has_alpha"), [(11.1, False), (-10.1, False), (1.02, True)])
def test_whole_images_far_outside_are_at_another_scale(value, has_alpha):
    with pytest.raises(ValueError, match="must lie near the pixel range 0 to 1"):
        fitted_in(np.full((4, 4, 4), value), UNIT, has_alpha)


def test_alpha_may_be_rounded():
    image = np.full((2, 2, 4), 1.005)
    assert_array_equal(fitted_in(image, UNIT, True), image)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, True),
        (lambda x: 0.6 * x, True),  # darker
        (lambda x: x + 0.3, True),  # brighter
        (lambda x: x / 255, False),
        (lambda x: 2 * x - 1, False),
        (lambda x: 3 * x, False),
    ],
)
def test_scale_shows_in_contrast_and_range(change, expected):
    image = np.linspace(0.05, 0.95, 2500).reshape(50, 50, 1)
    seen = seen_in([extent(image), extent(0.9 * image)])
    assert seen == pytest.approx((0.061, 0.932, 0.777), abs=0.02)
    assert plausible(change(image), seen) is expected


def test_a_hot_spot_is_on_the_scale():
    image = np.linspace(0.05, 0.95, 2500).reshape(50, 50, 1)
    seen = seen_in([extent(image)])
    image[3, 3] = 50
    assert plausible(image, seen)


@pytest.mark.parametrize(
    ("image", "kept"),
    [
        (np.array([0.1, 1.0]), True),
        (np.array([0, 2**24 - 1]), True),
        (np.array([2**24, 2**24 + 1]), False),
        (np.array([1e6, 1e6 + 0.1]), False),
        (np.array([-1e30, 1e30]), True),
    ],
)
def test_what_float32_would_round_is_refused(image, kept):
    known = PixelRange(float(image.min()), float(image.max()), "float")
    if kept:
        found = rounded(image, known)
        assert found.dtype == np.float32
        assert np.abs(found - image).max() <= 1e-6 * known.width
        return
    with pytest.raises(ValueError, match="float32 tells apart; rounding changes them by"):
        rounded(image, known)


def learned_with(changes):
    """Return the range of 40 images, some of whose pixels were changed, and who has strays."""
    images = [np.clip(RNG.normal(25, 2, (30, 30, 1)), 17, 33) for _ in range(40)]
    for i, values in changes.items():
        images[i].flat[: np.size(values)] = values
    extents = [extent(image) for image in images]
    near = without_strays(extents, images.__getitem__)
    low, high, _ = learned_range(near, "float", False)
    strays = [i for i, each in enumerate(near) if each.stray is not None]
    return low, high, strays


@pytest.mark.parametrize("value", [1e10, -1e10, -9999, 3e38, -3e38, 500, 1e6])
@pytest.mark.parametrize("holders", [[3], [3, 9, 20], list(range(40))])
def test_far_pixels_do_not_count_for_the_range(value, holders):
    low, high, strays = learned_with(dict.fromkeys(holders, [value] * 5))
    assert 17 <= low < high <= 33
    assert strays == holders


def test_far_pixels_of_any_values_in_any_place():
    changes = {3: [1e10, 7e9, 5e9], 5: [-9999, 1e5], 6: [-3e38, 3e38, 1e20, 400]}
    _, high, strays = learned_with(changes)
    assert high <= 33
    assert strays == [3, 5, 6]
    tails = {i: [50, 100, 250, 600] for i in range(40)} | {7: [50, 1e10]}
    _, high, strays = learned_with(tails)
    assert high == 600  # values fade out to it, which 1e10 does not
    assert strays == [7]


def test_pixels_that_count_keep_their_extents():
    scenes = {
        "hot": {7: [60, 90]}, "fading": {7: [40, 90, 200, 500, 1200]}, "none": {},
    }  # fmt: skip
    for changes in scenes.values():
        _, high, strays = learned_with(changes)
        assert strays == []
        assert high == max([33, *(v for values in changes.values() for v in values)])
    for image in (SCENE, PRINT, SPOTS, np.full((9, 9, 1), 3.0)):
        extents = [extent(image)] * 12
        assert without_strays(extents, lambda _, image=image: image) == extents


def test_whole_images_far_away_are_beyond_the_reach_of_others():
    extents = [extent(SCENE + i) for i in range(20)]
    reach = Reach.of([*extents, extent(1000 * SCENE)])
    assert 250 < reach.low < 270 < 300 < reach.high < 325
    assert [reach.is_beyond(each) for each in extents] == [False] * 20
    assert reach.is_beyond(extent(1000 * SCENE))
    assert reach.is_beyond(extent(SCENE - 5000))
    assert not reach.is_beyond(extent(2 * SCENE))
    hole = SCENE.copy()
    hole[:20] = -9999  # a third
    assert not reach.is_beyond(extent(hole))
    constant = Reach.of([extent(np.full((9, 9, 1), 3.0))] * 3)
    assert not constant.is_beyond(extent(SCENE))
