"""Thresholds of anomaly scores, from training images or from held-out normal images."""

from __future__ import annotations

from math import ceil, floor
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike


def training_threshold(anomaly: ArrayLike, contamination: float) -> float:
    """Return the quantile of anomaly scores that a share `contamination` of them exceeds."""
    return -float(np.quantile(-np.asarray(anomaly), contamination))


def check_fpr(fpr: float, n: int, name: str = "X") -> None:
    """Check that `fpr` is in (0, 1) and that n held-out images are enough for it.

    Parameters
    ----------
    fpr : float
        False-positive rate.
    n : int
        Number of held-out images; at least ``1 / fpr - 1`` are needed.
    name : str, default="X"
        Name of the parameter that holds the images, for the error message.

    Raises
    ------
    ValueError
        If `fpr` is out of range or n too small.
    """
    if not isinstance(fpr, Real) or not 0 < fpr < 1:
        raise ValueError(f"fpr must be a float between 0 and 1, both excluded; got {fpr!r}.")
    if n_above(fpr, n) == 0:
        enough = ceil(1 / fpr) - 1
        raise ValueError(f"{name} must hold at least {enough} images for fpr={fpr}; got {n}.")


def n_above(fpr: float, n: int) -> int:
    """Return the number of held-out images, of n, that score at or above the threshold."""
    return floor((n + 1) * fpr * (1 + 1e-12))  # against rounding: 20 * 0.05 must give 1


def conformal_threshold(anomaly: ArrayLike, fpr: float) -> float:
    """Return the ``ceil((n + 1) * (1 - fpr))``-th smallest of n held-out anomaly scores.

    The score of a new normal image, if exchangeable with these, exceeds it with a probability of
    at most fpr (split conformal prediction; Vovk et al., Algorithmic Learning in a Random World,
    2005).
    """
    ordered = np.sort(anomaly)
    return float(ordered[-n_above(fpr, len(ordered))])
