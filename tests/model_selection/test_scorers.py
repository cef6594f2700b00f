"""Scorers: the anomaly is positive, higher is better, and bad labels are told."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from conftest import smooth_and_noisy, tiny_detector
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, f1_score, get_scorer, roc_auc_score
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skmkd.model_selection import (
    NormalOnlySplit,
    anomaly_average_precision,
    anomaly_f1_max,
    anomaly_roc_auc,
    mean_normal_score,
    neg_anomaly_fpr95,
)

SCORERS = [anomaly_roc_auc, anomaly_average_precision, anomaly_f1_max, neg_anomaly_fpr95]


@pytest.fixture(scope="module")
def case():
    """A forest that is right most of the time, 60 normal points and 20 anomalies."""
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(60, 2)), rng.normal(1.5, 1.5, size=(20, 2))])
    y = np.repeat([1, -1], [60, 20])
    return IsolationForest(random_state=0).fit(X[:40]), X, y


def test_anomalies_are_the_positive_class(case):
    detector, X, y = case
    anomaly, score = y == -1, -detector.score_samples(X)
    thresholds = np.unique(score)
    assert anomaly_roc_auc(*case) == pytest.approx(roc_auc_score(anomaly, score))
    assert anomaly_average_precision(*case) == pytest.approx(
        average_precision_score(anomaly, score)
    )
    best = max(f1_score(anomaly, score >= t) for t in thresholds)
    assert anomaly_f1_max(*case) == pytest.approx(best)
    found = [t for t in thresholds if np.mean(score[anomaly] >= t) >= 0.95]
    assert neg_anomaly_fpr95(*case) == -np.mean(score[~anomaly] >= max(found))


def test_what_scikit_learn_has_differs_where_the_class_matters(case):
    assert anomaly_roc_auc(*case) == pytest.approx(get_scorer("roc_auc")(*case))
    assert anomaly_average_precision(*case) < get_scorer("average_precision")(*case) - 0.05


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_better_detector_has_a_higher_score(case, scorer):
    detector, X, y = case

    class Perfect(IsolationForest):
        def decision_function(self, X):
            return y + super().decision_function(X)

    perfect = Perfect(random_state=0).fit(X[:40])
    assert scorer(perfect, X, y) == (0 if scorer is neg_anomaly_fpr95 else 1)
    assert scorer(detector, X, y) < scorer(perfect, X, y)
    assert -1 <= scorer(detector, X, y) <= 1


@pytest.mark.parametrize("scorer", [*SCORERS, mean_normal_score])
def test_scorer_takes_pipelines_pickles_and_copies(case, scorer):
    _, X, y = case
    pipeline = make_pipeline(StandardScaler(), IsolationForest(random_state=0)).fit(X[:40])
    score = scorer(pipeline, X, y)
    assert pickle.loads(pickle.dumps(scorer))(pipeline, X, y) == score
    assert copy.deepcopy(scorer)(pipeline, X, y) == score
    assert isinstance(score, float)


@pytest.mark.parametrize("scorer", [*SCORERS, mean_normal_score])
@pytest.mark.parametrize("labels", [(0, 1), ("good", "bad"), (1.5, -1)])
def test_other_labels_are_refused(case, scorer, labels):
    detector, X, y = case
    with pytest.raises(ValueError, match=r"y must hold \+1 for normal images and -1 for anomalies"):
        scorer(detector, X, np.where(y == 1, *labels))


@pytest.mark.parametrize("label", [1, -1])
def test_one_kind_alone_is_undefined(case, label):
    detector, X, y = case
    X, y = X[y == label], y[y == label]
    for scorer in (anomaly_roc_auc, neg_anomaly_fpr95):
        with pytest.warns(UndefinedMetricWarning):
            assert np.isnan(scorer(detector, X, y))
    if label == 1:
        for scorer in (anomaly_average_precision, anomaly_f1_max):
            with pytest.warns(UserWarning, match="No positive class found"):
                assert scorer(detector, X, y) == 0


def test_mean_normal_score_leaves_anomalies_out(case):
    detector, X, y = case
    expected = detector.score_samples(X[y == 1]).mean()
    assert mean_normal_score(detector, X, y) == pytest.approx(expected)
    assert mean_normal_score(detector, X[y == 1]) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"\+1 for at least one image"):
        mean_normal_score(detector, X[y == -1], y[y == -1])


def test_several_scorers_ask_the_detector_once(monkeypatch):
    X, y = smooth_and_noisy(n_normal=12, n_anomalous=6)
    asked = []
    detector = tiny_detector()
    score_samples = type(detector).score_samples

    def counted(self, X):
        asked.append(len(X))
        return score_samples(self, X)

    monkeypatch.setattr(type(detector), "score_samples", counted)
    results = cross_validate(
        detector, X, y, cv=NormalOnlySplit(2, random_state=0), error_score="raise",
        scoring={str(i): scorer for i, scorer in enumerate(SCORERS)},
    )  # fmt: skip
    assert asked == [9, 9]
    assert all(np.isfinite(values).all() for values in results.values())


def test_mean_normal_score_takes_as_many_labels_as_images(case):
    detector, X, y = case
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        mean_normal_score(detector, X, y[:-1])
