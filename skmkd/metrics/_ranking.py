"""Metrics at one point of a curve, of images or of pixels; anomalies are the positive class."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_curve, roc_curve


def f1_max(y_true: ArrayLike, y_score: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """Return the highest F1 score that any threshold reaches."""
    precision, recall, _ = precision_recall_curve(y_true, y_score, sample_weight=sample_weight)
    both = precision + recall
    return float(np.max(2 * precision * recall / np.where(both > 0, both, 1)))


def fpr_at_tpr(y_true: ArrayLike, y_score: ArrayLike, tpr: float) -> float:
    """Return the lowest false-positive rate at which the true-positive rate is at least `tpr`."""
    false, true, _ = roc_curve(y_true, y_score, drop_intermediate=False)
    return float(false[np.argmax(true >= tpr)]) if true[-1] == 1 else np.nan
