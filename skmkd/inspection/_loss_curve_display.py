"""The training loss by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skmkd.inspection._plotting import check_detector, own_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LossCurveDisplay:
    """Training loss of each epoch: the total and its terms.

    Parameters
    ----------
    loss_curve : dict of str to array-like of shape (n_iter,)
        Mean loss of each epoch, as in ``detector.loss_curve_``: "total" and each term.

    Attributes
    ----------
    lines_ : dict of str to matplotlib Line2D
        The line of each entry.
    ax_ : matplotlib Axes
        Axes of the plot.
    figure_ : matplotlib Figure
        Figure of the axes.

    Notes
    -----
    Terms are drawn as in `loss_curve_`, without their weights, so they do not sum to the total in
    general. The vertical axis is logarithmic.

    Examples
    --------
    >>> from skmkd.inspection import LossCurveDisplay
    >>> curve = {"total": [4.0, 2.0, 1.5], "value": [3.0, 1.5, 1.2], "direction": [1.0, 0.5, 0.3]}
    >>> display = LossCurveDisplay(loss_curve=curve).plot()
    >>> list(display.lines_)
    ['total', 'value', 'direction']
    """

    def __init__(self, *, loss_curve: Mapping[str, Any]) -> None:
        self.loss_curve = loss_curve

    @classmethod
    def from_estimator(cls, detector: Any, *, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the loss curve of a fitted detector.

        Parameters
        ----------
        detector : object
            A fitted detector of skmkd. For a pipeline, pass its last step.
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a figure.
        **kwargs : dict
            Passed to matplotlib's `plot` for every line.

        Returns
        -------
        display : LossCurveDisplay
            The drawn display.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        TypeError
            If the detector is not one of skmkd.
        """
        check_detector(detector)
        check_is_fitted(detector)
        return cls(loss_curve=detector.loss_curve_).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the lines.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates a figure.
        **kwargs : dict
            Passed to matplotlib's `plot` for every line.

        Returns
        -------
        display : LossCurveDisplay
            The display itself.
        """
        ax = own_axes(ax, self)
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        given = normalize_kwargs(kwargs, Line2D)
        self.lines_ = {}
        for name, losses in self.loss_curve.items():
            width = 2.5 if name == "total" else 1.2
            style: dict[str, Any] = {"label": name, "linewidth": width} | given
            (self.lines_[name],) = ax.plot(np.arange(1, len(losses) + 1), losses, **style)
        ax.set(xlabel="epoch", ylabel="mean loss of the training images", yscale="log")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self
