"""Compress masks and maps into few weighted pixels that have the same ROC and PR curves.

The slope of such a curve changes only where the threshold passes the value of an anomalous pixel.
So these values are all the thresholds that a curve needs; of the pixels between two thresholds only
the number is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 2**22  # pixels read at a time, at least
N_THRESHOLDS = 2**16  # of the histogram; `_thresholds` states the error
# While thresholds are collected: more than N_GATHERED values are reduced to N_KEPT.
N_KEPT, N_GATHERED = 2**20, 2**22

Arrays = np.ndarray | Sequence[ArrayLike]  # (n, H, W), or n of shape (H, W)
Weigh = Callable[[np.ndarray], np.ndarray]  # mask (H, W) -> weight of each anomalous pixel


class WeightedPixels(NamedTuple):
    """Arguments of scikit-learn's metrics, each of shape (m,)."""

    y_true: np.ndarray  # True = anomalous
    y_score: np.ndarray  # higher = more anomalous
    sample_weight: np.ndarray


class Chunk(NamedTuple):
    """Pixel values of some images."""

    normal: np.ndarray
    anomalous: np.ndarray
    weights: np.ndarray  # of the anomalous pixels


def one_each(mask: np.ndarray) -> np.ndarray:
    """Return weight 1 for each anomalous pixel."""
    return np.ones(np.count_nonzero(mask))


def weighted_pixels(masks: Arrays, maps: Arrays, weigh: Weigh, *, exact: bool) -> WeightedPixels:
    """Count the pixels at each threshold and between thresholds.

    Parameters
    ----------
    masks : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W), bool
        True = anomalous.
    maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Localization maps, higher = more anomalous.
    weigh : callable
        Returns the weights of a mask's anomalous pixels; normal pixels have weight 1.
    exact : bool
        True takes the value of every anomalous pixel as a threshold; False takes at most
        `N_THRESHOLDS` weighted quantiles of them. Counts are exact in both cases.

    Returns
    -------
    pixels : WeightedPixels
        Without pixels of weight 0.

    Raises
    ------
    ValueError
        If masks, maps or `exact` have the wrong type, shape or values.
    """
    if not isinstance(exact, (bool, np.bool_)):
        raise ValueError(f"exact must be True or False; got {exact!r}.")
    dtype = check_maps(masks, maps)
    edges = _thresholds(_chunks(masks, maps, one_each if exact else weigh, dtype, CHUNK), exact)
    counts = Histogram(edges)
    n_pixels = max(CHUNK, 8 * len(edges))  # so that reading dominates the time
    for chunk in _chunks(masks, maps, weigh, dtype, n_pixels):
        counts.add(0, np.sort(chunk.normal), np.arange(len(chunk.normal) + 1))
        order = np.argsort(chunk.anomalous)
        weight = np.append(0, np.cumsum(chunk.weights[order]))
        counts.add(1, chunk.anomalous[order], weight)
    kind, filled = np.nonzero(counts.weights)
    return WeightedPixels(kind == 1, counts.lowest[filled], counts.weights[kind, filled])


class Histogram:
    """Weights of normal and anomalous pixels in bins at and between edges.

    Bin 0 is below the first edge, bin 1 at it, bin 2 between the first and the second, and so on.

    Parameters
    ----------
    edges : ndarray of shape (k,)
        Distinct values in ascending order.

    Attributes
    ----------
    weights : ndarray of shape (2, 2 * k + 1), float64
        Total weight in each bin, of normal (0) and anomalous (1) pixels.
    lowest : ndarray of shape (2 * k + 1,)
        Lowest value in each bin; infinity if it is empty.
    """

    def __init__(self, edges: np.ndarray) -> None:
        n_bins = 2 * len(edges) + 1
        self._edges = edges
        self.weights = np.zeros((2, n_bins))
        self.lowest = np.full(n_bins, np.inf, dtype=edges.dtype)

    def add(self, kind: int, values: np.ndarray, cumulated: np.ndarray) -> None:
        """Add normal (kind 0) or anomalous (kind 1) pixels.

        Parameters
        ----------
        kind : int
            0 or 1.
        values : ndarray of shape (m,)
            In ascending order.
        cumulated : ndarray of shape (m + 1,)
            Cumulative sum of the weights, with a leading 0.
        """
        ends = np.zeros(self.weights.shape[1] + 1, dtype=np.intp)
        ends[1:-1:2] = np.searchsorted(values, self._edges, side="left")
        ends[2:-1:2] = np.searchsorted(values, self._edges, side="right")
        ends[-1] = len(values)
        self.weights[kind] += np.diff(cumulated[ends])
        filled = np.flatnonzero(np.diff(ends))
        self.lowest[filled] = np.minimum(self.lowest[filled], values[ends[filled]])


