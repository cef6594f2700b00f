"""Labels of images: +1 for normal ones, -1 for anomalies."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import column_or_1d


def check_labels(y: ArrayLike) -> np.ndarray:
    """Return labels (n,) of normal images, +1, and anomalies, -1.

    Raises
    ------
    ValueError
        If y is not as described.
    """
    labels = column_or_1d(y)
    if not np.isin(labels, (1, -1)).all():
        others = [label for label in dict.fromkeys(labels.tolist()) if label not in (1, -1)]
        raise ValueError(
            "y must hold +1 for normal images and -1 for anomalies only; got "
            f"{', '.join(map(repr, others[:3]))}."
        )
    return labels
