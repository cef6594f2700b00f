"""Metrics over pixels: scikit-learn's on flattened input, and a histogram close to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from skmkd.metrics import (
    _pixels,
    aupro_score,
    pixel_average_precision_score,
    pixel_f1_max_score,
    pixel_roc_auc_score,
)

METRICS = [
    pixel_roc_auc_score,
    pixel_average_precision_score,
    pixel_f1_max_score,
    aupro_score,
]


def f1_max_by_search(y_true, y_score):
    """Try every threshold."""
    return max(f1_score(y_true, y_score >= t) for t in np.unique(y_score))


REFERENCES = {
    pixel_roc_auc_score: roc_auc_score,
    pixel_average_precision_score: average_precision_score,
    pixel_f1_max_score: f1_max_by_search,
}


@pytest.mark.parametrize("metric", REFERENCES)
@pytest.mark.parametrize("exact", [True, False])
@given(
    truth=arrays(bool, (2, 3, 4)).filter(lambda m: m.any() and not m.all()),
    values=arrays(np.float64, (2, 3, 4), elements=st.integers(-4, 4).map(lambda i: i / 7)),
)
def test_metric_is_scikit_learn_s_on_flattened_input(metric, exact, truth, values):
    expected = REFERENCES[metric](truth.ravel(), values.ravel())
    assert metric(truth, values, exact=exact) == pytest.approx(expected, abs=1e-12)


def heavy_tailed(n=16, side=256, seed=0):
    """Synthetic maps over ten orders of magnitude, with regions of all sizes; normals first."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, side, side), bool)
    for mask in masks[n // 4 :]:
        for extent in (1, 1, 3, 10, 100):
            row, column = rng.integers(0, side - extent, 2)
            mask[row : row + extent, column : column + extent] = True
    return masks, np.exp(rng.normal(2 * masks, 5)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("transform", [lambda x: x, lambda x: 1e6 + np.log(x), np.round])
def test_histogram_is_within_a_thousandth(metric, transform):
    masks, maps = heavy_tailed()
    maps = transform(maps.astype(np.float64))
    assert masks.sum() > 1.5 * _pixels.N_THRESHOLDS
    assert metric(masks, maps, exact=False) == pytest.approx(metric(masks, maps), abs=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_error_of_the_histogram_keeps_its_bound(metric, monkeypatch):
    monkeypatch.setattr(_pixels, "CHUNK", 2**17)
    monkeypatch.setattr(_pixels, "N_THRESHOLDS", 100)
    masks, maps = heavy_tailed()
    bound = {aupro_score: 1, pixel_f1_max_score: 2,
             pixel_average_precision_score: 3 + 2 * np.log(100)}  # fmt: skip
    error = abs(metric(masks, maps, exact=False) - metric(masks, maps))
    assert 0 < error <= bound.get(metric, 0.5) / 100


@pytest.mark.parametrize("metric", METRICS)
def test_gathering_fewer_pixels_than_there_are_changes_little(metric, monkeypatch):
    monkeypatch.setattr(_pixels, "CHUNK", 2**14)
    monkeypatch.setattr(_pixels, "N_GATHERED", 2**14)
    monkeypatch.setattr(_pixels, "N_KEPT", 2**13)
    monkeypatch.setattr(_pixels, "N_THRESHOLDS", 2**12)
    masks, maps = heavy_tailed()
    assert metric(masks, maps, exact=False) == pytest.approx(metric(masks, maps), abs=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_memory_maps_give_the_same(metric, tmp_path):
    masks, maps = heavy_tailed(n=4)
    np.save(tmp_path / "maps.npy", maps)
    mapped = np.load(tmp_path / "maps.npy", mmap_mode="r")
    assert metric(masks, mapped, exact=False) == metric(masks, maps, exact=False)


@pytest.mark.parametrize("exact", [True, False])
def test_no_anomalous_pixel_is_as_in_scikit_learn(exact):
    masks, maps = np.zeros((2, 3, 3), bool), np.arange(18.0).reshape(2, 3, 3)
    with pytest.warns(UndefinedMetricWarning, match="Only one class is present"):
        assert np.isnan(pixel_roc_auc_score(masks, maps, exact=exact))
    for metric in (pixel_average_precision_score, pixel_f1_max_score):
        with pytest.warns(UserWarning, match="No positive class found"):
            assert metric(masks, maps, exact=exact) == 0


def test_all_pixels_anomalous_is_as_in_scikit_learn():
    masks, maps = np.ones((2, 3, 3), bool), np.arange(18.0).reshape(2, 3, 3)
    with pytest.warns(UndefinedMetricWarning, match="Only one class is present"):
        assert np.isnan(pixel_roc_auc_score(masks, maps))
    assert pixel_average_precision_score(masks, maps) == pixel_f1_max_score(masks, maps) == 1


def test_constant_map_is_chance():
    masks = np.arange(16).reshape(1, 4, 4) < 4
    maps = np.full((1, 4, 4), 3)
    for metric in (pixel_roc_auc_score, pixel_average_precision_score, pixel_f1_max_score):
        assert type(metric(masks, maps)) is float
    assert pixel_roc_auc_score(masks, maps) == 0.5
    assert pixel_average_precision_score(masks, maps) == 0.25
    assert pixel_f1_max_score(masks, maps) == pytest.approx(0.4)
