"""LossCurveDisplay: one line an entry, one point an epoch."""

from __future__ import annotations

import pytest
from conftest import smooth_and_noisy, tiny_detector
from matplotlib import pyplot
from numpy.testing import assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from skmkd.inspection import LossCurveDisplay


def test_total_and_both_terms_are_drawn():
    detector = tiny_detector(max_iter=4).fit(smooth_and_noisy()[0][:20])
    display = LossCurveDisplay.from_estimator(detector, linestyle=":")
    assert list(display.lines_) == ["total", "value", "direction"]
    for name, line in display.lines_.items():
        assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
        assert_array_equal(line.get_ydata(), detector.loss_curve_[name])
        assert line.get_linestyle() == ":"
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert texts == ["total", "value", "direction"]
    widths = [line.get_linewidth() for line in display.lines_.values()]
    assert widths[0] > max(widths[1:])
    assert (display.ax_.get_yscale(), display.ax_.get_xlabel()) == ("log", "epoch")
    assert all(tick == int(tick) for tick in display.ax_.get_xticks())


def test_axes_are_the_callers():
    figure, ax = pyplot.subplots()
    display = LossCurveDisplay(loss_curve={"total": [2, 1]}).plot(ax)
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert display.plot() is display
    assert display.figure_ is not figure


def test_unfitted_detector_is_refused():
    with pytest.raises(NotFittedError):
        LossCurveDisplay.from_estimator(tiny_detector())
    with pytest.raises(TypeError, match="last step of a pipeline; got Pipeline"):
        LossCurveDisplay.from_estimator(make_pipeline(tiny_detector()))


def test_short_names_of_matplotlib_s_styles_are_taken():
    display = LossCurveDisplay(loss_curve={"total": [2, 1]}).plot(lw=0.5)
    assert display.lines_["total"].get_linewidth() == 0.5