def check_maps(masks: Arrays, maps: Arrays) -> np.dtype:
    """Check shapes and types; return float32, or float64 if a map needs it."""
    if len(masks) != len(maps) or len(maps) == 0:
        raise ValueError(
            f"masks and maps must have the same length, at least 1; got {len(masks)} masks and "
            f"{len(maps)} maps."
        )
    dtypes = set()
    for i, (mask, single) in enumerate(zip(masks, maps, strict=True)):
        if np.ndim(mask) != 2 or np.shape(mask) != np.shape(single):
            raise ValueError(
                "masks and maps must be of shape (n, H, W), or lists of arrays of shape (H, W); "
                f"got a mask of shape {np.shape(mask)} and a map of shape {np.shape(single)} at "
                f"index {i}."
            )
        dtypes.add(np.asarray(single).dtype)
    if strange := [str(dtype) for dtype in dtypes if dtype.kind not in "biuf"]:
        raise ValueError(f"maps must hold real numbers; got dtype {strange[0]}.")
    return np.dtype(np.float32 if np.result_type(*dtypes, np.float32) == np.float32 else np.float64)


def check_mask(mask: ArrayLike, index: int) -> np.ndarray:
    """Return a mask (H, W) as a boolean array."""
    array = np.asarray(mask)
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"masks must be boolean, or 0 and 1 only; got {array.dtype} values from "
            f"{array.min()} to {array.max()} in masks[{index}]. Pass masks > 0, for example."
        )
    return array.astype(bool, copy=False)


def check_map(single: ArrayLike, index: int) -> np.ndarray:
    """Return a localization map (H, W) as an array; raise ValueError if it is not finite."""
    array = np.asarray(single)
    if not np.isfinite(array).all():
        raise ValueError(f"maps must be finite; got NaN or infinity in maps[{index}].")
    return array


def _chunks(
    masks: Arrays, maps: Arrays, weigh: Weigh, dtype: np.dtype, n_pixels: int
) -> Iterator[Chunk]:
    """Yield the pixels of consecutive images, at least `n_pixels` at a time."""
    read: list[Chunk] = []
    n_read = 0
    for i, (mask, single) in enumerate(zip(masks, maps, strict=True)):
        truth, values = check_mask(mask, i), check_map(single, i).astype(dtype, copy=False)
        read.append(Chunk(values[~truth], values[truth], weigh(truth)))
        n_read += values.size
        if n_read >= n_pixels:
            yield _joined(read)
            read, n_read = [], 0
    if read:
        yield _joined(read)


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    return Chunk(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def _thresholds(chunks: Iterator[Chunk], exact: bool) -> np.ndarray:
    """Return the distinct values of anomalous pixels, or their quantiles, in ascending order.

    With quantiles, at most a share q of the anomalous weight lies between two thresholds, and
    counts at each threshold are exact. So the error is at most q for AUPRO, q / 2 for AUROC, 2 q
    for the highest F1 score, and about q (3 + 2 log(1 / q)) for average precision. Here q is
    1 / `N_THRESHOLDS`, plus at most 1 / `N_KEPT` for each reduction on the way: with 10^8
    anomalous pixels, all errors are below 1e-3.
    """
    if exact:
        return np.unique(np.concatenate([chunk.anomalous for chunk in chunks]))
    values, weights = np.empty(0, np.float32), np.empty(0)
    for chunk in chunks:
        values = np.concatenate([values, chunk.anomalous])
        weights = np.concatenate([weights, chunk.weights])
        if len(values) > N_GATHERED:
            values, weights = _quantiles(values, weights, N_KEPT)
    return np.unique(_quantiles(values, weights, N_THRESHOLDS)[0])


def _quantiles(values: np.ndarray, weights: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most n values with at most 1 / n of the weight between two, and the total weight."""
    if len(values) <= n:
        return values, weights
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    kept = np.unique(np.searchsorted(total, np.linspace(0, total[-1], n + 1)[1:]))
    return values[order[kept]], np.diff(total[kept], prepend=0)
