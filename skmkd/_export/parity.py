"""How far the answers of an exported file are from those of its detector."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from skmkd._export.exported import ExportedDetector
from skmkd._images.inputs import ImagesLike


class Parity(NamedTuple):
    """Scores of a detector beside those of its exported file.

    Parameters
    ----------
    n_images : int
        Images that were compared.
    largest_difference : float
        Of two scores of an image, as a share of the largest score.
    rank_correlation : float
        Spearman's, of all scores; NaN for a single image.
    n_labels_changed : int
        Images that one calls normal and the other an anomaly.
    """

    n_images: int
    largest_difference: float
    rank_correlation: float
    n_labels_changed: int


def parity(detector: Any, exported: ExportedDetector, X: ImagesLike) -> Parity:
    """Compare the scores of a detector and of its exported file on images; NaN is left out."""
    here, there = detector.score_samples(X), exported.score_samples(X)
    known = np.isfinite(here)
    here, there = here[known], there[known]
    labels = (scores >= detector.offset_ for scores in (here, there))
    return Parity(
        len(here),
        float(np.abs(here - there).max() / np.abs(here).max()),
        float(spearmanr(here, there).statistic) if len(here) > 1 else np.nan,
        int(np.not_equal(*labels).sum()),
    )
