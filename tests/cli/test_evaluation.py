"""Arrays on disk, and metrics with values known in advance."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skmkd._cli.evaluation import StoredArrays, image_metrics, pixel_metrics


def test_stored_arrays_are_a_sequence(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.random((2, 3)).astype(np.float32), rng.random((4, 1)) > 0.5]
    stored, other = StoredArrays(tmp_path, "one"), StoredArrays(tmp_path, "other")
    for array in arrays:
        stored.append(array)
        other.append(~np.isnan(array))
    assert len(stored) == 2
    for _ in range(2):
        for expected, array in zip(arrays, stored, strict=True):
            assert array.dtype == expected.dtype
            assert_array_equal(array, expected)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            stored[index]


def test_stored_arrays_hold_no_array_in_memory(tmp_path):
    stored = StoredArrays(tmp_path, "map")
    array = np.zeros((5, 5))
    written = weakref.ref(array)
    stored.append(array)
    del array
    assert written() is None
    loaded = weakref.ref(stored[0])
    assert loaded() is None


def test_perfect_scores_and_maps():
    y = np.array([1, 1, -1, -1])
    assert image_metrics(y, np.array([3.0, 2.0, 1.0, 0.0]), threshold=0.5) == {
        "images": 4, "image AUROC": 1, "image average precision": 1, "image F1 max": 1,
        "image FPR at 95 % TPR": 0, "anomalies found": 0.5, "false alarms": 0,
    }  # fmt: skip
    mask = np.eye(4, dtype=bool)
    assert pixel_metrics([mask], [mask.astype(np.float32)]) == {
        "pixel AUROC": 1, "pixel average precision": 1, "pixel F1 max": 1, "AUPRO": 1,
    }  # fmt: skip


def test_false_alarms_are_normal_images_below_the_threshold():
    metrics = image_metrics(np.array([1, 1, 1, -1]), np.array([0.4, 2.0, 3.0, 0.0]), 0.5)
    assert metrics["false alarms"] == pytest.approx(1 / 3)
    assert metrics["anomalies found"] == 1
