"""Cross-validation for detectors that are trained on normal images only."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import BaseCrossValidator, StratifiedGroupKFold, StratifiedKFold
from sklearn.utils._param_validation import Interval, validate_parameter_constraints
from sklearn.utils.validation import _num_samples, check_consistent_length, column_or_1d

from skmkd._labels import check_labels
from skmkd._runtime import draw_seed


class NormalOnlySplit(BaseCrossValidator):
    """K-fold cross-validation in which every training fold holds normal images only.

    The images are shuffled and split into `n_splits` folds with equal shares of normal images and
    of anomalies. Each fold is the test set once; the training set is the normal images of the
    other folds.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2.
    random_state : int, RandomState instance or None, default=None
        Seed of the shuffling. With None the folds differ from call to call, which scikit-learn's
        successive halving refuses. NumPy's global generator is not used.

    See Also
    --------
    anomaly_roc_auc : A scorer to use with it.
    sklearn.model_selection.StratifiedKFold : Keeps anomalies in the training folds.
    sklearn.model_selection.StratifiedGroupKFold : Likewise, for groups.

    Notes
    -----
    With ``refit=True``, scikit-learn's default, a search ends with a fit to *all* of its images,
    anomalies included, whatever the splitter. Use ``refit=False`` and fit the best parameters to
    the normal images, as in the example.

    Training folds hold one class, for which most scores are undefined. Keep
    ``return_train_score=False``; successive halving needs it set explicitly. Use epochs as its
    resource (``resource="max_iter"``): with images as the resource it subsamples the test folds,
    too, and may leave no anomaly in them.

    Examples
    --------
    >>> import numpy as np
    >>> from skimage.data import lfw_subset
    >>> from sklearn.base import clone
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skmkd import MKDDetector
    >>> from skmkd.model_selection import NormalOnlySplit, anomaly_roc_auc
    >>> X = lfw_subset()[50:150]  # 50 faces, then 50 other crops
    >>> y = np.repeat([1, -1], 50)  # normal, anomaly
    >>> detector = MKDDetector(
    ...     image_size=32, batch_size=8, max_iter=2, validation_fraction=0, random_state=0
    ... )
    >>> search = GridSearchCV(
    ...     detector,
    ...     {"value_weight": [0.0, 1.0]},
    ...     scoring=anomaly_roc_auc,
    ...     cv=NormalOnlySplit(2, random_state=0),
    ...     refit=False,
    ... ).fit(X, y)
    >>> best = clone(detector).set_params(**search.best_params_).fit(X[y == 1])
    """

    __metadata_request__split: ClassVar = {"groups": True}
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_splits": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self, n_splits: int = 5, *, random_state: int | np.random.RandomState | None = None
    ) -> None:
        self.n_splits = n_splits
        self.random_state = random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds.

        Parameters
        ----------
        X, y, groups : object
            Ignored.

        Returns
        -------
        n_splits : int
            Number of folds.
        """
        return self.n_splits

    def split(
        self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Generate the indices of training and test images of each fold.

        Parameters
        ----------
        X : array-like or list of length n
            The images.
        y : array-like of shape (n,), default=None
            +1 for normal images, -1 for anomalies. None means that all images are normal.
        groups : array-like of shape (n,), default=None
            Group of each image, such as the number of the part that it shows. The images of a
            group are never in both the training and the test set of a split.

        Yields
        ------
        train : ndarray of shape (n_train,), int
            Indices of normal images of the other folds.
        test : ndarray of shape (n_test,), int
            Indices of all images of the fold: at least one normal image, and at least one anomaly
            if `y` has any.

        Raises
        ------
        ValueError
            If X, y and groups differ in length, y holds anything but +1 and -1 or no normal
            image, `n_splits` is less than 2, or there are fewer images or groups of a class than
            folds.
        """
        given = {"n_splits": self.n_splits, "random_state": self.random_state}
        validate_parameter_constraints(self._parameter_constraints, given, type(self).__name__)
        labels = check_labels(np.ones(_num_samples(X), int) if y is None else y)
        parts = np.arange(len(labels)) if groups is None else column_or_1d(groups)
        check_consistent_length(X, labels, parts)
        kinds = {1: "normal images"} | ({-1: "anomalies"} if -1 in labels else {})
        for label, name in kinds.items():
            n_parts = len(np.unique(parts[labels == label]))
            if n_parts < self.n_splits:
                what = name if groups is None else f"groups with {name}"
                raise ValueError(
                    f"n_splits must be at most the number of {what}; got n_splits="
                    f"{self.n_splits} for {n_parts}."
                )
        splits = list(self._folds(labels, None if groups is None else parts))
        for label, name in kinds.items():
            if not all((labels[test] == label).any() for _, test in splits):
                raise ValueError(
                    f"groups must leave {name} for each of n_splits={self.n_splits} folds; got a "
                    "fold without any. Take fewer folds or another random_state."
                )
        for train, test in splits:
            yield train[labels[train] == 1], test

    def _folds(
        self, labels: np.ndarray, groups: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        seed = draw_seed(self.random_state)
        if groups is None:
            folds = StratifiedKFold(self.n_splits, shuffle=True, random_state=seed)
            return folds.split(labels, labels)
        _, codes = np.unique(groups, return_inverse=True)
        order = np.random.default_rng(seed).permutation(codes.max() + 1)
        # Random group numbers in place of shuffle=True, which is wrong in older scikit-learn.
        return StratifiedGroupKFold(self.n_splits).split(labels, labels, order[codes])
