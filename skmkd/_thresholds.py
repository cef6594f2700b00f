"""Where normal ends: thresholds from training images or from normal images held out."""

from __future__ import annotations

from math import ceil, floor
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike


def training_threshold(anomaly: ArrayLike, contamination: float) -> float:
    """Return the anomaly score that the share ``contamination`` of training images exceeds."""
    return -float(np.quantile(-np.asarray(anomaly), contamination))


def check_fpr(fpr: float, n: int, name: str = "X") -> None:
    """Check that a false-positive rate is one that the n held-out images of a name can set."""
    if not isinstance(fpr, Real) or not 0 < fpr < 1:
        raise ValueError(f"fpr must be a float between 0 and 1, both excluded; got {fpr!r}.")
    if n_above(fpr, n) == 0:
        enough = ceil(1 / fpr) - 1
        raise ValueError(f"{name} must hold at least {enough} images for fpr={fpr}; got {n}.")


def n_above(fpr: float, n: int) -> int:
    """Return how many of n held-out images lie at or above the conformal threshold."""
    return floor((n + 1) * fpr * (1 + 1e-12))  # 20 * 0.05 must come to 1


def conformal_threshold(anomaly: ArrayLike, fpr: float) -> float:
    """Return the ``ceil((n + 1) * (1 - fpr))``-th smallest of n held-out anomaly scores.

    A new normal image, exchangeable with these, exceeds it with a probability of at most fpr
    (split conformal prediction; Vovk et al., Algorithmic Learning in a Random World, 2005).
    """
    ordered = np.sort(anomaly)
    return float(ordered[-n_above(fpr, len(ordered))])
