"""Figures of a curve against a search through all thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import f1_score

from skmkd.metrics._ranking import f1_max, fpr_at_tpr

cases = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40).filter(
    lambda pairs: len({truth for truth, _ in pairs}) == 2
)


@given(cases)
def test_f1_max_is_the_best_of_all_thresholds(pairs):
    truth, score = np.array(pairs).T
    expected = max(f1_score(truth, score >= t) for t in range(7) if (score >= t).any())
    assert f1_max(truth, score) == pytest.approx(expected, abs=1e-12)


@given(cases, st.sampled_from([0.5, 0.95, 1.0]))
def test_fpr_at_tpr_is_the_lowest_of_all_thresholds(pairs, tpr):
    truth, score = np.array(pairs).T
    rates = [(np.mean(score[truth == 1] >= t), np.mean(score[truth == 0] >= t)) for t in range(8)]
    expected = min(false for true, false in rates if true >= tpr)
    assert fpr_at_tpr(truth, score, tpr) == expected


@pytest.mark.parametrize("truth", [[0, 0, 0], [1, 1, 1]])
def test_fpr_of_one_class_is_undefined(truth):
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(fpr_at_tpr(truth, [1.0, 2.0, 3.0], 0.95))
