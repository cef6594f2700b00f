"""ScoreDisplay: its bars, its line, its legend."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import smooth_and_noisy, tiny_detector
from matplotlib import pyplot
from numpy.testing import assert_allclose
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skmkd.inspection import ScoreDisplay

SCORES = np.array([0.5, 1.5, 1.6, 2.5, -2.5, -0.5, 0.5])
LABELS = np.array([1, 1, 1, 1, -1, -1, -1])


def test_bars_are_shares_of_each_kind():
    display = ScoreDisplay(y_true=LABELS, y_score=SCORES, threshold=1.0).plot(bins=5)
    heights = {kind: [bar.get_height() for bar in bars] for kind, bars in display.bars_.items()}
    assert_allclose(heights["normal"], [0, 0, 0, 1 / 4, 3 / 4])
    assert_allclose(heights["anomaly"], [1 / 3, 0, 1 / 3, 1 / 3, 0])
    edges = [bar.get_x() for bar in display.bars_["normal"]]
    assert_allclose(edges, np.linspace(-2.5, 2.5, 6)[:-1])
    assert_allclose(edges, [bar.get_x() for bar in display.bars_["anomaly"]])


def test_threshold_and_legend_tell_what_lies_below():
    display = ScoreDisplay.from_predictions(LABELS, SCORES, threshold=1.0)
    assert_allclose(display.threshold_line_.get_xdata(), 1.0)
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert texts == ["normal: 25% of 4 below", "anomaly: 100% of 3 below", "threshold"]
    assert "higher is more normal" in display.ax_.get_xlabel()


@pytest.mark.parametrize("label", [1, -1])
def test_one_kind_alone_is_drawn(label):
    display = ScoreDisplay(y_true=np.full(7, label), y_score=SCORES).plot()
    assert list(display.bars_) == ["normal" if label == 1 else "anomaly"]


def test_detectors_and_pipelines_are_scored():
    X, y = smooth_and_noisy()
    pipeline = make_pipeline(FunctionTransformer(), tiny_detector()).fit(X[:20])
    for detector in (pipeline, pipeline[-1]):
        display = ScoreDisplay.from_estimator(detector, X[20:], y[20:], bins=4, alpha=0.2)
        assert_allclose(display.y_score, detector.decision_function(X[20:]))
        assert display.threshold == 0
        below = np.mean(detector.predict(X[20:30]) == -1)
        text = display.ax_.get_legend().get_texts()[0].get_text()
        assert text == f"normal: {below:.0%} of 10 below"
        assert [bar.get_alpha() for bar in display.bars_["normal"]] == [0.2] * 4


class Skipping:
    """Gives NaN to the images that hold NaN, as a detector does to files that it skips."""

    def decision_function(self, X):
        return np.array(X, dtype=float)


def test_images_without_a_score_are_left_out():
    display = ScoreDisplay.from_estimator(Skipping(), [1.0, np.nan, -2.0, np.nan], [1, 1, -1, -1])
    assert display.y_score.tolist() == [1, -2]
    assert display.y_true.tolist() == [1, -1]
    with pytest.raises(ValueError, match="X must hold an image that can be scored; got NaN"):
        ScoreDisplay.from_estimator(Skipping(), [np.nan, np.nan], [1, -1])


def test_axes_are_the_callers():
    figure, ax = pyplot.subplots()
    display = ScoreDisplay(y_true=LABELS, y_score=SCORES).plot(ax)
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert display.plot() is display
    assert display.figure_ is not figure


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"y must hold \+1 .* got False"):
        ScoreDisplay(y_true=LABELS > 0, y_score=SCORES).plot()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ScoreDisplay.from_predictions(LABELS, SCORES[:3])
    with pytest.raises(ValueError, match="y_score contains NaN"):
        ScoreDisplay.from_predictions(LABELS, SCORES * np.nan, bins=[0, 1])
    with pytest.raises(ValueError, match=r"y must hold \+1"):
        ScoreDisplay.from_estimator(tiny_detector(), [[0]], ["good"])
    assert not pyplot.get_fignums()
