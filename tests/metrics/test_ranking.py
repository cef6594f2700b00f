"""Metrics at one point of a curve against a search through all thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import f1_score

from skmkd.metrics._ranking import f1_max, fpr_at_tpr

cases = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40).filter(
    lambda pairs: len({truth for truth, _ in pairs}) == 2
)


@given(cases)
@example([(False, 6), (False, 6), (True, 6), (True, 0), *[(False, 0)] * 30])  # low even at best
def test_f1_max_is_the_highest_over_all_thresholds(pairs):
    truth, score = np.array(pairs).T
    expected = max(f1_score(truth, score >= t) for t in range(7) if (score >= t).any())
    assert f1_max(truth, score) == pytest.approx(expected, abs=1e-12)


@given(cases, st.data())
def test_f1_max_weighs_as_if_pairs_were_repeated(pairs, data):
    truth, score = np.array(pairs).T
    weights = np.array(
        data.draw(st.lists(st.integers(1, 3), min_size=len(truth), max_size=len(truth)))
    )
    repeated = f1_max(np.repeat(truth, weights), np.repeat(score, weights))
    assert f1_max(truth, score, weights) == pytest.approx(repeated, abs=1e-12)


def test_both_are_plain_floats():
    assert type(f1_max([0, 1], [0.1, 0.2])) is float
    assert type(fpr_at_tpr([0, 1], [0.1, 0.2], 0.5)) is float


@given(cases, st.sampled_from([0.5, 0.95, 1.0]))
@example(
    [(True, 2), (False, 2), (True, 1), (False, 1), (True, 0), (False, 0)], 0.5
)  # a point on a straight line
def test_fpr_at_tpr_is_the_lowest_over_all_thresholds(pairs, tpr):
    truth, score = np.array(pairs).T
    rates = [(np.mean(score[truth == 1] >= t), np.mean(score[truth == 0] >= t)) for t in range(8)]
    expected = min(false for true, false in rates if true >= tpr)
    assert fpr_at_tpr(truth, score, tpr) == expected


@pytest.mark.parametrize("truth", [[0, 0, 0], [1, 1, 1]])
def test_fpr_of_one_class_is_undefined(truth):
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(fpr_at_tpr(truth, [1.0, 2.0, 3.0], 0.95))
