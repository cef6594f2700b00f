"""The per-region overlap curve and the area under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._optional_dependencies import check_matplotlib_support

from skmkd.inspection._plotting import check_detector, own_axes
from skmkd.metrics._per_region_overlap import (
    area_share,
    check_max_fpr,
    curve_until,
    per_region_overlap_curve,
)
from skmkd.metrics._pixels import Arrays

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PerRegionOverlapDisplay:
    """Per-region overlap against the false-positive rate of pixels.

    Parameters
    ----------
    fpr : ndarray of shape (k,)
        False-positive rates, ascending from 0 to 1.
    pro : ndarray of shape (k,)
        Per-region overlaps, ascending from 0 to 1.
    max_fpr : float in (0, 1], default=0.3
        False-positive rate at which the area of AUPRO ends.
    name : str, default=None
        Name of the curve in the legend.

    Attributes
    ----------
    aupro_ : float
        Area under the curve up to `max_fpr`, divided by `max_fpr`; in [0, 1], higher = better.
    line_ : matplotlib Line2D
        The curve.
    area_ : matplotlib PolyCollection
        The shaded area.
    ax_ : matplotlib Axes
        Axes of the plot.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    skmkd.metrics.per_region_overlap_curve : Computes the curve.
    skmkd.metrics.aupro_score : Computes the area.

    Examples
    --------
    >>> from skmkd.inspection import PerRegionOverlapDisplay
    >>> masks = [[[False, True], [False, False]]]
    >>> maps = [[[0.1, 0.9], [0.2, 0.3]]]
    >>> display = PerRegionOverlapDisplay.from_maps(masks, maps, name="a perfect map")
    >>> display.line_.get_label()
    'a perfect map (AUPRO = 1.000)'
    """

    def __init__(
        self, *, fpr: np.ndarray, pro: np.ndarray, max_fpr: float = 0.3, name: str | None = None
    ) -> None:
        self.fpr = fpr
        self.pro = pro
        self.max_fpr = max_fpr
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        detector: Any,
        X: ArrayLike | Sequence[ArrayLike],
        masks: Arrays,
        *,
        max_fpr: float = 0.3,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve of the maps that a fitted detector computes.

        Parameters
        ----------
        detector : object
            A fitted detector of skmkd. For a pipeline, pass its last step, and X as
            transformed for it.
        X : array-like or list of array-like
            Images, as in `localize`.
        masks : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
            Bool, or 0 and 1: True = anomalous. Include normal images, with all-False masks.
        max_fpr : float in (0, 1], default=0.3
            False-positive rate at which the area of AUPRO ends.
        name : str, default=None
            Name of the curve in the legend. None takes the name of the detector's class.
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a figure.
        **kwargs : dict
            Passed to matplotlib's `plot`.

        Returns
        -------
        display : PerRegionOverlapDisplay
            The drawn display.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        TypeError
            If the detector is not one of skmkd.
        ValueError
            If X, masks or max_fpr are invalid, or a file was skipped and its map is NaN.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        check_detector(detector)
        check_max_fpr(max_fpr, cls.__name__)
        name = type(detector).__name__ if name is None else name
        maps = detector.localize(X)
        return cls.from_maps(masks, maps, max_fpr=max_fpr, name=name, ax=ax, **kwargs)

    @classmethod
    def from_maps(
        cls,
        masks: Arrays,
        maps: Arrays,
        *,
        max_fpr: float = 0.3,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve of given maps, with at most 65,536 thresholds.

        Parameters
        ----------
        masks : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
            Bool, or 0 and 1: True = anomalous. Include normal images, with all-False masks.
        maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
            Localization maps, higher = more anomalous; images may differ in size.
        max_fpr : float in (0, 1], default=0.3
            False-positive rate at which the area of AUPRO ends.
        name : str, default=None
            Name of the curve in the legend.
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a figure.
        **kwargs : dict
            Passed to matplotlib's `plot`.

        Returns
        -------
        display : PerRegionOverlapDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If masks, maps or max_fpr are invalid.
        """
        check_matplotlib_support(f"{cls.__name__}.from_maps")
        check_max_fpr(max_fpr, cls.__name__)
        fpr, pro, _ = per_region_overlap_curve(masks, maps, exact=False)
        return cls(fpr=fpr, pro=pro, max_fpr=max_fpr, name=name).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, *, name: str | None = None, **kwargs: Any) -> Self:
        """Draw the curve, and shade the area of AUPRO.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a figure.
        name : str, default=None
            Name of the curve in the legend. None takes that of the display.
        **kwargs : dict
            Passed to matplotlib's `plot`.

        Returns
        -------
        display : PerRegionOverlapDisplay
            The display itself.

        Raises
        ------
        ValueError
            If max_fpr is invalid.
        """
        check_max_fpr(self.max_fpr, type(self).__name__)
        ax = own_axes(ax, self)
        fpr, pro = np.asarray(self.fpr), np.asarray(self.pro)
        within = curve_until(self.max_fpr, fpr, pro)
        self.aupro_ = area_share(*within)
        name = self.name if name is None else name
        area = f"AUPRO = {self.aupro_:.3f}"
        label = area if name is None else f"{name} ({area})"
        (self.line_,) = ax.plot(fpr, pro, **{"label": label} | kwargs)
        self.area_ = ax.fill_between(*within, color=self.line_.get_color(), alpha=0.2)
        ax.set(
            xlabel="false-positive rate of normal pixels",
            ylabel="per-region overlap",
            xlim=(-0.01, 1.01),
            ylim=(-0.01, 1.01),
        )
        ax.legend(loc="lower right")
        self.ax_, self.figure_ = ax, ax.figure
        return self
