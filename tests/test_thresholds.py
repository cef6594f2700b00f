from __future__ import annotations

import warnings

import numpy as np
import pytest
from conftest import tiny_detector
from numpy.testing import assert_allclose, assert_array_equal

import skmkd
from skmkd._thresholds import training_threshold

N = 40


@pytest.fixture
def many():
    """Forty synthetic grey images, uint8, of shape (40, 16, 16)."""
    return np.random.default_rng(0).integers(0, 256, (N, 16, 16), dtype=np.uint8)


@pytest.mark.parametrize("contamination", [0.5, 0.25, 0.05])
def test_training_threshold_is_exceeded_by_its_share(contamination):
    anomaly = np.random.default_rng(0).random(200)
    exceeding = (anomaly > training_threshold(anomaly, contamination)).mean()
    assert exceeding == contamination
    assert training_threshold(list(anomaly), contamination) == training_threshold(
        anomaly, contamination
    )


def test_a_training_threshold_is_a_plain_float():
    assert type(training_threshold(np.arange(20, dtype=np.float32), 0.1)) is float


# Images that fit holds out


def test_fit_holds_images_out_for_both_thresholds(many):
    detector = tiny_detector(validation_fraction=0.5).fit(many)
    scores, peaks = detector.calibration_scores_, detector.calibration_peaks_
    assert len(scores) == len(peaks) == N // 2
    everything = detector.score_samples(many)
    held = np.flatnonzero(np.isin(everything.round(6), scores.round(6)))
    assert len(held) == N // 2
    assert_allclose(scores, np.sort(everything[held]), rtol=1e-6)
    assert_allclose(peaks, np.sort(detector.localize(many[held]).max(axis=(1, 2))), rtol=1e-6)
    learned = np.setdiff1d(np.arange(N), held)
    again = tiny_detector().fit(many[learned])  # from the same images, in the same order
    assert_allclose(again.score_samples(many), everything, rtol=1e-5)
    assert detector.offset_ == scores[0]  # of 20, one is above a rate of 5 %
    assert detector.map_offset_ == peaks[-1]


def test_every_form_of_images_is_split_alike(many):
    detector = tiny_detector(validation_fraction=0.5).fit(many)
    for form in (list(many), many.reshape(N, -1), many[..., None]):
        other = tiny_detector(validation_fraction=0.5).fit(form)
        assert_allclose(other.calibration_scores_, detector.calibration_scores_, rtol=1e-6)


def test_whole_groups_are_held_out(many):
    groups = np.repeat(np.arange(8), 5)
    with pytest.warns(UserWarning, match=r"10 held-out image\(s\) allow .* of 9.1% at the lowest"):
        detector = tiny_detector(validation_fraction=0.2).fit(many, groups=groups)
    everything = detector.score_samples(many).round(6)
    held = np.isin(everything, detector.calibration_scores_.round(6))
    assert held.sum() == 10
    assert len(set(groups[held])) == 2
    assert detector.offset_ == detector.calibration_scores_[0]


@pytest.mark.parametrize(
    ("n", "share", "held", "rate"), [(30, 0.2, 6, "14.3%"), (3, 0.2, 1, "50.0%"), (4, 0.9, 2, "33")]
)
def test_few_images_have_the_lowest_rate_that_they_allow(many, n, share, held, rate):
    with pytest.warns(UserWarning, match=f"^{held} held-out .* rate of {rate}.*not 5%"):
        detector = tiny_detector(validation_fraction=share).fit(many[:n])
    assert len(detector.calibration_scores_) == held
    assert detector.offset_ == detector.calibration_scores_[0]


def test_two_images_are_all_learned():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16), dtype=np.uint8)
    with pytest.warns(UserWarning, match="2 images are too few to hold some out"):
        detector = tiny_detector(validation_fraction=0.2).fit(images)
    assert detector.calibration_scores_ is None
    assert np.isfinite(detector.offset_)


@pytest.mark.parametrize("parameters", [{"contamination": 0.05}, {"validation_fraction": 0}])
def test_nothing_is_held_out_where_training_images_set_the_thresholds(many, parameters):
    detector = tiny_detector(**{"validation_fraction": 0.2} | parameters).fit(many)
    assert detector.calibration_scores_ is None
    assert detector.calibration_peaks_ is None
    assert (detector.predict(many) == -1).sum() == 2
    for call in (lambda: detector.p_value(many), lambda: detector.set_fpr(0.1)):
        with pytest.raises(ValueError, match="must come from held-out images.*Call calibrate"):
            call()


