"""scikit-learn's own check suite, whole, on 2-D rows."""

from __future__ import annotations

import pytest
import sklearn
from conftest import TinySource
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.fixes import parse_version

from skmkd import DetectorEnsemble, MemKDDetector, MKDDetector

N_CHECKS = 47 if parse_version(sklearn.__version__) >= parse_version("1.9") else 46  # from 1.6 on
TINY = {"source": TinySource(), "image_size": 16, "max_iter": 2}
MKD, MEMKD = MKDDetector(critical_layers=2, **TINY), MemKDDetector(critical_layers=1, **TINY)
ENSEMBLE = DetectorEnsemble([("mkd", MKD), ("memkd", MEMKD)])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:.*(held-out image|too few to hold some out)")  # of small sets
@pytest.mark.parametrize("estimator", [MKD, MEMKD, ENSEMBLE], ids=lambda each: type(each).__name__)
def test_every_check_passes_and_none_is_skipped(estimator):
    results = check_estimator(estimator)
    assert {result["status"] for result in results} == {"passed"}
    assert len(results) >= N_CHECKS
