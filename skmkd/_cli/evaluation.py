"""Metrics that ``skmkd evaluate`` prints, computed from arrays on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skmkd import metrics
from skmkd.model_selection._scorers import average_precision, best_f1, fpr95, roc_auc


class StoredArrays(Sequence[np.ndarray]):
    """Arrays in .npy files, one file each, loaded on every access.

    Parameters
    ----------
    folder : Path
        Existing folder of the files.
    name : str
        Start of the file names.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._n = 0

    def append(self, array: np.ndarray) -> None:
        """Write one more array."""
        np.save(self._file(self._n), array)
        self._n += 1

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._n:
            raise IndexError(index)
        return np.load(self._file(index))

    def _file(self, index: int) -> Path:
        return self._folder / f"{self._name}{index}.npy"


def image_metrics(y: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Return the metrics of image scores.

    Parameters
    ----------
    y : ndarray of shape (n,)
        +1 for normal images, -1 for anomalies, which are the positive class.
    scores : ndarray of shape (n,)
        Higher = more normal.
    threshold : float
        Images with a lower score are predicted as anomalies.

    Returns
    -------
    values : dict of str to float
        Value of each metric; the number of images comes first.
    """
    anomalous = y == -1
    return {
        "images": len(y),
        "image AUROC": roc_auc(y, scores),
        "image average precision": average_precision(y, scores),
        "image F1 max": best_f1(y, scores),
        "image FPR at 95 % TPR": fpr95(y, scores),
        "anomalies found": float(np.mean(scores[anomalous] < threshold)),
        "false alarms": float(np.mean(scores[~anomalous] < threshold)),
    }


def pixel_metrics(masks: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the metrics of localization maps.

    Parameters
    ----------
    masks : sequence of n ndarrays of shape (H, W), bool
        True = anomalous. Iterated over several times.
    maps : sequence of n ndarrays of shape (H, W)
        Localization maps, higher = more anomalous. Iterated over several times.

    Returns
    -------
    values : dict of str to float
        Value of each metric; NaN where it is undefined.
    """
    return {
        "pixel AUROC": metrics.pixel_roc_auc_score(masks, maps, exact=False),
        "pixel average precision": metrics.pixel_average_precision_score(masks, maps, exact=False),
        "pixel F1 max": metrics.pixel_f1_max_score(masks, maps, exact=False),
        "AUPRO": metrics.aupro_score(masks, maps, exact=False),
    }
