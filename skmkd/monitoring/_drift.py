"""Drift of anomaly scores: an exact test of whether recent ones are those of calibration."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from math import comb, floor
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

EFFECT = {
    "lower": "look more anomalous: the thresholds raise more false alarms",
    "higher": "look more normal: the thresholds miss more defects",
}


@dataclass(frozen=True)
class DriftResult:
    """Outcome of a test for drift; printed, it says what to do.

    Parameters
    ----------
    statistic : float
        Of `drift_test`: largest difference, in [0, 1], between the shares of recent and of
        calibration scores up to a value. Of `DriftMonitor`: largest capital so far, 1 at first.
    p_value : float
        Bound on the probability of so large a statistic without drift.
    alpha : float
        Level: bound on the probability of a false alarm.
    direction : {"lower", "higher"}
        Where recent scores lie if there is drift: "lower" = more anomalous, "higher" = more normal.
    n : int
        Number of recent scores.
    n_calibration : int
        Number of calibration scores.
    n_missing : int
        Number of images without a score, NaN, that were left out.

    See Also
    --------
    drift_test : Compares recent scores with calibration scores.
    DriftMonitor : Compares scores as they come.

    Examples
    --------
    >>> from skmkd.monitoring import drift_test
    >>> result = drift_test(range(50), range(30, 60))
    >>> result.direction, result.drifted
    ('higher', True)
    >>> print(result)  # doctest: +NORMALIZE_WHITESPACE
    Drift found in 30 scores (p = 9.8e-07, alpha = 0.01): recent scores are higher than the 50 of
    calibration. Recent images look more normal: the thresholds miss more defects. Look at some of
    them; if they are normal, calibrate again with recent normal images.
    """

    statistic: float
    p_value: float
    alpha: float
    direction: Literal["lower", "higher"]
    n: int
    n_calibration: int
    n_missing: int

    @property
    def drifted(self) -> bool:
        """Whether the p-value is at most alpha."""
        return self.p_value <= self.alpha

    def __str__(self) -> str:
        figures = f"p = {self.p_value:.2g}, alpha = {self.alpha:g}"
        if self.drifted:
            text = (
                f"Drift found in {self.n} scores ({figures}): recent scores are {self.direction} "
                f"than the {self.n_calibration} of calibration. Recent images "
                f"{EFFECT[self.direction]}. Look at some of them; if they are normal, calibrate "
                "again with recent normal images."
            )
        else:
            text = (
                f"No drift found in {self.n} scores ({figures}), compared with "
                f"{self.n_calibration} of calibration. The thresholds can stay."
            )
        if self.n_missing:
            text += f" Images without a score, left out: {self.n_missing}."
        return text


def smirnov(
    calibration: np.ndarray, recent: np.ndarray, contamination: float
) -> tuple[float, float, Literal["lower", "higher"]]:
    """Return statistic, p-value and direction of recent scores against ascending calibration ones.

    As many of the lowest recent scores as may be anomalies are left out before recent scores are
    called lower, and as many of the highest before they are called higher. With at most that many
    anomalies, whatever their scores, what is left is nowhere lower, or higher, than the scores of
    the normal images alone, so that their null distribution bounds the p-value.
    """
    n_out = n_anomalies(contamination, len(recent))
    n, m = len(recent) - n_out, len(calibration)
    ordered = np.sort(recent)
    lower = excess(calibration, ordered[n_out:])
    higher = excess(-calibration[::-1], -ordered[:n][::-1])
    largest = max(lower, higher)
    p_value = min(1.0, 2 * smirnov_tail(largest, n, m))
    return largest / (n * m), p_value, "lower" if lower >= higher else "higher"


def n_anomalies(contamination: float, n: int) -> int:
    """Return how many of n recent images may be anomalies."""
    return floor(n * contamination * (1 + 1e-12))  # against rounding: 100 * 0.29 must give 29


def excess(calibration: np.ndarray, recent: np.ndarray) -> int:
    """Return Smirnov's one-sided statistic of two ascending arrays, times both their lengths."""
    n, m = len(recent), len(calibration)
    at_or_below = np.searchsorted(calibration, recent, side="right")
    return int((np.arange(1, n + 1) * m - at_or_below * n).max())


def smirnov_tail(excess: int, n: int, m: int) -> float:
    """Return the probability of at least this excess, if all orders of n + m scores are as likely.

    Orders are paths from (0, 0) to (n, m): a step to the right is a recent score, a step up one of
    calibration (Hodges, The significance probability of the Smirnov two-sample test, Arkiv för
    Matematik 3, 1958). With ties it is an upper bound.
    """
    n, m = sorted((n, m))  # a path read backwards has the same excess with both in exchange
    i = np.arange(n + 1)
    reached = (i * (n + m) >= excess).astype(float)  # share of the paths to (i, s - i)
    for s in range(1, n + m + 1):
        right, up = i[1:] * reached[:-1], np.maximum(s - i[1:], 0) * reached[1:]
        reached[1:] = (right + up) / s
        reached[i * (n + m) >= excess + s * n] = 1
    return float(reached[n])


def check_level(alpha: float, contamination: float) -> None:
    """Check alpha and contamination."""
    if not isinstance(alpha, Real) or not 1e-6 <= alpha <= 0.5:
        raise ValueError(f"alpha must be a float from 1e-6 to 0.5; got {alpha!r}.")
    if not isinstance(contamination, Real) or not 0 <= contamination < 0.5:
        raise ValueError(
            f"contamination must be a float from 0 to below 0.5; got {contamination!r}."
        )


