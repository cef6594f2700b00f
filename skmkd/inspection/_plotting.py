"""Where a display draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sklearn.utils._optional_dependencies import check_matplotlib_support

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def own_axes(ax: Axes | None, display: object) -> Axes:
    """Return the axes given, or those of a new figure."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1] if ax is None else ax
