"""Masks and maps become weighted pixels: far fewer, and with the same curves.

A rate changes its ratio to another only where a threshold passes an anomalous pixel. So the values
of anomalous pixels are all the thresholds that a curve needs, and pixels between two of them are
counted, not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 2**22  # pixels that are read at a time
N_THRESHOLDS = 2**16  # of a histogram; see `_thresholds` for the error
N_KEPT, N_GATHERED = 2**20, 2**22  # anomalous pixels, while these thresholds are found

Arrays = np.ndarray | Sequence[ArrayLike]  # (n, H, W), or n of shape (H, W)
Weigh = Callable[[np.ndarray], np.ndarray]  # mask (H, W) -> weight of each anomalous pixel


class WeightedPixels(NamedTuple):
    """Pixels as scikit-learn's metrics take them, each array of shape (m,)."""

    y_true: np.ndarray  # True = anomalous
    y_score: np.ndarray  # higher = more anomalous
    sample_weight: np.ndarray


class Chunk(NamedTuple):
    """The pixels of some images."""

    normal: np.ndarray
    anomalous: np.ndarray
    weights: np.ndarray  # of the anomalous ones


def one_each(mask: np.ndarray) -> np.ndarray:
    """Give every anomalous pixel the same weight."""
    return np.ones(np.count_nonzero(mask))


def weighted_pixels(masks: Arrays, maps: Arrays, weigh: Weigh, *, exact: bool) -> WeightedPixels:
    """Count pixels at the thresholds that matter, and between them.

    Parameters
    ----------
    masks : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W), bool
        True = anomalous.
    maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Localization maps, higher = more anomalous.
    weigh : callable
        Gives the weights of a mask's anomalous pixels; normal ones weigh 1.
    exact : bool
        Whether every value of an anomalous pixel is a threshold, or at most `N_THRESHOLDS` of
        them: the quantiles, by weight. Counts at a threshold are exact either way.

    Returns
    -------
    pixels : WeightedPixels
        With no pixel of weight 0.

    Raises
    ------
    ValueError
        If masks, maps or `exact` are not as described, or maps not finite.
    """
    if not isinstance(exact, (bool, np.bool_)):
        raise ValueError(f"exact must be True or False; got {exact!r}.")
    dtype = check_maps(masks, maps)
    edges = _thresholds(_chunks(masks, maps, one_each if exact else weigh, dtype, CHUNK), exact)
    counts = Histogram(edges)
    n_pixels = max(CHUNK, 8 * len(edges))  # reading is to take longer than adding up
    for chunk in _chunks(masks, maps, weigh, dtype, n_pixels):
        counts.add(0, np.sort(chunk.normal), np.arange(len(chunk.normal) + 1))
        order = np.argsort(chunk.anomalous)
        weight = np.append(0, np.cumsum(chunk.weights[order]))
        counts.add(1, chunk.anomalous[order], weight)
    kind, filled = np.nonzero(counts.weights)
    return WeightedPixels(kind == 1, counts.lowest[filled], counts.weights[kind, filled])


class Histogram:
    """Weights of normal and of anomalous pixels below the first edge, at it, above it, ...

    Parameters
    ----------
    edges : ndarray of shape (k,)
        Values, ascending and distinct.

    Attributes
    ----------
    weights : ndarray of shape (2, 2 * k + 1), float64
        Of normal and of anomalous pixels, in each bin.
    lowest : ndarray of shape (2 * k + 1,)
        Lowest value in each bin; infinite in an empty one.
    """

    def __init__(self, edges: np.ndarray) -> None:
        n_bins = 2 * len(edges) + 1
        self._edges = edges
        self.weights = np.zeros((2, n_bins))
        self.lowest = np.full(n_bins, np.inf, dtype=edges.dtype)

    def add(self, kind: int, values: np.ndarray, cumulated: np.ndarray) -> None:
        """Add pixels by their ascending values and the weight before each, and of all."""
        ends = np.zeros(self.weights.shape[1] + 1, dtype=np.intp)
        ends[1:-1:2] = np.searchsorted(values, self._edges, side="left")
        ends[2:-1:2] = np.searchsorted(values, self._edges, side="right")
        ends[-1] = len(values)
        self.weights[kind] += np.diff(cumulated[ends])
        filled = np.flatnonzero(np.diff(ends))
        self.lowest[filled] = np.minimum(self.lowest[filled], values[ends[filled]])


def check_maps(masks: Arrays, maps: Arrays) -> np.dtype:
    """Check shapes and types; return the dtype, float32 or float64, that holds all maps."""
    if len(masks) != len(maps) or len(maps) == 0:
        raise ValueError(
            f"masks and maps must be equally many, at least one; got {len(masks)} masks and "
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
    """Return a mask (H, W) as booleans."""
    array = np.asarray(mask)
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"masks must be boolean, or hold 0 and 1 only; got {array.dtype} values from "
            f"{array.min()} to {array.max()} in masks[{index}]: give masks > 0, say."
        )
    return array.astype(bool, copy=False)


def check_map(single: ArrayLike, index: int) -> np.ndarray:
    """Return a localization map (H, W) as an array of finite numbers."""
    array = np.asarray(single)
    if not np.isfinite(array).all():
        raise ValueError(f"maps must be finite; got NaN or infinity in maps[{index}].")
    return array


def _chunks(
    masks: Arrays, maps: Arrays, weigh: Weigh, dtype: np.dtype, n_pixels: int
) -> Iterator[Chunk]:
    """Yield the pixels of all images, those of as many at a time as hold `n_pixels`."""
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
    """Return values of anomalous pixels, ascending: all distinct ones, or their quantiles.

    With quantiles at most a share q of the anomalous weight lies between two thresholds, and
    counts at a threshold are exact. So AUPRO is wrong by at most q, AUROC by q / 2, the best F1
    by 2 q, average precision by about q (3 + 2 log(1 / q)). Here q is 1 / `N_THRESHOLDS`, and
    thinning out what was thinned before adds at most 1 / `N_KEPT` each time: with 10^8 anomalous
    pixels, all are below 1e-3.
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
    """Keep at most n values, between which lies at most 1 / n of the weight, and all weight."""
    if len(values) <= n:
        return values, weights
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    kept = np.unique(np.searchsorted(total, np.linspace(0, total[-1], n + 1)[1:]))
    return values[order[kept]], np.diff(total[kept], prepend=0)