def check_scores(scores: ArrayLike, name: str) -> np.ndarray:
    """Return scores as a new array of shape (n,), float64; NaN is allowed."""
    try:
        given = np.asarray(scores)
        if given.dtype.kind not in "biufO":
            raise TypeError(f"the dtype {given.dtype}")
        array = np.array(given, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # the last, of tensors with gradients
        raise ValueError(f"{name} must be numbers of shape (n,); got {error}.") from error
    if array.ndim != 1:
        raise ValueError(f"{name} must be numbers of shape (n,); got the shape {array.shape}.")
    return array


def check_calibration(calibration: Any) -> np.ndarray:
    """Return ascending calibration scores, those of a detector or as given."""
    if hasattr(calibration, "score_samples"):
        check_is_fitted(calibration)
        calibration = getattr(calibration, "calibration_scores_", None)
        if calibration is None:
            raise ValueError(
                "calibration must hold calibration scores; the thresholds of this detector are "
                "from training images. Call calibrate with held-out normal images first."
            )
    scores = np.sort(check_scores(calibration, "calibration"))
    if len(scores) == 0 or np.isnan(scores).any():
        raise ValueError(
            f"calibration must hold scores, none of them NaN; got {len(scores)}, "
            f"{np.isnan(scores).sum()} of them NaN."
        )
    return scores


def fewest(other: int, alpha: float) -> int:
    """Return how many scores it takes, beside `other` of the other kind, for a p-value of alpha."""
    return next(n for n in count(1) if comb(n + other, n) * alpha >= 2)


def drift_test(
    calibration: Any, scores: ArrayLike, *, alpha: float = 0.01, contamination: float = 0.05
) -> DriftResult:
    """Test whether recent scores come from the distribution of the calibration scores.

    If they do, the thresholds hold: they raise as many false alarms as they were set for. The test
    finds scores that are lower (more anomalous, as when a camera has moved) as well as higher ones
    (more normal, so that defects are missed).

    Parameters
    ----------
    calibration : detector or array-like of shape (m,)
        A fitted detector that has ``calibration_scores_``, or such scores: those of normal images
        that were held out of `fit`.
    scores : array-like of shape (n,)
        Scores of recent images, as of ``detector.score_samples``. Nearly all should be of normal
        images. NaN, of files that the detector skips, are left out.
    alpha : float in [1e-6, 0.5], default=0.01
        Level: the probability that drift is found where there is none is at most alpha.
    contamination : float in [0, 0.5), default=0.05
        Share of the recent images, rounded down to a number of them, that may be anomalies: alpha
        holds whatever their scores.

    Returns
    -------
    result : DriftResult
        With `drifted`, `p_value`, `direction` and more; printed, it says what to do.

    Raises
    ------
    NotFittedError
        If a detector is given that is not fitted.
    ValueError
        If a detector is given without calibration scores, `alpha` or `contamination` are out of
        range, `calibration` or `scores` are not as described, or there are too few scores for
        `alpha`.

    See Also
    --------
    DriftMonitor : Tests scores as they come, any number of times.

    Notes
    -----
    The statistic is that of the two-sample test of Smirnov, one for each direction: the largest
    difference between the shares of recent and calibration scores up to a value. As many of the
    lowest recent scores as may be anomalies are left out before it is asked whether recent scores
    are lower; as many of the highest, before it is asked whether they are higher. The p-value is
    twice the smaller of both directions, each of which is computed exactly by counting paths
    [1]_. It allows for the number of calibration scores, however small.

    The images must be independent of each other. Those of one lot, or frames of a video, resemble
    each other more than those of calibration do among themselves, and count as drift. Take them
    from as many lots as calibration did.

    References
    ----------
    .. [1] J. L. Hodges, "The significance probability of the Smirnov two-sample test", Arkiv för
       Matematik 3, 1958. doi:10.1007/BF02589501.

    Examples
    --------
    >>> import numpy as np
    >>> from skmkd.monitoring import drift_test
    >>> rng = np.random.default_rng(0)
    >>> calibration_scores, recent = rng.normal(size=99), rng.normal(size=50)
    >>> drift_test(calibration_scores, recent).drifted
    False
    >>> result = drift_test(calibration_scores, recent - 1)
    >>> result.drifted, result.direction
    (True, 'lower')
    """
    check_level(alpha, contamination)
    reference = check_calibration(calibration)
    given = check_scores(scores, "scores")
    recent = given[~np.isnan(given)]
    enough = fewest(len(reference), alpha)
    if len(recent) - n_anomalies(contamination, len(recent)) < enough:
        enough = next(n for n in count(enough) if n - n_anomalies(contamination, n) >= enough)
        raise ValueError(
            f"scores must hold at least {enough} that are not NaN, for alpha={alpha} and "
            f"{len(reference)} calibration scores; got {len(recent)}."
        )
    statistic, p_value, direction = smirnov(reference, recent, contamination)
    return DriftResult(
        statistic,
        p_value,
        alpha,
        direction,
        n=len(recent),
        n_calibration=len(reference),
        n_missing=len(given) - len(recent),
    )
