"""Scorers for one-class detectors: anomalies are the positive class, higher is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, make_scorer, roc_auc_score
from sklearn.utils.validation import check_consistent_length

from skmkd._labels import check_labels
from skmkd.metrics._ranking import f1_max, fpr_at_tpr

Scorer = Callable[..., float]  # (estimator, X, y) -> float


def _anomalies(y_true: ArrayLike, decision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which images are anomalies and their anomaly scores, images without a score left out.

    Raises
    ------
    ValueError
        If labels are not +1 and -1, one for each score, or all scores are NaN.
    """
    labels = check_labels(y_true)
    check_consistent_length(labels, decision)
    scored = ~np.isnan(decision)
    if not scored.any():
        raise ValueError("X must hold an image that can be scored; got NaN for all.")
    return labels[scored] == -1, -decision[scored]


def roc_auc(y_true: ArrayLike, decision: np.ndarray) -> float:
    """Return the area under the ROC curve; anomalies, -1, are positive."""
    return float(roc_auc_score(*_anomalies(y_true, decision)))


def average_precision(y_true: ArrayLike, decision: np.ndarray) -> float:
    """Return average precision; anomalies, -1, are positive."""
    return float(average_precision_score(*_anomalies(y_true, decision)))


def best_f1(y_true: ArrayLike, decision: np.ndarray) -> float:
    """Return the highest F1 score that any threshold reaches; anomalies, -1, are positive."""
    return f1_max(*_anomalies(y_true, decision))


def fpr95(y_true: ArrayLike, decision: np.ndarray) -> float:
    """Return the false-positive rate where 95 % of anomalies, -1, are detected."""
    return fpr_at_tpr(*_anomalies(y_true, decision), 0.95)


def _scorer(metric: Callable[..., float], greater_is_better: bool, what: str) -> Scorer:
    """Return a scorer; in `cross_validate`, scorers share the output of `decision_function`."""
    scorer = make_scorer(
        metric, response_method="decision_function", greater_is_better=greater_is_better
    )
    scorer.__doc__ = f"""{what}

Parameters
----------
estimator : object
    A fitted detector, or a pipeline that ends with one. Its `decision_function` must be higher
    for normal images.
X : array-like or list of array-like
    Test images, normal and anomalous. Files that the detector skips (``on_error="skip"``, score
    NaN) are left out.
y : array-like of shape (n,)
    +1 for normal images, -1 for anomalies.

Returns
-------
score : float
    Higher = better.

Raises
------
ValueError
    If y holds anything but +1 and -1, or differs in length from X, or no image has a score.
"""
    return scorer


anomaly_roc_auc = _scorer(
    roc_auc,
    True,
    """Area under the ROC curve, in [0, 1]; chance level is 0.5.

It equals scikit-learn's ``scoring="roc_auc"``, since the area is the same with either class as the
positive one. NaN, with an UndefinedMetricWarning, if y holds one class only.""",
)

anomaly_average_precision = _scorer(
    average_precision,
    True,
    """Average precision with anomalies as the positive class, in [0, 1].

Chance level is the share of anomalies. (In scikit-learn's ``scoring="average_precision"`` normal
images are the positive class, so that any detector gets close to 1 if anomalies are rare.) 0, with
a warning, if y holds no anomaly.""",
)

anomaly_f1_max = _scorer(
    best_f1,
    True,
    """Highest F1 score of anomalies that any threshold reaches, in [0, 1].

The threshold is chosen on the test labels; `offset_` is not used. 0, with a warning, if y holds no
anomaly.""",
)

neg_anomaly_fpr95 = _scorer(
    fpr95,
    False,
    """Negative false-positive rate at a true-positive rate of 95 %, in [-1, 0].

Negative, as in scikit-learn's error scorers, so that higher is better: at -0.2 the threshold that
detects 95 % of the anomalies has false alarms on 20 % of the normal images. NaN, with an
UndefinedMetricWarning, if y holds one class only.""",
)


def mean_normal_score(estimator: Any, X: Any, y: ArrayLike | None = None) -> float:
    """Mean score of held-out normal images, for when there are no anomalies to test on.

    For a distillation detector it measures how well the student matches the source on normal images
    that it was not trained on.

    Parameters
    ----------
    estimator : object
        A fitted detector, or a pipeline that ends with one.
    X : array-like or list of array-like
        Test images. Files that the detector skips (``on_error="skip"``, score NaN) are left out.
    y : array-like of shape (n,), default=None
        +1 for normal images; -1 for anomalies, which are left out. None means that all images are
        normal.

    Returns
    -------
    score : float
        Mean of `score_samples` over normal images, in the same unit. Higher = better.

    Raises
    ------
    ValueError
        If y holds anything but +1 and -1, or no +1, or differs in length from X, or no normal image
        has a score.

    Notes
    -----
    **Do not compare candidates whose scores differ in scale**, that is, in `direction_weight`,
    `value_weight`, `direction`, `critical_layers`, `score_layers`, `image_score`, `source`, its
    weights, `normalization`, `image_size` or, with ``image_score="map_max"``, `smoothing_sigma` and
    `localization_params`. More blur or fewer layers make all anomaly scores smaller, so that any
    detector looks better. Do not compare cloners either: one that matches the source everywhere,
    on anomalies too, gets the best score and detects nothing. For these, use `anomaly_roc_auc`
    with a few anomalies, real or made (see `skmkd.datasets.make_defects`), or keep the defaults.

    Use it to compare how well the same cloner was trained: `learning_rate`, `max_iter`, `tol`,
    `augmentation`; but not with ``direction_weight="auto"``, which depends on the first batch of
    images.

    Examples
    --------
    >>> from skimage.data import lfw_subset
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skmkd import MKDDetector
    >>> from skmkd.model_selection import NormalOnlySplit, mean_normal_score
    >>> X = lfw_subset()[:40]  # faces, all normal
    >>> detector = MKDDetector(
    ...     image_size=32, batch_size=8, max_iter=2, validation_fraction=0, random_state=0
    ... )
    >>> search = GridSearchCV(
    ...     detector,
    ...     {"learning_rate": [1e-5, 1e-3]},
    ...     scoring=mean_normal_score,
    ...     cv=NormalOnlySplit(2, random_state=0),
    ... ).fit(X)
    >>> search.best_params_
    {'learning_rate': 0.001}
    """
    scores = estimator.score_samples(X)
    labels = np.ones(len(scores)) if y is None else check_labels(y)
    check_consistent_length(scores, labels)
    if not (labels == 1).any():
        raise ValueError("y must hold +1 for at least one image; got -1 for all.")
    normal = scores[labels == 1]
    if np.isnan(normal).all():
        raise ValueError("X must hold a normal image that can be scored; got NaN for all.")
    return float(np.nanmean(normal))
