"""Weighted pixels: what is refused, what is kept, and how much memory it takes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from skmkd.metrics import _pixels, aupro_score, pixel_roc_auc_score
from skmkd.metrics._pixels import one_each, weighted_pixels

MASKS = np.arange(24).reshape(2, 3, 4) % 5 == 0
MAPS = np.random.default_rng(0).random((2, 3, 4))
INFINITE, UNKNOWN = np.float64([[[[0, np.inf]]], [[[0, np.nan]]]])

BAD = [
    (MASKS[:1], MAPS, "the same length, at least 1; got 1 masks and 2 maps"),
    (MASKS[:0], MAPS[:0], "the same length, at least 1; got 0 masks"),
    (MASKS[0], MAPS[0], r"shape \(n, H, W\).*got a mask of shape \(4,\)"),
    (MASKS, MAPS[..., None], r"\(3, 4\) and a map of shape \(3, 4, 1\) at index 0"),
    (MASKS[:, :2], MAPS, r"\(2, 4\) and a map of shape \(3, 4\) at index 0"),
    ([MASKS[0], MASKS[1].T], list(MAPS), "at index 1"),
    (255 * MASKS.astype(np.uint8), MAPS, r"uint8 values from 0 to 255 in masks\[0\].* masks > 0"),
    (MASKS - 0.5, MAPS, "masks must be boolean"),
    (MASKS, MAPS.astype(complex), "real numbers; got dtype complex128"),
    (MASKS, MAPS.astype(str), "real numbers; got dtype <U"),
    (MASKS, MAPS.astype(object), "real numbers; got dtype object"),
    (INFINITE > 0, INFINITE, r"maps must be finite; got NaN or infinity in maps\[0\]"),
    (INFINITE > 0, -INFINITE, "maps must be finite"),
    (INFINITE == 0, UNKNOWN, "maps must be finite"),
]


@pytest.mark.parametrize(("masks", "maps", "message"), BAD)
@pytest.mark.parametrize("metric", [pixel_roc_auc_score, aupro_score])
@pytest.mark.parametrize("exact", [True, False])
def test_bad_input_is_refused(masks, maps, message, metric, exact):
    with pytest.raises(ValueError, match=message):
        metric(masks, maps, exact=exact)


@pytest.mark.parametrize("exact", [1, None, "no"])
def test_exact_is_a_boolean(exact):
    with pytest.raises(ValueError, match="exact must be True or False; got"):
        aupro_score(MASKS, MAPS, exact=exact)


@pytest.mark.parametrize(
    "same",
    [
        lambda a: a.tolist(), list, tuple, torch.from_numpy,
        lambda a: a.astype(np.uint8) if a.dtype == bool else a,
        lambda a: a if a.dtype == bool else a.astype(np.longdouble),
    ],
)  # fmt: skip
def test_what_holds_the_same_numbers_gives_the_same(same):
    assert aupro_score(same(MASKS), same(MAPS)) == aupro_score(MASKS, MAPS)


@pytest.mark.parametrize(
    ("given", "kept"),
    [(np.uint8, np.float32), (np.float16, np.float32), (np.float32, np.float32),
     (np.int64, np.float64), (np.float64, np.float64)],
)  # fmt: skip
def test_scores_are_floats_that_hold_the_maps(given, kept):
    maps = (100 * MAPS).astype(given)
    pixels = weighted_pixels(MASKS, maps, one_each, exact=True)
    assert pixels.y_score.dtype == kept
    assert set(pixels.y_score.tolist()) <= set(maps.ravel().tolist())


@pytest.mark.parametrize("exact", [True, False])
def test_weights_count_all_pixels(exact):
    pixels = weighted_pixels(MASKS, MAPS, one_each, exact=exact)
    assert (pixels.sample_weight > 0).all()
    for kind in (True, False):
        assert pixels.sample_weight[pixels.y_true == kind].sum() == (kind == MASKS).sum()


def test_only_values_that_anomalous_pixels_separate_are_kept():
    masks = np.zeros((4, 50, 50), bool)
    masks[0, 0, :2] = True
    maps = np.random.default_rng(0).permutation(10_000).reshape(4, 50, 50)
    pixels = weighted_pixels(masks, maps, one_each, exact=True)
    assert len(pixels.y_score) == 2 + 3


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    masks, maps = rng.random((9, 12, 7)) < 0.1, rng.integers(0, 50, (9, 12, 7))
    whole = weighted_pixels(masks, maps, one_each, exact=True)
    monkeypatch.setattr(_pixels, "CHUNK", 100)
    for one, other in zip(whole, weighted_pixels(masks, maps, one_each, exact=True), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scale", [1, 1e-6])
def test_quantiles_leave_little_weight_between_them(scale):
    rng = np.random.default_rng(0)
    values, weights = rng.permutation(5000).astype(float), scale * rng.exponential(size=5000) ** 3
    weights[7] = weights.sum() / 10  # as heavy as a tenth
    kept, gathered = _pixels._quantiles(values, weights, 50)
    assert len(kept) <= 50
    assert values[7] in kept
    assert gathered.sum() == pytest.approx(weights.sum())
    assert (np.diff(kept) > 0).all()
    assert (gathered > 0).all()
    bins = np.searchsorted(np.sort(kept), values, side="right")
    between = ~np.isin(values, kept)
    assert np.bincount(bins[between], weights[between]).max() <= weights.sum() / 50


def test_quantiles_keep_all_of_n_values():
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([0.01, 10.0, 0.01])
    assert sorted(_pixels._quantiles(values, weights, 3)[0]) == [1, 2, 3]


def test_quantiles_of_equal_weights_are_evenly_spaced():
    values, weights = _pixels._quantiles(np.arange(100.0), np.ones(100), 10)
    assert values.tolist() == list(range(9, 100, 10))
    assert weights.tolist() == [10] * 10


def test_values_are_reduced_only_above_the_limit(monkeypatch):
    rng = np.random.default_rng(0)
    masks, maps = rng.random((20, 10, 10)) < 0.5, rng.random((20, 10, 10))
    monkeypatch.setattr(_pixels, "CHUNK", 100)
    monkeypatch.setattr(_pixels, "N_THRESHOLDS", 20)
    whole = weighted_pixels(masks, maps, one_each, exact=False)
    monkeypatch.setattr(_pixels, "N_KEPT", 50)
    monkeypatch.setattr(_pixels, "N_GATHERED", 2000)
    np.testing.assert_array_equal(weighted_pixels(masks, maps, one_each, exact=False), whole)


def peak(n_images):
    """Return the peak of memory, in bytes, over n images of 128 x 128 that take none."""
    masks = np.broadcast_to(np.arange(128**2).reshape(128, 128) % 3 == 0, (n_images, 128, 128))
    maps = np.broadcast_to(np.float32(masks[0] + np.arange(128)), (n_images, 128, 128))
    tracemalloc.start()
    aupro_score(masks, maps, exact=False)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest


def test_memory_of_the_histogram_does_not_grow(monkeypatch):
    monkeypatch.setattr(_pixels, "CHUNK", 2**16)
    monkeypatch.setattr(_pixels, "N_GATHERED", 2**16)
    monkeypatch.setattr(_pixels, "N_KEPT", 2**15)
    monkeypatch.setattr(_pixels, "N_THRESHOLDS", 2**12)
    peak(2)  # warm up
    assert peak(200) < 1.2 * peak(20)
