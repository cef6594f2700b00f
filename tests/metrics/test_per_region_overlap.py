"""AUPRO and its curve against a computation that follows the definition, pixel by pixel."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose
from sklearn.exceptions import UndefinedMetricWarning

from skmkd.metrics import _pixels, aupro_score, per_region_overlap_curve
from skmkd.metrics._per_region_overlap import area_share, curve_until

LEVELS = np.float32([-2.5, -1, 0, 0, 0.25, 0.5, 1, 1e-7, 3e8])  # ties are the hard part


@st.composite
def localizations(draw):
    """Draw masks and maps, with at least one anomalous and one normal pixel."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)))
    masks = draw(arrays(bool, shape))
    maps = LEVELS[draw(arrays(np.int8, shape, elements=st.integers(0, len(LEVELS) - 1)))]
    assume(masks.any() and not masks.all())
    return masks, maps


def regions(mask):
    """Collect the regions of a mask, as sets of pixels, by walking from pixel to pixel."""
    left = {tuple(pixel) for pixel in np.argwhere(mask).tolist()}
    found = []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            row, column = edge.pop()
            region.add((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.append(region)
    return found


def brute_force_curve(masks, maps):
    """Threshold all maps at each of their values; go by the definition of both rates."""
    fpr, pro = [0.0], [0.0]
    normal = sum(int((~mask).sum()) for mask in masks)
    for threshold in sorted({float(v) for single in maps for v in single.ravel()}, reverse=True):
        overlaps, false = [], 0
        for mask, single in zip(masks, maps, strict=True):
            found = single >= threshold
            false += int((found & ~mask).sum())
            overlaps += [np.mean([found[pixel] for pixel in r]) for r in regions(mask)]
        fpr.append(false / normal)
        pro.append(float(np.mean(overlaps)))
    return fpr, pro


def brute_force_aupro(masks, maps, max_fpr):
    """Sum trapezoids, the last of them cut at max_fpr."""
    fpr, pro = brute_force_curve(masks, maps)
    area = 0.0
    for i in range(1, len(fpr)):
        left, right, low, high = fpr[i - 1], fpr[i], pro[i - 1], pro[i]
        if left >= max_fpr:
            break
        if right > max_fpr:
            high = low + (high - low) * (max_fpr - left) / (right - left)
            right = max_fpr
        area += (right - left) * (low + high) / 2
    return area / max_fpr


@given(localizations(), st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_aupro_is_what_the_definition_says(case, max_fpr):
    masks, maps = case
    expected = brute_force_aupro(masks, maps, max_fpr)
    got = aupro_score(masks, maps, max_fpr)
    assert got == pytest.approx(expected, abs=1e-12)
    assert 0 <= got <= 1
    assert aupro_score(masks, maps, max_fpr, exact=False) == pytest.approx(expected, abs=1e-12)


@given(localizations())
def test_curve_is_what_the_definition_says_at_each_threshold(case):
    masks, maps = case
    fpr, pro, thresholds = per_region_overlap_curve(masks, maps)
    points = zip(*brute_force_curve(masks, maps), strict=True)
    values = sorted(set(maps.ravel().tolist()), reverse=True)
    expected = dict(zip([np.inf, *values], points, strict=True))
    for rates, threshold in zip(zip(fpr, pro, strict=True), thresholds.tolist(), strict=True):
        assert rates == pytest.approx(expected[threshold], abs=1e-12)
    assert (fpr[0], pro[0], thresholds[0]) == (0, 0, np.inf)
    assert fpr[-1] == pro[-1] == 1


@given(localizations(), st.sampled_from([np.arctan, np.cbrt, lambda x: 2 * x - 1]))
def test_aupro_depends_on_the_order_of_values_only(case, increasing):
    masks, maps = case
    transformed = increasing(maps.astype(np.float64))
    assume(len(np.unique(transformed)) == len(np.unique(maps)))
    assert aupro_score(masks, transformed) == pytest.approx(aupro_score(masks, maps), abs=1e-12)


def discs(n=6, side=40, seed=0):
    """Synthetic masks with two discs in every other image, and maps that see them dimly."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    masks = np.zeros((n, side, side), bool)
    for mask in masks[::2]:
        for radius in (2, 6):
            row, column = rng.uniform(8, side - 8, 2)
            mask |= (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    return masks, rng.normal(masks, 1).astype(np.float32)


@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 0.7])
def test_rounding_does_not_lift_the_area_above_one(max_fpr):
    fpr = np.append(0, np.sort(np.random.default_rng(0).random(1000)))
    assert area_share(*curve_until(max_fpr, fpr, np.ones(1001))) == pytest.approx(1)
    assert area_share(*curve_until(max_fpr, fpr, np.ones(1001))) <= 1


def test_area_that_rounding_lifts_is_exactly_one():
    fpr = np.random.default_rng(0).random((500, 20)).cumsum(1)
    fpr[:, 0] = 0
    assert any(np.trapezoid(np.ones(20), each) / each[-1] > 1 for each in fpr)
    assert all(area_share(each, np.ones(20)) <= 1 for each in fpr)


def test_curve_and_area_are_exact_by_default_only(monkeypatch):
    monkeypatch.setattr(_pixels, "N_THRESHOLDS", 3)
    masks, maps = discs()
    thresholds = {
        exact: per_region_overlap_curve(masks, maps, exact=exact)[2] for exact in (True, False)
    }
    assert len(thresholds[False]) < len(thresholds[True])
    np.testing.assert_array_equal(per_region_overlap_curve(masks, maps)[2], thresholds[True])
    areas = {exact: aupro_score(masks, maps, exact=exact) for exact in (True, False)}
    assert areas[False] != areas[True] == aupro_score(masks, maps)
    assert all(type(area) is float for area in areas.values())


def test_perfect_map_has_one_and_the_worst_has_none():
    masks, _ = discs()
    assert aupro_score(masks, masks.astype(float)) == 1
    assert aupro_score(masks, -masks.astype(float)) == 0


@pytest.mark.parametrize("max_fpr", [0.01, 0.3, 1.0])
def test_constant_map_has_the_area_of_chance(max_fpr):
    masks, maps = discs()
    assert aupro_score(masks, np.zeros_like(maps), max_fpr) == pytest.approx(max_fpr / 2)


def test_small_regions_weigh_as_much_as_large_ones():
    mask = np.zeros((1, 10, 10), bool)
    mask[0, :5] = mask[0, 9, 9] = True  # fifty pixels and one
    found = np.zeros((1, 10, 10))
    found[0, 9, 9] = 1
    _, pro, _ = per_region_overlap_curve(mask, found)
    assert pro[1] == pytest.approx(0.5)


def test_pixels_that_touch_at_a_corner_are_one_region():
    mask, found = np.eye(4, dtype=bool)[None], np.zeros((1, 4, 4))
    found[0, 0, 0] = 1
    assert per_region_overlap_curve(mask, found)[1][1] == 0.25


def test_regions_end_with_their_image():
    masks, maps = np.ones((2, 1, 3), bool), np.float64([[[1, 1, 1]], [[0, 0, 0]]])
    masks[:, :, 0] = False
    assert per_region_overlap_curve(masks, maps)[1].tolist() == [0, 0.5, 1]


def test_normal_images_count():
    masks, maps = discs()
    alone = aupro_score(masks[::2], maps[::2])
    noisy = np.full((3, *maps.shape[1:]), maps.max() + 1)
    with_noisy = aupro_score([*masks[::2], *np.zeros_like(masks[:3])], [*maps[::2], *noisy])
    assert with_noisy < alone


def test_images_may_differ_in_size():
    masks, maps = discs()
    cut = [np.s_[: 40 - 3 * i, : 20 + 4 * i] for i in range(len(masks))]
    lists = ([m[c] for m, c in zip(masks, cut, strict=True)],
             [m[c] for m, c in zip(maps, cut, strict=True)])  # fmt: skip
    assert aupro_score(*lists) == pytest.approx(brute_force_aupro(*lists, 0.3), abs=1e-12)


@pytest.mark.parametrize(("value", "message"), [(False, "positive"), (True, "negative")])
def test_without_regions_or_without_normal_pixels_it_is_undefined(value, message):
    masks = np.full((2, 4, 4), value)
    maps = np.random.default_rng(0).random((2, 4, 4))
    with pytest.warns(UndefinedMetricWarning, match=f"No {message} samples"):
        assert np.isnan(aupro_score(masks, maps))


@pytest.mark.parametrize("max_fpr", [0, -0.1, 1.01, np.nan, "all", None])
def test_bad_max_fpr_is_refused(max_fpr):
    masks, maps = discs()
    with pytest.raises(ValueError, match=r"'max_fpr' parameter of aupro_score .* \(0.0, 1.0\]"):
        aupro_score(masks, maps, max_fpr)


def test_nothing_is_changed():
    masks, maps = discs()
    before = masks.copy(), maps.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aupro_score(masks, maps)
    assert_allclose(masks, before[0])
    assert_allclose(maps, before[1])
