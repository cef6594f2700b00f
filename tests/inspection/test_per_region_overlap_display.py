"""PerRegionOverlapDisplay: the curve it draws and the area it shades."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import smooth_and_noisy, tiny_detector
from matplotlib import pyplot
from numpy.testing import assert_allclose
from sklearn.pipeline import make_pipeline

from skmkd.inspection import PerRegionOverlapDisplay
from skmkd.metrics import aupro_score, per_region_overlap_curve

RNG = np.random.default_rng(0)
MASKS = RNG.random((4, 20, 20)) < 0.1
MAPS = RNG.normal(MASKS, 1)


def area_of(polygon):
    """Return the area of a filled polygon (shoelace formula)."""
    x, y = polygon.get_paths()[0].vertices.T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_curve_and_shaded_area_are_the_metric_s(max_fpr):
    display = PerRegionOverlapDisplay.from_maps(MASKS, MAPS, max_fpr=max_fpr, name="noise")
    fpr, pro, _ = per_region_overlap_curve(MASKS, MAPS)
    assert_allclose(display.line_.get_xdata(), fpr)
    assert_allclose(display.line_.get_ydata(), pro)
    expected = aupro_score(MASKS, MAPS, max_fpr)
    assert display.aupro_ == pytest.approx(expected)
    assert area_of(display.area_) / max_fpr == pytest.approx(expected)
    assert display.area_.get_paths()[0].get_extents().x1 == max_fpr
    assert display.ax_.get_legend().get_texts()[0].get_text() == f"noise (AUPRO = {expected:.3f})"


def test_detector_is_localized_and_named():
    X, _ = smooth_and_noisy()
    masks = np.zeros((4, 16, 16), bool)
    masks[2:] = np.eye(16, dtype=bool)
    detector = tiny_detector().fit(X[:20])
    display = PerRegionOverlapDisplay.from_estimator(detector, X[28:32], masks, color="black")
    expected = aupro_score(masks, detector.localize(X[28:32]))
    assert display.line_.get_label() == f"MKDDetector (AUPRO = {expected:.3f})"
    assert display.line_.get_color() == "black"


def test_several_curves_share_axes():
    figure, ax = pyplot.subplots()
    for name in ("one", "other"):
        display = PerRegionOverlapDisplay.from_maps(MASKS, MAPS, name=name, ax=ax)
        assert display.ax_ is ax
        assert display.figure_ is figure
    assert len(ax.get_legend().get_texts()) == len(ax.lines) == 2


def test_constructor_draws_what_it_is_given():
    display = PerRegionOverlapDisplay(fpr=[0, 0, 1], pro=[0, 1, 1], max_fpr=0.5).plot()
    assert display.aupro_ == 1
    assert display.line_.get_label() == "AUPRO = 1.000"


@pytest.mark.parametrize("max_fpr", [0, 1.5])
def test_bad_max_fpr_is_refused(max_fpr):
    with pytest.raises(ValueError, match="'max_fpr' parameter of PerRegionOverlapDisplay"):
        PerRegionOverlapDisplay.from_maps(MASKS, MAPS, max_fpr=max_fpr)
    with pytest.raises(ValueError, match="'max_fpr' parameter of PerRegionOverlapDisplay"):
        PerRegionOverlapDisplay(fpr=[0, 1], pro=[0, 1], max_fpr=max_fpr).plot()
    with pytest.raises(ValueError, match="'max_fpr' parameter of PerRegionOverlapDisplay"):
        PerRegionOverlapDisplay.from_estimator(tiny_detector(), MAPS, MASKS, max_fpr=max_fpr)


def test_pipeline_is_refused():
    with pytest.raises(TypeError, match="last step of a pipeline; got Pipeline"):
        PerRegionOverlapDisplay.from_estimator(make_pipeline(tiny_detector()), MAPS, MASKS)
