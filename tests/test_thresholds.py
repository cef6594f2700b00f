from __future__ import annotations

from math import ceil

import numpy as np
import pytest

from skmkd._thresholds import check_fpr, conformal_threshold, training_threshold


@pytest.mark.parametrize("contamination", [0.5, 0.25, 0.05])
def test_training_threshold_is_exceeded_by_its_share(contamination):
    anomaly = np.random.default_rng(0).random(200)
    exceeding = (anomaly > training_threshold(anomaly, contamination)).mean()
    assert exceeding == contamination


@pytest.mark.parametrize(("n", "fpr"), [(19, 0.05), (20, 0.05), (99, 0.01), (37, 0.1), (9, 0.5)])
def test_conformal_threshold_is_the_rank_that_it_should_be(n, fpr):
    anomaly = np.random.default_rng(0).permutation(n) + 1.0  # the k-th smallest is k
    check_fpr(fpr, n)
    assert conformal_threshold(anomaly, fpr) == ceil(round((n + 1) * (1 - fpr), 9))


def test_conformal_false_alarms_come_to_fpr():
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
    with pytest.raises(ValueError, match=r"at least 19 images for fpr=0.05; got 18"):
        check_fpr(0.05, 18)
