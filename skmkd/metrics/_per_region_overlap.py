"""Per-region overlap (PRO): a ROC curve that weighs all defects equally, whatever their size."""

from __future__ import annotations

from numbers import Real

import numpy as np
from scipy import ndimage
from sklearn.metrics import roc_curve
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

from skmkd.metrics._pixels import Arrays, weighted_pixels

NEIGHBOURS = np.ones((3, 3))  # 8-connectivity


def one_each_region(mask: np.ndarray) -> np.ndarray:
    """Return the weight of each anomalous pixel, which is 1 / area of its connected region."""
    regions, _ = ndimage.label(mask, NEIGHBOURS)
    region = regions[mask]
    return 1 / np.bincount(region)[region]


def per_region_overlap_curve(
    masks: Arrays, maps: Arrays, *, exact: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per-region overlap against the false-positive rate, for decreasing thresholds.

    Regions are the connected components (8-connectivity) of the masks of all images. A pixel is
    detected where the map is at or above the threshold. The per-region overlap is the detected
    share of a region, averaged over all regions. The false-positive rate is the detected share of
    the normal pixels of all images, normal images included [1]_.

    Parameters
    ----------
    masks : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Bool, or 0 and 1: True = anomalous. Include normal images, with all-False masks.
    maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Localization maps, higher = more anomalous; images may differ in size.
    exact : bool, default=True
        False counts pixels in a histogram, for large sets: memory is bounded, and arrays may be
        memory-mapped. The curve then has fewer points, each of them exact.

    Returns
    -------
    fpr : ndarray of shape (k,), float64
        False-positive rates, ascending from 0 to 1. NaN, with a warning, if no pixel is normal.
    pro : ndarray of shape (k,), float64
        Per-region overlaps, ascending from 0 to 1. NaN, with a warning, if there is no region.
    thresholds : ndarray of shape (k,), floating
        In the unit of the maps, descending from infinity: pixels at or above are detected.
        Points that lie on a straight line between others are left out.

    Raises
    ------
    ValueError
        If masks or maps have the wrong shape or values, or a map is not finite.

    Warns
    -----
    UndefinedMetricWarning
        If there is no region, or no normal pixel.

    References
    ----------
    .. [1] P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger and C. Steger, "The MVTec Anomaly
       Detection Dataset", International Journal of Computer Vision 129, 2021,
       doi:10.1007/s11263-020-01400-4.

    Examples
    --------
    >>> from skmkd.metrics import per_region_overlap_curve
    >>> masks = [[[True, True, False, True]]]
    >>> maps = [[[0.9, 0.1, 0.5, 0.7]]]  # the order: half of the first region, all of the second
    >>> fpr, pro, thresholds = per_region_overlap_curve(masks, maps)
    >>> pro
    array([0.  , 0.25, 0.75, 0.75, 1.  ])
    >>> thresholds
    array([inf, 0.9, 0.7, 0.5, 0.1])
    """
    pixels = weighted_pixels(masks, maps, one_each_region, exact=exact)
    return roc_curve(pixels.y_true, pixels.y_score, sample_weight=pixels.sample_weight)


def aupro_score(masks: Arrays, maps: Arrays, max_fpr: float = 0.3, *, exact: bool = True) -> float:
    """Area under the per-region overlap curve, up to a false-positive rate.

    Parameters
    ----------
    masks : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Bool, or 0 and 1: True = anomalous. Include normal images, with all-False masks.
    maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Localization maps, higher = more anomalous; images may differ in size.
    max_fpr : float in (0, 1], default=0.3
        False-positive rate at which the area ends.
    exact : bool, default=True
        False counts pixels in a histogram, for large sets: memory is bounded, and arrays may be
        memory-mapped. The error is below 1e-3 for up to 100 million anomalous pixels.

    Returns
    -------
    score : float
        The area divided by `max_fpr`: in [0, 1], higher = better; a constant map gets
        ``max_fpr / 2``. NaN, with a warning, if there is no region or no normal pixel.

    Raises
    ------
    ValueError
        If masks or maps have the wrong shape or values, a map is not finite, or `max_fpr` is out
        of range.

    Warns
    -----
    UndefinedMetricWarning
        If there is no region, or no normal pixel.

    See Also
    --------
    per_region_overlap_curve : The curve, with definitions and the reference.
    pixel_roc_auc_score : Weighs pixels equally, not regions.

    Examples
    --------
    >>> from skmkd.metrics import aupro_score
    >>> masks = [[[False, False], [False, True]], [[False, False], [False, False]]]
    >>> maps = [[[0.1, 0.2], [0.3, 0.8]], [[0.7, 0.1], [0.0, 0.2]]]
    >>> aupro_score(masks, maps)
    1.0
    """
    check_max_fpr(max_fpr, "aupro_score")
    fpr, pro, _ = per_region_overlap_curve(masks, maps, exact=exact)
    return area_share(*curve_until(max_fpr, fpr, pro))


def check_max_fpr(max_fpr: float, caller_name: str) -> None:
    """Check that `max_fpr` is in (0, 1]."""
    limits = {"max_fpr": [Interval(Real, 0, 1, closed="right")]}
    validate_parameter_constraints(limits, {"max_fpr": max_fpr}, caller_name)


def curve_until(max_fpr: float, fpr: np.ndarray, pro: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the curve up to `max_fpr`, its last point interpolated."""
    within = ~(fpr > max_fpr)  # keeps NaN, so that the area is NaN, too
    overlap = np.interp(max_fpr, fpr, pro)
    return np.append(fpr[within], max_fpr), np.append(pro[within], overlap)


def area_share(fpr: np.ndarray, pro: np.ndarray) -> float:
    """Return the area under a curve that starts at 0, divided by its width."""
    area = np.trapezoid(pro, fpr) / fpr[-1]
    return float(np.minimum(area, 1))  # rounding could exceed it
