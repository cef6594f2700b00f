"""Helpers that the displays share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn.utils._optional_dependencies import check_matplotlib_support

from skmkd._scoring import ScoringMixin

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def own_axes(ax: Axes | None, display: object) -> Axes:
    """Return `ax`, or the axes of a new figure if it is None."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1] if ax is None else ax


def check_detector(detector: Any) -> None:
    """Check that a detector is one of skmkd, and not a pipeline that ends with one."""
    if not isinstance(detector, ScoringMixin):
        raise TypeError(
            "detector must be a detector of skmkd, such as the last step of a pipeline; got "
            f"{type(detector).__name__}."
        )
