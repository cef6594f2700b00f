"""Drift of a stream of anomaly scores: a conformal test martingale."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skmkd.monitoring._drift import DriftResult, check_calibration, check_level, check_scores

BETS = np.array([-2.0, -1, 0, 1, 2])  # slopes: negative ones win if scores are low
JUMP_RATES = (
    10.0 ** -np.arange(1, 7)[:, None]
)  # the rarer, the longer a stream can have been normal


class DriftMonitor:
    r"""Watch scores as they come; the probability of a false alarm, ever, is at most alpha.

    Each score is ranked among the calibration scores and all scores before it. Without drift all
    ranks are as likely, and the monitor, which bets that they are low or high, does not get rich.
    It raises an alarm when its capital has grown from 1 to ``1 / alpha``.

    Parameters
    ----------
    calibration : detector or array-like of shape (m,)
        As in `drift_test`.
    alpha : float in [1e-6, 0.5], default=0.01
        Probability of a false alarm, at most, however long the stream.
    contamination : float in [0, 0.5), default=0.05
        Share of the images that may be anomalies, with scores lower than those of normal images.

    Raises
    ------
    NotFittedError
        If a detector is given that is not fitted.
    ValueError
        If a detector is given without calibration scores, `alpha` or `contamination` are out of
        range, or `calibration` is not as described.

    See Also
    --------
    drift_test : Compares recent scores with calibration scores once.

    Notes
    -----
    The capital is a conformal test martingale [1]_. With N scores so far, calibration included, the
    newest has the rank :math:`r \in \{0, ..., N - 1\}`, ties broken at random; if the scores are
    exchangeable, ranks are independent and uniform. A bet with slope :math:`\epsilon \in \{-2, -1,
    0, 1, 2\}` multiplies its capital by :math:`1 + \epsilon ((r + 1/2) / N - 1/2)`, whose mean is
    1. After each score a small share of the capital moves from each slope to all (the Simple Jumper
    of [2]_), at six rates side by side, so that drift is noticed soon after a long time without. By
    Ville's inequality, capital ever reaches :math:`1 / \alpha` with a probability of at most
    :math:`\alpha`.

    An anomaly multiplies a bet by at most :math:`1 + |\epsilon| / 2`. Each bet is therefore divided
    by :math:`1 + |\epsilon| c / 2`, where c is the contamination: the bound holds if each image is
    an anomaly with a probability of at most c, and at no time more than a share c of all images,
    those of calibration included, were. The price is that small changes take longer to notice.

    All scores are kept, in 8 bytes each. They must be independent of each other, as in
    `drift_test`.

    References
    ----------
    .. [1] V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", Springer
       2005.
    .. [2] V. Vovk, I. Petej, I. Nouretdinov, E. Ahlberg, L. Carlsson, A. Gammerman, "Retrain or not
       retrain: conformal test martingales for change-point detection", COPA 2021.
       https://proceedings.mlr.press/v152/vovk21b.html

    Examples
    --------
    >>> import numpy as np
    >>> from skmkd.monitoring import DriftMonitor
    >>> rng = np.random.default_rng(0)
    >>> monitor = DriftMonitor(rng.normal(size=99))
    >>> monitor.update(rng.normal(size=200)).drifted
    False
    >>> result = monitor.update(rng.normal(size=100) - 1)
    >>> result.drifted, result.direction
    (True, 'lower')
    >>> result.n - 200  # images after the change
    35
    """

    def __init__(
        self, calibration: Any, *, alpha: float = 0.01, contamination: float = 0.05
    ) -> None:
        check_level(alpha, contamination)
        self.alpha = alpha
        self.contamination = contamination
        self._scores = array("d", check_calibration(calibration))  # ascending, with those seen
        self._n_calibration = len(self._scores)
        self._n_missing = 0
        self._capital = np.full((len(JUMP_RATES), len(BETS)), 1 / (len(JUMP_RATES) * len(BETS)))
        self._largest = 1.0
        self._ties = np.random.default_rng(0)

    def update(self, scores: ArrayLike) -> DriftResult:
        """Take the scores of the next images.

        Parameters
        ----------
        scores : array-like of shape (n,)
            Scores of one image or more, in the order in which they came, as of
            ``detector.score_samples``. NaN are left out. It does not matter how scores are divided
            among calls.

        Returns
        -------
        result : DriftResult
            Of all scores so far. The p-value never rises. After an alarm, further scores are not
            looked at: start a new monitor when you have calibrated again.

        Raises
        ------
        ValueError
            If `scores` are not as described.
        """
        for score in check_scores(scores, "scores"):
            if 1 / self._largest <= self.alpha:
                break
            if np.isnan(score):
                self._n_missing += 1
            else:
                self._bet(self._rank(float(score)))
        low, high = self._capital[:, BETS < 0].sum(), self._capital[:, BETS > 0].sum()
        return DriftResult(
            self._largest,
            1 / self._largest,
            self.alpha,
            "lower" if low >= high else "higher",
            n=len(self._scores) - self._n_calibration,
            n_calibration=self._n_calibration,
            n_missing=self._n_missing,
        )

    def _rank(self, score: float) -> float:
        """Insert a score; return the middle of its rank, between 0 and 1."""
        first, last = bisect_left(self._scores, score), bisect_right(self._scores, score)
        rank = first if first == last else int(self._ties.integers(first, last + 1))
        self._scores.insert(rank, score)
        return (rank + 0.5) / len(self._scores)

    def _bet(self, rank: float) -> None:
        moved = JUMP_RATES * self._capital
        capital = self._capital - moved + moved.mean(axis=1, keepdims=True)
        self._capital = capital * (
            (1 + BETS * (rank - 0.5)) / (1 + np.abs(BETS) * self.contamination / 2)
        )
        self._largest = max(self._largest, float(self._capital.sum()))
