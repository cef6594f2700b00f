"""The test for drift: exact p-values, whatever a few anomalies score, and what it says."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from conftest import tiny_detector
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import binom, ks_2samp
from sklearn.exceptions import NotFittedError

from skmkd.monitoring import DriftMonitor, DriftResult, drift_test
from skmkd.monitoring._drift import excess, smirnov, smirnov_tail

SCORES = st.lists(st.integers(-50, 50), min_size=8, max_size=40)


def orders(n, m):
    """Yield all ways in which n recent scores and m of calibration can be ordered."""
    for places in combinations(range(n + m), n):
        recent = np.array(places, dtype=float)
        yield np.setdiff1d(np.arange(n + m), recent).astype(float), recent


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (4, 4), (5, 3), (3, 8), (6, 4)])
def test_tail_is_the_share_of_all_orders(n, m):
    found = np.array([excess(calibration, recent) for calibration, recent in orders(n, m)])
    for value in range(n * m + 2):
        assert_allclose(smirnov_tail(value, n, m), np.mean(found >= value), atol=1e-15)


@pytest.mark.parametrize(("n", "m"), [(10, 99), (60, 60), (150, 40)])
def test_statistic_and_tail_agree_with_scipy(n, m):
    rng = np.random.default_rng(n)
    recent, calibration = np.sort(rng.normal(-0.4, size=n)), np.sort(rng.normal(size=m))
    expected = ks_2samp(recent, calibration, alternative="greater", method="exact")
    found = excess(calibration, recent)
    assert_allclose(found / (n * m), expected.statistic)
    assert_allclose(smirnov_tail(found, n, m), expected.pvalue)


def test_small_tails_keep_their_precision():
    assert_allclose(smirnov_tail(60 * 80, 60, 80), 1 / comb(140, 60), rtol=1e-12)


@pytest.mark.parametrize(("n", "m", "n_anomalies"), [(4, 6, 0), (4, 6, 1), (5, 4, 2)])
def test_p_values_hold_whatever_the_anomalies_score(n, m, n_anomalies):
    """Anomalies even know all other scores: of each order, the smallest p-value counts."""
    share = n_anomalies / (n + n_anomalies)
    places = np.arange(-1, n + m) + 0.5
    p_values = np.sort([
        min(
            smirnov(calibration, np.append(recent, anomalies), share)[1]
            for anomalies in combinations(np.repeat(places, n_anomalies), n_anomalies)
        )
        for calibration, recent in orders(n, m)
    ])  # fmt: skip
    shares = np.arange(1, len(p_values) + 1) / len(p_values)
    last_of_ties = np.append(np.diff(p_values) > 1e-12, True)
    assert (shares[last_of_ties] <= p_values[last_of_ties] + 1e-12).all()


@pytest.mark.parametrize(("m", "n"), [(20, 20), (20, 200), (99, 50)])
@pytest.mark.parametrize("anomalies", [0, 0.05])
@pytest.mark.parametrize("decimals", [0, 16])
def test_false_alarms_are_as_rare_as_stated(m, n, anomalies, decimals):
    """Scores are rounded, too: ties must not raise alarms."""
    rng = np.random.default_rng(0)
    trials, alpha = 300, 0.1
    alarms = 0
    for _ in range(trials):
        scores = rng.normal(size=m + n).round(decimals)
        scores[m : m + int(anomalies * n)] = -100
        alarms += drift_test(scores[:m], scores[m:], alpha=alpha).drifted
    assert alarms <= binom.isf(1e-4, trials, alpha)


@pytest.mark.parametrize(("change", "direction"), [(-1, "lower"), (1, "higher")])
@pytest.mark.parametrize("anomalies", [0, 0.05])
def test_drift_is_found(change, direction, anomalies):
    rng = np.random.default_rng(0)
    results = []
    for _ in range(100):
        recent = rng.normal(change, size=100)
        recent[: int(anomalies * 100)] = -100
        results.append(drift_test(rng.normal(size=99), recent))
    assert np.mean([result.drifted for result in results]) > 0.95
    assert {result.direction for result in results} == {direction}


@given(SCORES, SCORES, st.randoms(use_true_random=False))
def test_only_the_order_of_scores_matters(calibration, recent, random):
    result = drift_test(calibration, recent, alpha=0.1)
    increasing = [np.exp(np.array(scores) / 10) for scores in (calibration, recent)]
    assert drift_test(*increasing, alpha=0.1) == result
    random.shuffle(recent)
    random.shuffle(calibration)
    assert drift_test(calibration, recent, alpha=0.1) == result


@given(SCORES, SCORES)
def test_both_directions_are_treated_alike(calibration, recent):
    result = drift_test(calibration, recent, alpha=0.1)
    mirrored = drift_test(np.negative(calibration), np.negative(recent), alpha=0.1)
    assert (mirrored.statistic, mirrored.p_value) == (result.statistic, result.p_value)
    if result.direction == "higher":  # of two equal differences, "lower" is named
        assert mirrored.direction == "lower"


def test_missing_scores_are_left_out_and_counted():
    calibration, recent = range(50), np.arange(30.0, 60)
    with_missing = np.insert(recent, [0, 4, 30], np.nan)
    result = drift_test(calibration, with_missing)
    assert result.n_missing == 3
    assert result.p_value == drift_test(calibration, recent).p_value
    assert str(result).endswith(" Images without a score, left out: 3.")


def result(p_value, direction="lower", n_missing=0):
    return DriftResult(0.3, p_value, 0.01, direction, 50, 99, n_missing)


def test_result_says_what_to_do():
    assert not result(0.011).drifted
    assert str(result(0.011)) == (
        "No drift found in 50 scores (p = 0.011, alpha = 0.01), compared with 99 of calibration. "
        "The thresholds can stay."
    )
    assert result(0.01).drifted
    assert str(result(0.002)) == (
        "Drift found in 50 scores (p = 0.002, alpha = 0.01): recent scores are lower than the 99 "
        "of calibration. Recent images look more anomalous: the thresholds raise more false "
        "alarms. Look at some of them; if they are normal, calibrate again with recent normal "
        "images."
    )
    assert "scores are higher" in str(result(0.002, "higher"))
    assert "more normal: the thresholds miss more defects" in str(result(0.002, "higher"))


@pytest.mark.parametrize("m", [1, 2, 20, 500])
@pytest.mark.parametrize("alpha", [1e-4, 0.01, 0.3])
@pytest.mark.parametrize("contamination", [0, 0.05, 0.29, 0.49])
def test_as_many_scores_are_asked_for_as_a_small_p_value_takes(m, alpha, contamination):
    settings = {"alpha": alpha, "contamination": contamination}
    calibration = np.arange(m)
    with pytest.raises(ValueError, match=r"at least \d+ that are not NaN.*; got 0\.") as caught:
        drift_test(calibration, [np.nan], **settings)
    enough = int(str(caught.value).split("at least ")[1].split()[0])
    assert drift_test(calibration, np.full(enough, -1), **settings).drifted
    with pytest.raises(ValueError, match=f"at least {enough} that .* got {enough - 1}"):
        drift_test(calibration, np.full(enough - 1, -1), **settings)


@pytest.mark.parametrize("test", [drift_test, lambda c, s, **k: DriftMonitor(c, **k).update(s)])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0}, "alpha must be a float from 1e-6 to 0.5; got 0"),
        ({"alpha": 0.6}, "alpha must be"),
        ({"alpha": "1"}, "alpha must be"),
        ({"alpha": np.nan}, "alpha must be"),
        ({"contamination": 0.5}, "contamination must be a float from 0 to below 0.5; got 0.5"),
        ({"contamination": -0.1}, "contamination must be"),
        ({"contamination": "auto"}, "contamination must be"),
        ({"c": []}, "calibration must hold scores, none of them NaN; got 0"),
        ({"c": [1, np.nan]}, "calibration must hold scores, none of them NaN; got 2, 1 of them"),
        ({"c": np.zeros((5, 2))}, r"calibration must be numbers of shape \(n,\); got .*\(5, 2\)"),
        ({"c": ["a.png"]}, r"calibration must be numbers of shape \(n,\)"),
        ({"s": np.zeros((5, 8, 8))}, r"scores must be numbers of shape \(n,\); .* \(5, 8, 8\)"),
        ({"s": ["a.png", "b.png"]}, r"scores must be numbers of shape \(n,\)"),
        ({"s": [[1], [1, 2]]}, r"scores must be numbers of shape \(n,\)"),
        ({"s": [1j, 2]}, r"scores must be numbers of shape \(n,\); got the dtype complex128"),
        ({"s": 0.5}, r"scores must be numbers of shape \(n,\); got .* \(\)"),
    ],
)
def test_bad_input_is_named(test, changes, message):
    given = {"c": range(50), "s": range(50)} | changes
    with pytest.raises(ValueError, match=message):
        test(given.pop("c"), given.pop("s"), **given)


@pytest.mark.parametrize("test", [drift_test, lambda c, s: DriftMonitor(c).update(s)])
def test_a_detector_stands_for_its_calibration_scores(test):
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16), dtype=np.uint8)
    detector = tiny_detector(contamination=0.1)
    with pytest.raises(NotFittedError):
        test(detector, range(30))
    scores = detector.fit(images).score_samples(images)
    with pytest.raises(ValueError, match="Call calibrate with held-out normal images first"):
        test(detector, scores)
    detector.calibrate(images[:20])
    assert test(detector, scores) == test(scores[:20], scores)
