"""Scorers: anomalies are the positive class, higher is better, bad labels are errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from conftest import smooth_and_noisy, tiny_detector
from PIL import Image
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


def test_scikit_learns_average_precision_has_the_other_positive_class(case):
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
def test_scores_of_one_class_are_undefined(case, label):
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


def test_several_scorers_score_the_images_once(monkeypatch):
    X, y = smooth_and_noisy(n_normal=12, n_anomalous=6)
    n_scored = []
    detector = tiny_detector()
    score_samples = type(detector).score_samples

    def counted(self, X, **options):
        n_scored.append(len(X))
        return score_samples(self, X, **options)

    monkeypatch.setattr(type(detector), "score_samples", counted)
    results = cross_validate(
        detector, X, y, cv=NormalOnlySplit(2, random_state=0), error_score="raise",
        scoring={str(i): scorer for i, scorer in enumerate(SCORERS)},
    )  # fmt: skip
    assert n_scored == [9, 9]
    assert all(np.isfinite(values).all() for values in results.values())


@pytest.mark.parametrize("scorer", [*SCORERS, mean_normal_score])
def test_scorer_requires_as_many_labels_as_images(case, scorer):
    detector, X, y = case
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        scorer(detector, X, y[:-1])


class Skipping(IsolationForest):
    """Gives NaN to the rows that hold NaN, as a detector does to files that it skips."""

    def _scored(self, method, X):
        skipped = np.isnan(X).any(1)
        scores = np.full(len(X), np.nan)
        if not skipped.all():
            scores[~skipped] = getattr(super(), method)(X[~skipped])
        return scores

    def score_samples(self, X):
        return self._scored("score_samples", X)

    def decision_function(self, X):
        return self._scored("decision_function", X)


@pytest.mark.parametrize("scorer", [*SCORERS, mean_normal_score])
@pytest.mark.parametrize("rows", [[0], [65], [3, 4, 60, 79]])
def test_images_without_a_score_are_left_out(case, scorer, rows):
    forest, X, y = case
    detector = Skipping(random_state=0).fit(X[:40])
    spoiled = X.copy()
    spoiled[rows] = np.nan
    expected = scorer(forest, np.delete(X, rows, 0), np.delete(y, rows))
    assert scorer(detector, spoiled, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scorer", [*SCORERS, mean_normal_score])
def test_an_image_with_a_score_is_required(case, scorer):
    _, X, y = case
    detector = Skipping(random_state=0).fit(X[:40])
    with pytest.raises(ValueError, match="X must hold .* that can be scored; got NaN for all"):
        scorer(detector, np.full_like(X, np.nan), y)


def test_a_class_without_scores_is_undefined(case):
    _, X, y = case
    detector = Skipping(random_state=0).fit(X[:40])
    no_anomaly = np.where(y[:, None] == -1, np.nan, X)
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(anomaly_roc_auc(detector, no_anomaly, y))
    no_normal = np.where(y[:, None] == 1, np.nan, X)
    with pytest.raises(ValueError, match="X must hold a normal image that can be scored"):
        mean_normal_score(detector, no_normal, y)


@pytest.mark.parametrize("kind", [1, -1])
@pytest.mark.parametrize("scorer", [*SCORERS, mean_normal_score])
def test_skipped_files_are_left_out(tmp_path, scorer, kind):
    images, y = smooth_and_noisy(n_normal=8, n_anomalous=4)
    images = np.uint8(255 * images)
    detector = tiny_detector(on_error="skip").fit(images[y == 1])
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    skipped = int(np.flatnonzero(y == kind)[0])
    expected = scorer(detector, np.delete(paths, skipped), np.delete(y, skipped))
    assert np.isfinite(expected)
    paths[skipped].write_bytes(b"no image")
    with pytest.warns(UserWarning, match="cannot be read"):
        got = scorer(detector, paths, y)
    assert got == pytest.approx(expected, rel=1e-5)
