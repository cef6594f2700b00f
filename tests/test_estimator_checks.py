"""scikit-learn's own check suite, whole, on 2-D rows."""

from __future__ import annotations

import pytest
from conftest import TinySource
from sklearn.utils.estimator_checks import check_estimator

from skmkd import MKDDetector

N_CHECKS = 47  # what scikit-learn 1.9.1 yields for this estimator


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_check_passes_and_none_is_skipped():
    estimator = MKDDetector(source=TinySource(), critical_layers=2, image_size=16, max_iter=2)
    results = check_estimator(estimator)
    assert {result["status"] for result in results} == {"passed"}
    assert len(results) >= N_CHECKS
