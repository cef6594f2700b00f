"""Connected regions of localization maps: where each anomaly is, how large and how strong."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from skimage.measure import label
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

LIMITS = {
    "threshold": [Interval(Real, None, None, closed="neither")],
    "min_area": [Interval(Integral, 1, None, closed="left")],
    "low_threshold": [Interval(Real, None, None, closed="neither"), None],
}


class Region(NamedTuple):
    """Connected anomalous pixels of a map; `regions` describes the fields."""

    box: tuple[int, int, int, int]
    area: int
    centroid: tuple[float, float]
    peak: float
    mean: float


def regions(
    maps: np.ndarray | Sequence[ArrayLike],
    threshold: float,
    *,
    min_area: int = 1,
    low_threshold: float | None = None,
) -> list[list[Region]]:
    """Find the connected regions of localization maps that exceed a threshold.

    Pixels that touch at a side or a corner are connected (8-connectivity).

    Parameters
    ----------
    maps : ndarray of shape (n, H, W), or sequence of n array-likes of shape (H, W)
        Localization maps, higher = more anomalous, as from `localize`. Pixels that are NaN are in
        no region, so an image that could not be read has none.
    threshold : float
        Pixels above it are anomalous; usually the detector's ``map_offset_``.
    min_area : int, default=1
        Regions of fewer pixels are left out.
    low_threshold : float, default=None
        At most `threshold`. Regions extend over all connected pixels above it, and need one pixel
        above `threshold` (hysteresis). None takes `threshold` itself.

    Returns
    -------
    found : list of n lists of Region
        The regions of each map, largest first; those of equal area by their peak, highest first,
        then from top to bottom. A `Region` is a named tuple of

        - ``box``: (top, left, bottom, right) in pixels; bottom and right are the first outside,
        - ``area``: number of pixels,
        - ``centroid``: (row, column) in pixels,
        - ``peak`` and ``mean``: highest and mean value of the map.

    Raises
    ------
    ValueError
        If a parameter is not as described.

    See Also
    --------
    skimage.measure.regionprops : More properties of regions.

    Examples
    --------
    >>> from skmkd import regions
    >>> single = [[0, 0, 0, 4], [1, 2, 0, 0], [0, 3, 0, 0]]
    >>> for region in regions([single], threshold=1.5)[0]:
    ...     print(region)
    Region(box=(1, 1, 3, 2), area=2, centroid=(1.5, 1.0), peak=3.0, mean=2.5)
    Region(box=(0, 3, 1, 4), area=1, centroid=(0.0, 3.0), peak=4.0, mean=4.0)
    >>> regions([single], threshold=3.5, low_threshold=0.5)[0][0].box
    (0, 3, 1, 4)
    """
    values = {"threshold": threshold, "min_area": min_area, "low_threshold": low_threshold}
    validate_parameter_constraints(LIMITS, values, "regions")
    low = threshold if low_threshold is None else low_threshold
    if low > threshold:
        raise ValueError(f"low_threshold must be at most threshold = {threshold}; got {low}.")
    checked = (check_map(single, i) for i, single in enumerate(maps))
    return [regions_of_map(single, threshold, min_area, low) for single in checked]


def check_map(single: ArrayLike, index: int) -> np.ndarray:
    """Return a map as an array (H, W) of float32, or float64 if it needs that."""
    array = np.asarray(single)
    if array.ndim != 2:
        raise ValueError(
            "maps must be of shape (n, H, W), or a list of arrays of shape (H, W); got maps"
            f"[{index}] of shape {array.shape}. Wrap a single map as [map]."
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"maps must hold real numbers; got dtype {array.dtype} in maps[{index}].")
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)


def regions_of_map(single: np.ndarray, threshold: float, min_area: int, low: float) -> list[Region]:
    """Return the regions of a map (H, W) above `low` that hold a pixel above the threshold.

    Each quantity is summed over all regions at once: an image may have thousands.
    """
    labels = label(single > low, connectivity=2)  # in the order of each region's first pixel
    pixels = np.flatnonzero(labels)
    region, values = labels.ravel()[pixels] - 1, single.ravel()[pixels]
    area = np.bincount(region)

    def mean(each: np.ndarray) -> np.ndarray:
        return np.bincount(region, each) / area

    def extreme(function: np.ufunc, each: np.ndarray) -> np.ndarray:
        found = np.empty(len(area), each.dtype)
        found[region] = each  # any pixel of the region to begin with
        function.at(found, region, each)
        return found

    rows, columns = np.divmod(pixels, single.shape[1])
    peak = extreme(np.maximum, values)
    order = np.lexsort((-peak, -area))  # stable
    kept = order[(area >= min_area)[order] & (peak > threshold)[order]]
    fields = (
        extreme(np.minimum, rows), extreme(np.minimum, columns),
        extreme(np.maximum, rows) + 1, extreme(np.maximum, columns) + 1,
        area, mean(rows), mean(columns), peak, mean(values),
    )  # fmt: skip
    return [
        Region((top, left, bottom, right), n, (row, column), highest, average)
        for top, left, bottom, right, n, row, column, highest, average in zip(
            *(field[kept].tolist() for field in fields), strict=True
        )
    ]
