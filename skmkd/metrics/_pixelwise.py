"""Metrics of localization maps that weigh all pixels equally."""

from __future__ import annotations

from sklearn.metrics import average_precision_score, roc_auc_score

from skmkd.metrics._pixels import Arrays, one_each, weighted_pixels
from skmkd.metrics._ranking import f1_max


def pixel_roc_auc_score(masks: Arrays, maps: Arrays, *, exact: bool = True) -> float:
    """Area under the ROC curve over all pixels.

    Parameters
    ----------
    masks : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Bool, or 0 and 1: True = anomalous. Include normal images, with all-False masks.
    maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Localization maps, higher = more anomalous; images may differ in size.
    exact : bool, default=True
        False counts pixels in a histogram, for large sets: memory is bounded, and arrays may be
        memory-mapped. The error is below 1e-3 for up to 100 million anomalous pixels.

    Returns
    -------
    score : float
        In [0, 1], higher = better; chance level is 0.5. NaN, with a warning, if all pixels are
        normal or all anomalous.

    Raises
    ------
    ValueError
        If masks or maps have the wrong shape or values, or a map is not finite.

    Warns
    -----
    UndefinedMetricWarning
        If all pixels are normal, or all anomalous.

    See Also
    --------
    aupro_score : Weighs regions equally, not pixels.
    sklearn.metrics.roc_auc_score : The same on flattened masks and maps.

    Examples
    --------
    >>> from skmkd.metrics import pixel_roc_auc_score
    >>> masks = [[[False, False], [False, True]], [[False, False], [False, False]]]
    >>> maps = [[[0.1, 0.2], [0.3, 0.8]], [[0.9, 0.1], [0.0, 0.2]]]
    >>> round(pixel_roc_auc_score(masks, maps), 3)
    0.857
    """
    pixels = weighted_pixels(masks, maps, one_each, exact=exact)
    return float(roc_auc_score(pixels.y_true, pixels.y_score, sample_weight=pixels.sample_weight))


def pixel_average_precision_score(masks: Arrays, maps: Arrays, *, exact: bool = True) -> float:
    """Average precision over all pixels; anomalous pixels are the positive class.

    Parameters
    ----------
    masks : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Bool, or 0 and 1: True = anomalous. Include normal images, with all-False masks.
    maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Localization maps, higher = more anomalous; images may differ in size.
    exact : bool, default=True
        False counts pixels in a histogram, for large sets: memory is bounded, and arrays may be
        memory-mapped. The error is below 1e-3 for up to 100 million anomalous pixels.

    Returns
    -------
    score : float
        In [0, 1], higher = better; chance level is the share of anomalous pixels. 0, with a
        warning, if no pixel is anomalous.

    Raises
    ------
    ValueError
        If masks or maps have the wrong shape or values, or a map is not finite.

    Warns
    -----
    UserWarning
        If no pixel is anomalous.

    See Also
    --------
    sklearn.metrics.average_precision_score : The same on flattened masks and maps.

    Examples
    --------
    >>> from skmkd.metrics import pixel_average_precision_score
    >>> masks = [[[False, False], [False, True]], [[False, False], [False, False]]]
    >>> maps = [[[0.1, 0.2], [0.3, 0.8]], [[0.9, 0.1], [0.0, 0.2]]]
    >>> pixel_average_precision_score(masks, maps)
    0.5
    """
    pixels = weighted_pixels(masks, maps, one_each, exact=exact)
    return float(
        average_precision_score(pixels.y_true, pixels.y_score, sample_weight=pixels.sample_weight)
    )


def pixel_f1_max_score(masks: Arrays, maps: Arrays, *, exact: bool = True) -> float:
    """Highest F1 score over all pixels that any threshold reaches.

    The threshold is chosen on the test masks, so this is an upper bound for a threshold that is
    set beforehand.

    Parameters
    ----------
    masks : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Bool, or 0 and 1: True = anomalous. Include normal images, with all-False masks.
    maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Localization maps, higher = more anomalous; images may differ in size.
    exact : bool, default=True
        False counts pixels in a histogram, for large sets: memory is bounded, and arrays may be
        memory-mapped. The error is below 1e-3 for up to 100 million anomalous pixels.

    Returns
    -------
    score : float
        In [0, 1], higher = better. 0, with a warning, if no pixel is anomalous.

    Raises
    ------
    ValueError
        If masks or maps have the wrong shape or values, or a map is not finite.

    Warns
    -----
    UserWarning
        If no pixel is anomalous.

    See Also
    --------
    sklearn.metrics.f1_score : F1 score at a given threshold.

    Examples
    --------
    >>> from skmkd.metrics import pixel_f1_max_score
    >>> masks = [[[False, False], [False, True]], [[False, False], [False, False]]]
    >>> maps = [[[0.1, 0.2], [0.3, 0.8]], [[0.9, 0.1], [0.0, 0.2]]]
    >>> round(pixel_f1_max_score(masks, maps), 3)
    0.667
    """
    return f1_max(*weighted_pixels(masks, maps, one_each, exact=exact))
