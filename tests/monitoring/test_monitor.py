"""The monitor: a fair game without drift, and alarms soon after a change."""

from __future__ import annotations

import pickle
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import binom

from skmkd.monitoring import DriftMonitor


def stream(rng, n, mean=0.0, anomalies=0.0):
    scores = rng.normal(mean, size=n)
    scores[rng.random(n) < anomalies] = -100
    return scores


@pytest.mark.parametrize("m", [1, 2, 4])
def test_capital_is_one_in_the_mean_of_all_orders(m):
    capitals = []
    for scores in permutations(range(7)):
        monitor = DriftMonitor(scores[:m], contamination=0)
        monitor.update(scores[m:])
        capitals.append(monitor._capital.sum())
    assert_allclose(np.mean(capitals), 1)
    assert np.std(capitals) > 0.05


@pytest.mark.parametrize(("m", "anomalies"), [(20, 0), (20, 0.05), (400, 0.05)])
def test_false_alarms_are_as_rare_as_stated_over_all_time(m, anomalies):
    rng = np.random.default_rng(0)
    trials, alpha = 100, 0.2
    alarms = 0
    for _ in range(trials):
        monitor = DriftMonitor(rng.normal(size=m), alpha=alpha, contamination=anomalies)
        alarms += monitor.update(stream(rng, 1500, 0, anomalies)).drifted
    assert alarms <= binom.isf(1e-3, trials, alpha)


def test_a_monitor_may_run_for_10_000_images():
    rng = np.random.default_rng(0)
    for _ in range(5):
        monitor = DriftMonitor(rng.normal(size=99))
        assert not monitor.update(stream(rng, 10_000, anomalies=0.02)).drifted
        result = monitor.update(stream(rng, 200, -1))
        assert result.drifted
        assert 10_000 < result.n < 10_200


@pytest.mark.parametrize(("mean", "direction"), [(-1, "lower"), (1, "higher")])
@pytest.mark.parametrize("anomalies", [0, 0.05])
@pytest.mark.parametrize("before", [0, 500])
def test_a_change_is_noticed_soon(mean, direction, anomalies, before):
    rng = np.random.default_rng(0)
    for _ in range(10):
        monitor = DriftMonitor(rng.normal(size=200))
        monitor.update(stream(rng, before, 0, anomalies))
        result = monitor.update(stream(rng, 300, mean, anomalies))
        assert result.drifted
        assert result.direction == direction
        assert before < result.n < before + 300


def test_slow_drift_is_noticed():
    rng = np.random.default_rng(0)
    for _ in range(5):
        scores = rng.normal(size=2000) - np.linspace(0, 1.5, 2000)
        assert DriftMonitor(rng.normal(size=99)).update(scores).drifted


@given(st.lists(st.integers(-9, 9) | st.just(np.nan), max_size=60), st.integers(1, 20))
def test_only_the_order_in_which_scores_come_matters(scores, size):
    calibration = np.arange(-9, 20, 3)
    at_once = DriftMonitor(calibration).update(scores)
    monitor = DriftMonitor(np.exp(calibration / 5))
    result = monitor.update([])
    for start in range(0, len(scores), size):
        previous, result = (
            result,
            monitor.update(np.exp(np.array(scores) / 5)[start : start + size]),
        )
        assert result.p_value <= previous.p_value
    assert result == at_once


def test_missing_scores_are_left_out_and_counted():
    result = DriftMonitor(range(50)).update([3, np.nan, 20, np.nan])
    assert (result.n, result.n_missing, result.n_calibration) == (2, 2, 50)


def test_equal_scores_are_no_drift():
    assert not DriftMonitor(np.zeros(20)).update(np.zeros(1000)).drifted


def test_an_alarm_remains():
    monitor = DriftMonitor(range(100))
    alarm = monitor.update(np.full(50, -1))
    assert alarm.drifted
    assert alarm.statistic >= 100
    assert alarm.p_value == 1 / alarm.statistic
    assert monitor.update(range(100)) == alarm


def test_an_unpickled_monitor_goes_on():
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(rng.normal(size=99))
    monitor.update(rng.normal(size=50))
    restored = pickle.loads(pickle.dumps(monitor))
    scores = stream(rng, 100, -0.5)
    assert restored.update(scores) == monitor.update(scores)
