from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest

from skmkd._thresholds import check_fpr, conformal_threshold, n_above, training_threshold


@pytest.mark.parametrize("contamination", [0.5, 0.25, 0.05])
def test_training_threshold_is_exceeded_by_its_share(contamination):
    anomaly = np.random.default_rng(0).random(200)
    exceeding = (anomaly > training_threshold(anomaly, contamination)).mean()
    assert exceeding == contamination
    assert training_threshold(list(anomaly), contamination) == training_threshold(
        anomaly, contamination
    )


def test_thresholds_are_plain_floats():
    anomaly = np.arange(20, dtype=np.float32)
    assert type(training_threshold(anomaly, 0.1)) is float
    assert type(conformal_threshold(anomaly, 0.1)) is float


def test_rounding_of_fpr_does_not_change_the_rank():
    for percent in range(1, 100):  # 100 * 0.29 is below 29, for one
        for n in range(1, 300):
            assert n_above(percent / 100, n) == floor((n + 1) * Fraction(percent, 100))
    assert n_above(0.1 * (1 - 1e-10), 9) == 0  # a rate that really is lower


@pytest.mark.parametrize(("n", "fpr"), [(19, 0.05), (20, 0.05), (99, 0.01), (37, 0.1), (9, 0.5)])
def test_conformal_threshold_has_the_rank_of_split_conformal_prediction(n, fpr):
    anomaly = np.random.default_rng(0).permutation(n) + 1.0  # the k-th smallest is k
    check_fpr(fpr, n)
    assert conformal_threshold(anomaly, fpr) == ceil(round((n + 1) * (1 - fpr), 9))


def test_conformal_false_positive_rate_is_fpr_on_average():
    rng = np.random.default_rng(0)
    rates = [
        (rng.random(1000) > conformal_threshold(rng.random(39), 0.05)).mean() for _ in range(2000)
    ]
    assert abs(np.mean(rates) - 0.05) < 0.003


@pytest.mark.parametrize("fpr", [0, 1, 0.0, 1.0, -0.1, "0.1"])
def test_bad_fpr(fpr):
    with pytest.raises(ValueError, match="fpr must be a float between 0 and 1"):
        check_fpr(fpr, 100)


def test_too_few_images():
    check_fpr(0.05, 19)
    check_fpr(np.float32(0.1), 9)
    with pytest.raises(ValueError, match=r"^X must hold at least 19 images for fpr=0.05; got 18"):
        check_fpr(0.05, 18)
    with pytest.raises(ValueError, match=r"^--hold-out must hold at least 9 images"):
        check_fpr(0.1, 8, "--hold-out")
