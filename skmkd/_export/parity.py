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
        Spearman's, of all scores; NaN if these are all the same.
    n_labels_changed : int
        Images that one calls normal and the other an anomaly.
    """

    n_images: int
    largest_difference: float
    rank_correlation: float
    n_labels_changed: int


def parity(detector: Any, exported: ExportedDetector, X: ImagesLike) -> Parity:
    """Compare the scores of a detector and of its exported file on images; NaN is left out.

    Raises
    ------
    ValueError
        If X is not as described, or no image of it can be read.
    """
    here, there = detector.score_samples(X), exported.score_samples(X)
    known = ~np.isnan(here)
    if not known.any():
        raise ValueError(f"X must hold images that can be read; got {len(here)}, and none can.")
    here, there = here[known], there[known]
    labels = (scores >= detector.offset_ for scores in (here, there))
    ranked = np.ptp(here) > 0 and np.ptp(there) > 0
    return Parity(
        len(here),
        float(np.abs(here - there).max() / np.abs(here).max()),
        float(spearmanr(here, there).statistic) if ranked else np.nan,
        int(np.not_equal(*labels).sum()),
    )
