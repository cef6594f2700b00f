"""How much each critical layer counts in a map: less, the higher its peaks on normal images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TAIL = 0.999  # quantile of a layer's map that stands for its peaks
LEAST = 0.01  # of the largest spread: a smaller one, as of a layer without features, is raised


def tail_weights(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Weigh layers by ``1 / (q99.9 - q50)`` of their maps of normal images, 1 in the mean.

    Sums and maxima of maps are then ruled by no layer alone. EfficientAD (WACV 2024) brings its
    two maps to one scale by quantiles in the same spirit.

    Parameters
    ----------
    maps : sequence of ndarrays, float32
        Values of each layer's map.

    Returns
    -------
    weights : ndarray of shape (n_layers,), float64
        All 1 if no map varies.
    """
    quantiles = [np.quantile(values, (0.5, TAIL)).astype(np.float64) for values in maps]
    spreads = np.array([high - middle for middle, high in quantiles])
    if not spreads.max() > 0:
        return np.ones(len(spreads))
    weights = 1 / np.maximum(spreads, LEAST * spreads.max())
    return weights / weights.mean()
