"""Histograms of the scores of normal images and of anomalies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import assert_all_finite
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_consistent_length, column_or_1d

from skmkd._labels import check_labels
from skmkd.inspection._plotting import own_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {"normal": (1, "tab:blue"), "anomaly": (-1, "tab:red")}


class ScoreDisplay:
    """Histograms of the scores of normal images and of anomalies, with the threshold.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        +1 for normal images, -1 for anomalies; one class alone is allowed.
    y_score : array-like of shape (n,)
        Scores, higher = more normal.
    threshold : float, default=0.0
        Images with a lower score are predicted as anomalies; 0 for scores of
        `decision_function`.

    Attributes
    ----------
    bars_ : dict of str to matplotlib BarContainer
        Histogram of each class, "normal" and "anomaly", as shares of the images of the class.
    threshold_line_ : matplotlib Line2D
        Line at the threshold.
    ax_ : matplotlib Axes
        Axes of the plot.
    figure_ : matplotlib Figure
        Figure of the axes.

    Examples
    --------
    >>> from skmkd.inspection import ScoreDisplay
    >>> display = ScoreDisplay.from_predictions([1, 1, -1, -1], [0.9, 0.4, 0.2, -3])
    >>> [text.get_text() for text in display.ax_.get_legend().get_texts()]
    ['normal: 0% of 2 below', 'anomaly: 50% of 2 below', 'threshold']
    """

    def __init__(self, *, y_true: ArrayLike, y_score: ArrayLike, threshold: float = 0.0) -> None:
        self.y_true = y_true
        self.y_score = y_score
        self.threshold = threshold

    @classmethod
    def from_estimator(
        cls,
        detector: Any,
        X: ArrayLike | Sequence[ArrayLike],
        y: ArrayLike,
        *,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the scores that a fitted detector computes.

        Parameters
        ----------
        detector : object
            A fitted outlier detector, or a pipeline that ends with one.
        X : array-like or list of array-like
            Images, as in `score_samples`. Files that the detector skips (``on_error="skip"``, score
            NaN) are left out.
        y : array-like of shape (n,)
            +1 for normal images, -1 for anomalies.
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : ScoreDisplay
            The drawn display of `decision_function`, with the threshold 0.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If y holds anything but +1 and -1, or differs in length from X, or X is invalid, or no
            image has a score.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        labels, scores = check_labels(y), detector.decision_function(X)
        check_consistent_length(labels, scores)
        scored = ~np.isnan(scores)
        if not scored.any():
            raise ValueError("X must hold an image that can be scored; got NaN for all.")
        return cls(y_true=labels[scored], y_score=scores[scored]).plot(ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_score: ArrayLike,
        *,
        threshold: float = 0.0,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw given scores.

        Parameters
        ----------
        y_true : array-like of shape (n,)
            +1 for normal images, -1 for anomalies.
        y_score : array-like of shape (n,)
            Scores, higher = more normal.
        threshold : float, default=0.0
            Images with a lower score are predicted as anomalies: `offset_` for scores of
            `score_samples`, 0 for scores of `decision_function`.
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : ScoreDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If y_true holds anything but +1 and -1, differs in length from y_score, or a score is
            not finite.
        """
        return cls(y_true=y_true, y_score=y_score, threshold=threshold).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, *, bins: int | ArrayLike = 30, **kwargs: Any) -> Self:
        """Draw both histograms with the same bins.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a figure.
        bins : int or array-like, default=30
            Number of bins, or their edges.
        **kwargs : dict
            Passed to matplotlib's `hist` for both.

        Returns
        -------
        display : ScoreDisplay
            The display itself.

        Raises
        ------
        ValueError
            If y_true holds anything but +1 and -1, differs in length from y_score, or a score is
            not finite.
        """
        labels, scores = check_labels(self.y_true), column_or_1d(self.y_score, dtype=np.float64)
        check_consistent_length(labels, scores)
        assert_all_finite(scores, input_name="y_score")
        edges = np.histogram_bin_edges(scores, bins)
        ax = own_axes(ax, self)
        self.bars_ = {}
        for name, (label, colour) in KINDS.items():
            chosen = scores[labels == label]
            if len(chosen):
                below = np.mean(chosen < self.threshold)
                style: dict[str, Any] = {
                    "color": colour,
                    "alpha": 0.6,
                    "label": f"{name}: {below:.0%} of {len(chosen)} below",
                    "weights": np.full(len(chosen), 1 / len(chosen)),
                }
                *_, self.bars_[name] = ax.hist(chosen, edges.tolist(), **style | kwargs)
        self.threshold_line_ = ax.axvline(
            self.threshold, color="black", linestyle="--", label="threshold"
        )
        ax.set(xlabel="score: higher is more normal", ylabel="share of the images of a class")
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self
