"""Scorers for one-class detectors: anomalies are the positive class, and more is better."""

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


def roc_auc(y_true: ArrayLike, decision: np.ndarray) -> float:
    """Return the area under the ROC curve; anomalies, -1, are positive."""
    return float(roc_auc_score(check_labels(y_true) == -1, -decision))


def average_precision(y_true: ArrayLike, decision: np.ndarray) -> float:
    """Return average precision; anomalies, -1, are positive."""
    return float(average_precision_score(check_labels(y_true) == -1, -decision))


def best_f1(y_true: ArrayLike, decision: np.ndarray) -> float:
    """Return the F1 score at the threshold that is best for it; anomalies, -1, are positive."""
    return f1_max(check_labels(y_true) == -1, -decision)


def fpr95(y_true: ArrayLike, decision: np.ndarray) -> float:
    """Return the share of false alarms at the threshold that finds 95 % of anomalies, -1."""
    return fpr_at_tpr(check_labels(y_true) == -1, -decision, 0.95)


def _scorer(metric: Callable[..., float], greater_is_better: bool, what: str) -> Scorer:
    """Return a scorer that shares its answers with others in `cross_validate`."""
    scorer = make_scorer(
        metric, response_method="decision_function", greater_is_better=greater_is_better
    )
    scorer.__doc__ = f"""{what}

Parameters
----------
estimator : object
    A fitted detector, or a pipeline that ends with one: `decision_function` must be higher for
    normal images.
X : array-like or list of array-like
    Images to test on, normal ones and anomalies.
y : array-like of shape (n,)
    +1 for normal images, -1 for anomalies.

Returns
-------
score : float
    Higher = better.

Raises
------
ValueError
    If y holds anything but +1 and -1.
"""
    return scorer


anomaly_roc_auc = _scorer(
    roc_auc,
    True,
    """Area under the ROC curve, in [0, 1]; 0.5 is chance.

The same as ``scoring="roc_auc"`` of scikit-learn, since it is the same for either class. NaN, with
an UndefinedMetricWarning, if y holds one kind only.""",
)

anomaly_average_precision = _scorer(
    average_precision,
    True,
    """Average precision with anomalies as the positive class, in [0, 1].

Chance is the share of anomalies. (``scoring="average_precision"`` of scikit-learn takes normal
images as positive, which makes it close to 1 where anomalies are rare, whatever the detector.)
0, with a warning, if y holds no anomaly.""",
)

anomaly_f1_max = _scorer(
    best_f1,
    True,
    """F1 score of anomalies at the threshold that is best for it, in [0, 1].

It compares scores, not thresholds: the best one is chosen with the truth in hand, and `offset_`
plays no part. 0, with a warning, if y holds no anomaly.""",
)

neg_anomaly_fpr95 = _scorer(
    fpr95,
    False,
    """Negative share of false alarms where 95 % of anomalies are found, in [-1, 0].

Negative, as scikit-learn's scorers of errors are, so that higher is better: -0.2 says that the
threshold that finds 95 % of the anomalies raises a false alarm on 20 % of the normal images. NaN,
with an UndefinedMetricWarning, if y holds one kind only.""",
)


def mean_normal_score(estimator: Any, X: Any, y: ArrayLike | None = None) -> float:
    """Mean score of held-out normal images: for when there are no anomalies to test on.

    For a distillation detector it says how closely the student follows the source on normal images
    that it has not seen: the negative mean of their anomaly scores.

    Parameters
    ----------
    estimator : object
        A fitted detector, or a pipeline that ends with one.
    X : array-like or list of array-like
        Images to test on.
    y : array-like of shape (n,), default=None
        +1 for normal images; -1 for anomalies, which do not count. None takes all images for
        normal.

    Returns
    -------
    score : float
        Mean of `score_samples` over normal images, in its unit. Higher = better.

    Raises
    ------
    ValueError
        If y holds anything but +1 and -1, or no +1, or differs in length from X.

    Notes
    -----
    **It may not compare candidates whose scores have another scale**: `direction_weight`,
    `value_weight`, `direction`, `critical_layers`, `score_layers`, `image_score`, `source`, its
    weights, `normalization`, `image_size`, and with ``image_score="map_max"`` `smoothing_sigma` and
    `localization_params`. More blur or one layer fewer makes any anomaly score smaller, and any
    detector look better. Nor may it compare cloners: one that follows the source everywhere, on
    anomalies too, disagrees least and detects nothing. For these use `anomaly_roc_auc` with a few
    anomalies, real ones or normal images that were spoiled by hand, or else keep the defaults.

    What it may compare is how well one and the same cloner was trained: `learning_rate`,
    `max_iter`, `tol`, `augmentation`; but not with ``direction_weight="auto"``, which depends on
    the first batch of images.

    Examples
    --------
    >>> from skimage.data import lfw_subset
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skmkd import MKDDetector
    >>> from skmkd.model_selection import NormalOnlySplit, mean_normal_score
    >>> X = lfw_subset()[:40]  # faces, all normal
    >>> detector = MKDDetector(
    ...     image_size=32, batch_size=8, max_iter=2, tol=None, random_state=0
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
    return float(scores[labels == 1].mean())
