"""NormalOnlySplit: what its folds hold, and that every search of scikit-learn takes it."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest
import sklearn
from conftest import smooth_and_noisy, tiny_detector
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from skimage.data import lfw_subset
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skmkd import MKDDetector
from skmkd.model_selection import NormalOnlySplit, anomaly_roc_auc, mean_normal_score

SPLIT = NormalOnlySplit(3, random_state=0)


@st.composite
def labels_and_groups(draw):
    n = draw(st.integers(6, 40))
    labels = draw(st.lists(st.sampled_from([1, 1, -1]), min_size=n, max_size=n))
    groups = draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))
    return np.array(labels), np.array(groups)


@given(labels_and_groups(), st.integers(2, 4), st.integers(0, 3), st.booleans())
def test_folds_hold_what_they_promise(case, n_splits, seed, grouped):
    y, groups = case
    X, given_groups = np.zeros((len(y), 2)), groups if grouped else None
    try:
        splits = list(NormalOnlySplit(n_splits, random_state=seed).split(X, y, given_groups))
    except ValueError as error:
        assume("n_splits" not in str(error))
        raise
    assert len(splits) == n_splits
    assert_array_equal(np.sort(np.concatenate([test for _, test in splits])), np.arange(len(y)))
    for train, test in splits:
        assert (y[train] == 1).all()
        assert (y[test] == 1).any()
        assert (y[test] == -1).any() or not (y == -1).any()
        others = np.setdiff1d(np.arange(len(y)), test)
        assert_array_equal(train, others[y[others] == 1])
        if grouped:
            assert not set(groups[train]) & set(groups[test])
        else:
            for label in (1, -1):
                share = (y == label).sum() / n_splits
                assert np.floor(share) <= (y[test] == label).sum() <= np.ceil(share)


def test_sorted_labels_are_shuffled_by_the_seed():
    y = np.repeat([1, -1], 20)
    first, again, other = (
        [test.tolist() for _, test in NormalOnlySplit(random_state=seed).split(y, y)]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert all(np.ptp(test) > 20 for test in first)


def test_normal_images_alone_need_no_labels():
    splits = list(SPLIT.split(np.zeros((9, 4))))
    assert [len(train) for train, _ in splits] == [6, 6, 6]
    assert SPLIT.get_n_splits() == 3


Y = np.array([1, 1, 1, 1, -1, -1, -1])
BAD = [
    (3, np.arange(7) % 2, None, r"y must hold \+1 .* and -1 for anomalies only; got 0\."),
    (3, ["good"] * 5 + ["bad", 3], None, "got 'good', 'bad', '3'"),
    (3, Y * np.nan, None, "got nan"),
    (3, Y[:, None] * [1, 1], None, r"1d array, got an array of shape \(7, 2\)"),
    (4, Y, None, "at most the number of anomalies; got n_splits=4 for 3"),
    (5, abs(Y), [1, 1, 2, 2, 3, 4, 4], "number of groups with normal images; got n_splits=5 for 4"),
    (2, -abs(Y), None, "number of normal images; got n_splits=2 for 0"),
    (3, Y, [0, 0, 1, 2, 3, 3, 3], "number of groups with anomalies; got n_splits=3 for 1"),
    (2, Y, [0, 0, 0, 0, 1, 2, 3], "number of groups with normal images; got n_splits=2 for 1"),
    (1, Y, None, r"'n_splits' parameter of NormalOnlySplit .* \[2, inf\). Got 1"),
    (2.0, Y, None, "Got 2.0"),
    ("3", Y, None, "Got '3'"),
    (3, Y[:-1], None, "inconsistent numbers of samples"),
    (3, Y, np.arange(6), "inconsistent numbers of samples"),
]


@pytest.mark.parametrize(("n_splits", "y", "groups", "message"), BAD)
def test_bad_input_is_refused(n_splits, y, groups, message):
    with pytest.raises(ValueError, match=message):
        list(NormalOnlySplit(n_splits, random_state=0).split(np.zeros((7, 2)), y, groups))


def test_groups_that_leave_a_fold_without_a_kind_are_refused():
    y, groups = [1, 1, -1, 1, -1, -1, 1], [2, 1, 1, 2, 0, 0, 1]
    with pytest.raises(ValueError, match="groups must leave anomalies for each of n_splits=2"):
        list(NormalOnlySplit(2, random_state=0).split(y, y, groups))


def test_bad_random_state_is_refused():
    with pytest.raises(ValueError, match="'random_state' parameter of NormalOnlySplit"):
        list(NormalOnlySplit(random_state="0").split(Y))


def test_global_generator_is_left_alone():
    y = np.repeat([1, -1], 10)
    for groups in (None, np.arange(20)):
        before = np.random.get_state()[1].copy()
        folds = {
            str([test.tolist() for _, test in NormalOnlySplit().split(y, y, groups)])
            for _ in range(5)
        }
        assert len(folds) > 1
        assert_array_equal(np.random.get_state()[1], before)


def test_groups_are_stratified():
    y = np.repeat([1, 1, 1, -1], 15)
    groups = np.repeat(np.arange(30), 2)
    for seed in range(20):
        splits = NormalOnlySplit(3, random_state=seed).split(y, y, groups)
        for _, test in splits:
            assert 4 <= (y[test] == -1).sum() <= 6


def test_repr_and_parameters_are_scikit_learn_s():
    assert repr(SPLIT) == "NormalOnlySplit(n_splits=3, random_state=0)"


class Watching(MKDDetector):
    """Notes, in a file for each fit, how many of the images it learned from are anomalies."""

    folder: Path
    anomalies: set[bytes]

    def fit(self, X, y=None):
        n_anomalous = sum(np.asarray(image).tobytes() in self.anomalies for image in X)
        (self.folder / uuid.uuid4().hex).write_text(f"{n_anomalous} of {len(X)}")
        return super().fit(X, y)

    def __sklearn_clone__(self):
        copy = Watching(**{k: clone(v, safe=False) for k, v in self.get_params().items()})
        copy.folder, copy.anomalies = self.folder, self.anomalies
        return copy


def test_grid_on_real_images_learns_from_normal_ones_only(tmp_path):
    X, y = lfw_subset()[70:130], np.repeat([1, -1], 30)
    detector = Watching(
        image_size=32, batch_size=8, max_iter=2, validation_fraction=0, random_state=0
    )
    detector.anomalies = {image.tobytes() for image in X[y == -1]}
    grid = {"critical_layers": [1, 3]}
    scores = {}
    for n_jobs in (1, 2):
        detector.folder = tmp_path / str(n_jobs)
        detector.folder.mkdir()
        search = GridSearchCV(
            detector, grid, scoring=anomaly_roc_auc, cv=NormalOnlySplit(2, random_state=0),
            refit=False, n_jobs=n_jobs, error_score="raise",
        ).fit(X, y)  # fmt: skip
        scores[n_jobs] = search.cv_results_["mean_test_score"]
        clone(detector).set_params(**search.best_params_).fit(X[y == 1])
        noted = sorted(note.read_text() for note in detector.folder.iterdir())
        assert noted == ["0 of 15"] * 4 + ["0 of 30"]
    assert np.isfinite(scores[1]).all()
    assert len(set(scores[1])) > 1
    assert_allclose(scores[1], scores[2], rtol=1e-3)


NORMAL_AND_NOISY = smooth_and_noisy(n_normal=24, n_anomalous=12)
GRID = {"direction_weight": [0.5, 1.0], "critical_layers": [1, 2]}


@pytest.mark.parametrize(
    "search",
    [
        GridSearchCV(tiny_detector(), GRID, scoring=anomaly_roc_auc, cv=SPLIT, refit=False),
        RandomizedSearchCV(
            tiny_detector(), GRID, n_iter=2, scoring=anomaly_roc_auc, cv=SPLIT, refit=False,
            random_state=0,
        ),
        HalvingGridSearchCV(
            tiny_detector(), GRID, resource="max_iter", max_resources=4, min_resources=2, factor=2,
            scoring=anomaly_roc_auc, cv=SPLIT, refit=False, return_train_score=False,
            random_state=0,
        ),
        HalvingGridSearchCV(
            tiny_detector(), GRID, min_resources=18, factor=2, scoring=anomaly_roc_auc, cv=SPLIT,
            refit=False, return_train_score=False, random_state=0,
        ),
        GridSearchCV(
            make_pipeline(FunctionTransformer(), tiny_detector()),
            {"mkddetector__direction_weight": [0.5, 1.0]},
            scoring=anomaly_roc_auc, cv=SPLIT, refit=False,
        ),
        GridSearchCV(tiny_detector(), GRID, scoring=mean_normal_score, cv=SPLIT, refit=False),
    ],
    ids=["grid", "randomized", "halving epochs", "halving images", "pipeline", "label-free"],
)  # fmt: skip
def test_searches_of_scikit_learn_take_it(search):
    X, y = NORMAL_AND_NOISY
    scores = search.fit(X, y).cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()


def test_cross_validate_takes_groups_and_lists_of_images():
    X, y = NORMAL_AND_NOISY
    images = [image[:, : 10 + i % 3] for i, image in enumerate(X)]
    groups = np.arange(len(y)) // 2
    results = cross_validate(
        tiny_detector(max_iter=60), images, y, groups=groups, scoring=anomaly_roc_auc, cv=SPLIT,
        error_score="raise", return_indices=True,
    )  # fmt: skip
    for train, test in zip(*results["indices"].values(), strict=True):
        assert not set(groups[train]) & set(groups[test])
    assert (results["test_score"] > 0.5).all()


def test_groups_are_routed():
    X, y = NORMAL_AND_NOISY
    groups = np.arange(len(y)) // 2
    with sklearn.config_context(enable_metadata_routing=True):
        results = cross_validate(
            tiny_detector(), X, y, params={"groups": groups}, scoring=anomaly_roc_auc, cv=SPLIT,
            error_score="raise", return_indices=True,
        )  # fmt: skip
    for train, test in zip(*results["indices"].values(), strict=True):
        assert not set(groups[train]) & set(groups[test])


def test_every_image_is_predicted_once():
    X, y = NORMAL_AND_NOISY
    labels = cross_val_predict(tiny_detector(), X, y, cv=SPLIT)
    expected = np.zeros(len(y))
    for train, test in SPLIT.split(X, y):
        expected[test] = tiny_detector().fit(X[train]).predict(X[test])
    assert_array_equal(labels, expected)
    assert len(set(labels)) == 2


def test_halving_asks_for_a_seed():
    X, y = NORMAL_AND_NOISY
    search = HalvingGridSearchCV(
        tiny_detector(), GRID, scoring=anomaly_roc_auc, cv=NormalOnlySplit(3)
    )
    with pytest.raises(ValueError, match="random_state to an int"):
        search.fit(X, y)