def test_groups_that_do_not_fit(many):
    for groups, message in [
        ([0] * N, "two labels at least; got 0 alone"),
        ([0, 1], r"one label for each of 40 images.*\(2,\)"),
    ]:
        with pytest.raises(ValueError, match=f"groups must hold {message}"):
            tiny_detector(validation_fraction=0.2).fit(many, groups=groups)


def test_images_that_are_left_out_have_no_group(many):
    X, groups = list(many), np.repeat(np.arange(20), 2)
    X[3] = X[3].astype(float)
    detector = tiny_detector(validation_fraction=0.5, on_error="skip")
    with pytest.warns(UserWarning, match="It is left out"):
        detector.fit(X, groups=groups)
    everything = detector.score_samples(many).round(6)
    held = np.isin(everything, detector.calibration_scores_.round(6))
    kept = np.arange(N) != 3
    assert not set(groups[held & kept]) & set(groups[~held & kept])
    with (
        pytest.warns(UserWarning, match="It is left out"),
        pytest.raises(ValueError, match="one label for each of 40 images"),
    ):
        detector.fit(X, groups=groups[:-1])
    with pytest.warns(UserWarning, match="It is left out"):
        detector.calibrate(X, groups=groups)
    assert len(detector.calibration_scores_) == N - 1


# Thresholds without images, and p-values


def test_set_fpr_is_calibrate_with_the_same_images(many):
    detector, other = (tiny_detector().fit(many[:20]) for _ in range(2))
    detector.calibrate(many[20:], fpr=0.05).set_fpr(0.2)
    other.calibrate(many[20:], fpr=0.2)
    assert (detector.offset_, detector.map_offset_) == (other.offset_, other.map_offset_)
    assert (detector.score_samples(many[20:]) < detector.offset_).sum() == 3
    for fpr, message in [(0.04, "at least 24 images or groups for fpr=0.04; got 20"), (1, "fpr")]:
        with pytest.raises(ValueError, match=message):
            detector.set_fpr(fpr)
    assert detector.offset_ == other.offset_


def test_p_values_are_ranks_and_agree_with_predict(many):
    detector = tiny_detector().fit(many[:15]).calibrate(many[15:35], fpr=0.1)
    new = np.concatenate([many[35:], np.zeros((1, 16, 16), np.uint8)])
    scores = detector.score_samples(new)
    ranks = [(detector.calibration_scores_ <= score).sum() for score in scores]
    assert_allclose(detector.p_value(new), (1 + np.array(ranks)) / 21)
    everything = np.concatenate([many, new])
    assert_array_equal(detector.predict(everything) == -1, detector.p_value(everything) <= 0.1)


def test_p_values_and_thresholds_need_the_parameters_that_they_were_set_with(many):
    detector = tiny_detector(validation_fraction=0.5).fit(many).set_params(smoothing_sigma=1)
    for call in (lambda: detector.p_value(many), lambda: detector.set_fpr(0.1)):
        with pytest.raises(ValueError, match="offset_ was set for the parameters"):
            call()


def test_groups_of_calibrate_weigh_the_same(many):
    detector = tiny_detector().fit(many[:20])
    groups = np.array([0] * 8 + [1] * 8 + [2] * 3 + [3])
    detector.calibrate(many[20:], fpr=0.25, groups=groups)
    scores = detector.score_samples(many[20:])
    weight = {label: 1 / 5 / (groups == label).sum() for label in range(4)}
    below = [
        1 / 5 + sum(weight[g] for g, s in zip(groups, scores, strict=True) if s < score)
        for score in scores
    ]  # what an image that is more anomalous than this one would have as its p-value
    allowed = [s for s, p in zip(scores, below, strict=True) if p <= 0.25 + 1e-9]
    assert detector.offset_ == max(allowed)
    with pytest.raises(ValueError, match="groups must hold at least 9 different labels"):
        detector.calibrate(many[20:], fpr=0.1, groups=groups)


def test_what_was_kept_is_saved(many, tmp_path):
    detector = tiny_detector(source="vgg16", image_size=32, validation_fraction=0.5).fit(many)
    detector.save(tmp_path / "a.skmkd")
    loaded = skmkd.load(tmp_path / "a.skmkd")
    assert_array_equal(loaded.calibration_scores_, detector.calibration_scores_)
    assert_array_equal(loaded.p_value(many), detector.p_value(many))
    assert loaded.set_fpr(0.3).offset_ == detector.set_fpr(0.3).offset_


def test_enough_images_raise_no_warning(many):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_detector(validation_fraction=0.475).fit(many)  # 19 of 40
