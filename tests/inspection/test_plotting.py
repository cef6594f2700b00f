"""matplotlib is imported late, and asked for where it is missing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot

from skmkd.inspection import (
    LocalizationDisplay,
    LossCurveDisplay,
    PerRegionOverlapDisplay,
    ScoreDisplay,
    _plotting,
)

MAPS = np.arange(8.0).reshape(1, 2, 4)
DISPLAYS = [
    LocalizationDisplay(images=MAPS / 8, maps=MAPS),
    LossCurveDisplay(loss_curve={"total": [2, 1]}),
    PerRegionOverlapDisplay(fpr=[0, 1], pro=[0, 1]),
    ScoreDisplay(y_true=[1, -1], y_score=[1, -1]),
]


def test_importing_skmkd_needs_no_matplotlib():
    program = "import sys; sys.modules['matplotlib'] = None; import skmkd.inspection"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: type(d).__name__)
def test_missing_matplotlib_is_named(display, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=f"{type(display).__name__}.plot requires matplotlib"):
        display.plot()


def test_a_figure_is_made_where_no_axes_are_given():
    _, ax = pyplot.subplots()
    assert _plotting.own_axes(ax, object()) is ax
    assert _plotting.own_axes(None, object()) is not ax
