from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skmkd._conformal import Calibration, as_groups, check_fpr, held_out


def threshold(anomaly, fpr):
    return Calibration.of(anomaly).threshold(fpr)


def test_rounding_of_fpr_does_not_change_the_rank():
    for percent in range(1, 100):  # 100 * 0.29 is below 29, for one
        for n in range(1, 300):
            above = floor((n + 1) * Fraction(percent, 100))
            if above:
                check_fpr(percent / 100, n)
                assert threshold(np.arange(n), percent / 100) == n - above
            else:
                with pytest.raises(ValueError, match="must hold at least"):
                    check_fpr(percent / 100, n)
    with pytest.raises(ValueError, match="must hold at least 10 images"):
        check_fpr(0.1 * (1 - 1e-10), 9)  # a rate that really is lower


@pytest.mark.parametrize(("n", "fpr"), [(19, 0.05), (20, 0.05), (99, 0.01), (37, 0.1), (9, 0.5)])
def test_threshold_has_the_rank_of_split_conformal_prediction(n, fpr):
    anomaly = np.random.default_rng(0).permutation(n) + 1.0  # the k-th smallest is k
    assert threshold(anomaly, fpr) == ceil(round((n + 1) * (1 - fpr), 9))
    assert type(threshold(anomaly.astype(np.float32), fpr)) is float


def test_false_positive_rate_is_fpr_on_average():
    rng = np.random.default_rng(0)
    rates = [(rng.random(1000) > threshold(rng.random(39), 0.05)).mean() for _ in range(2000)]
    assert abs(np.mean(rates) - 0.05) < 0.003


def test_p_values_of_normal_images_are_super_uniform():
    rng = np.random.default_rng(0)
    p = np.concatenate(
        [Calibration.of(rng.random(39)).p_values(rng.random(20)) for _ in range(2000)]
    )
    for level in (0.025, 0.05, 0.1, 0.33, 0.5, 0.9):
        assert (p <= level).mean() <= level + 0.005
    assert abs((p <= 0.5).mean() - 0.5) < 0.005  # and not wastefully so


def test_p_values_with_ties_and_nan():
    calibration = Calibration.of([1.0, 2.0, 2.0, 3.0])
    found = calibration.p_values([0, 1, 2, 2.5, 3, 4, np.nan])
    assert_allclose(found, [1, 1, 4 / 5, 2 / 5, 2 / 5, 1 / 5, np.nan])


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(13), 3)])
def test_above_the_threshold_p_values_are_at_most_fpr(groups):
    rng = np.random.default_rng(0)
    calibration = Calibration.of(rng.integers(0, 20, 39), groups)  # with ties
    new = np.arange(-1, 22) + 0.5
    for fpr in (1 / 14, 0.1, 0.25, 0.5, 0.9):
        above = new > calibration.threshold(fpr)
        assert_array_equal(above, calibration.p_values(new) <= fpr * (1 + 1e-9))


def test_images_of_new_groups_raise_no_more_false_alarms():
    rng = np.random.default_rng(0)

    def group(n):
        return rng.normal() + 0.3 * rng.normal(size=n)  # a day shifts all its images

    rates = {True: [], False: []}
    for _ in range(3000):
        sizes = rng.integers(1, 20, 19)
        anomaly = np.concatenate([group(n) for n in sizes])
        labels = np.repeat(np.arange(19), sizes)
        new = group(20)
        for grouped in rates:
            calibration = Calibration.of(anomaly, labels if grouped else None)
            rates[grouped].append((new > calibration.threshold(0.1)).mean())
    assert 0.06 < np.mean(rates[True]) <= 0.1
    assert np.mean(rates[False]) > 0.115  # without groups it is too high


def test_weights_of_groups():
    calibration = Calibration.of([3, 1, 2, 4], list("abba"))
    assert_allclose(calibration.shares, 1 / 2)
    assert calibration.lowest_fpr == 1 / 3
    assert_allclose(Calibration.of([3, 1, 2], list("aab")).shares, [1 / 2, 1, 1 / 2])


@pytest.mark.parametrize("fpr", [0, 1, 0.0, 1.0, -0.1, "0.1"])
def test_bad_fpr(fpr):
    with pytest.raises(ValueError, match="fpr must be a float between 0 and 1"):
        check_fpr(fpr, 100)


def test_too_few_images():
    check_fpr(0.05, 19)
    check_fpr(np.float32(0.1), 9)
    with pytest.raises(ValueError, match=r"^X must hold at least 19 images for fpr=0.05; got 18"):
        check_fpr(0.05, 18)
    with pytest.raises(ValueError, match=r"^groups must hold at least 9 labels"):
        check_fpr(0.1, 8, "groups", "labels")


# What is held out


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [(100, 0.2, 20), (91, 0.2, 19), (10, 0.01, 1), (3, 0.9, 1), (2, 0.5, 0)],
)
def test_a_share_is_held_out_and_two_images_are_left(n, share, expected):
    learned, held = held_out(n, share, None, np.random.default_rng(0))
    assert len(held) == expected
    assert sorted(learned + held) == list(range(n))
    assert learned == sorted(learned)


def test_whole_groups_are_held_out():
    groups = np.array(list("abcdefghij")).repeat([1, 2, 3, 4, 5, 5, 4, 3, 2, 1])
    for seed in range(20):
        learned, held = held_out(30, 0.3, groups, np.random.default_rng(seed))
        assert not set(groups[learned]) & set(groups[held])
        assert 9 <= len(held) <= 13


def test_all_images_are_held_out_equally_often():
    counts = np.zeros(10)
    for seed in range(500):
        counts[held_out(10, 0.2, None, np.random.default_rng(seed))[1]] += 1
    assert abs(counts - 100).max() < 35


def test_groups_that_do_not_fit():
    with pytest.raises(ValueError, match=r"one label for each of 3 images; got shape \(2,\)"):
        as_groups([1, 2], 3)
    with pytest.raises(ValueError, match="two labels at least; got a alone"):
        held_out(3, 0.2, np.array(["a"] * 3), np.random.default_rng(0))
