"""The detectors' shared methods, with `MKDDetector`; `MemKDDetector` has tests of its own."""

from __future__ import annotations

import pickle
import shutil
import warnings
import weakref
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil

import joblib
import numpy as np
import pytest
import torch
from conftest import Counting, TinySource, paper_detector, smooth_and_noisy, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skmkd
from skmkd import MKDDetector
from skmkd import _base as base
from skmkd._images.checks import check_images
from skmkd._images.image_files import ImageFile
from skmkd._maps.attribution import METHODS
from skmkd._runtime import resolve_precision
from skmkd._thresholds import training_threshold
from skmkd.model_selection import NormalOnlySplit, anomaly_roc_auc

HOOKS = ["_build_cloner", "_loss_terms", "_judge", "_settings", "_check_options"]


def complete(*names):
    """Return a subclass of the base class that defines these methods."""
    return type("Detector", (base.BaseDistillationDetector,), dict.fromkeys(names, print))


def test_a_subclass_defines_every_hook():
    complete(*HOOKS)()
    for missing in HOOKS:
        with pytest.raises(TypeError, match=f"abstract method '?{missing}"):
            complete(*(name for name in HOOKS if name != missing))()


# What scikit-learn's suite checks on rows, checked on images


def test_clone_and_refit_give_the_same_scores(detector, images):
    scores = detector.score_samples(images)
    assert_array_equal(clone(detector).fit(images).score_samples(images), scores)
    assert_array_equal(detector.fit(images).score_samples(images), scores)


def test_same_seed_same_scores_and_maps_to_the_bit(images):
    first, second = (tiny_detector(augmentation="mild").fit(images) for _ in range(2))
    assert_array_equal(first.score_samples(images), second.score_samples(images))
    for method in METHODS:
        assert_array_equal(first.localize(images, method), second.localize(images, method))
    other = tiny_detector(augmentation="mild", random_state=1).fit(images)
    assert (other.score_samples(images) != first.score_samples(images)).all()


def test_no_seed_gives_another_cloner_every_time(images):
    first, second = (tiny_detector(random_state=None).fit(images) for _ in range(2))
    assert (first.score_samples(images) != second.score_samples(images)).all()


def test_threads_fit_load_and_score_side_by_side(detector, images, tmp_path):
    expected, pickled = detector.score_samples(images), pickle.dumps(detector)
    detector.save(tmp_path / "model.skmkd")
    works = [
        lambda: detector,
        lambda: tiny_detector().fit(images),
        lambda: skmkd.load(tmp_path / "model.skmkd", source=TinySource()),
        lambda: pickle.loads(pickled),
    ]
    with ThreadPoolExecutor(len(works)) as threads:
        scores = threads.map(lambda work: work().score_samples(images), 4 * works)
        for each in scores:
            assert_allclose(each, expected, rtol=1e-5)


def test_input_is_not_modified(images):
    before = images.copy()
    detector = tiny_detector(augmentation="mild").fit(images)
    detector.predict(images)
    for method in METHODS:
        detector.localize(images, method)
    assert_array_equal(images, before)


def test_fit_predict_is_fit_and_predict_and_y_is_ignored(images):
    expected = tiny_detector().fit(images).predict(images)
    assert_array_equal(tiny_detector().fit_predict(images), expected)
    assert_array_equal(tiny_detector().fit(images, ["any"] * 3).predict(images), expected)


def test_contamination_is_the_share_of_training_images_below_the_threshold(images):
    for contamination, outliers in [(0.5, 6), (0.25, 3), (0.1, 2)]:
        detector = tiny_detector(contamination=contamination).fit(images)
        assert (detector.predict(images) == -1).sum() == outliers
        marked = detector.predict_mask(images).any((1, 2)).sum()
        assert marked == outliers


def test_some_training_images_evenly_spaced_set_the_threshold_of_maps(images, monkeypatch):
    monkeypatch.setattr("skmkd._thresholds.MAP_THRESHOLD_IMAGES", 5)
    detector = tiny_detector(contamination=0.2).fit(images)
    maxima = detector.localize(images).max((1, 2))
    chosen = maxima[[0, 2, 5, 8, 11]].astype(np.float64)
    assert detector.map_offset_ == training_threshold(chosen, 0.2)
    assert detector.map_offset_ != training_threshold(maxima.astype(np.float64), 0.2)


# In scikit-learn's tools


def test_pipeline(images):
    halved = make_pipeline(FunctionTransformer(lambda X: X[:, ::2, ::2]), tiny_detector())
    expected = tiny_detector().fit(images[:, ::2, ::2]).score_samples(images[:, ::2, ::2])
    assert_array_equal(halved.fit(images).score_samples(images), expected)


def test_cross_val_score_has_the_sign_of_isolation_forest():
    X, y = smooth_and_noisy()
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    ours = cross_val_score(tiny_detector(max_iter=20), X, y, cv=cv, scoring="roc_auc")
    rows = X.reshape(len(X), -1)
    theirs = cross_val_score(IsolationForest(random_state=0), rows, y, cv=cv, scoring="roc_auc")
    assert (theirs > 0.5).all()
    assert (ours > 0.5).all()


def test_grid_search_over_weight_and_layers():
    X, y = smooth_and_noisy()
    grid = {"direction_weight": ["auto", 0.5], "critical_layers": [1, ["features.2", "features.5"]]}
    cv = StratifiedKFold(2, shuffle=True, random_state=0)
    search = GridSearchCV(paper_detector(), grid, scoring="roc_auc", cv=cv).fit(X, y)
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(np.unique(search.cv_results_["mean_test_score"])) > 1
    assert search.best_estimator_.predict(X).shape == (len(X),)


def test_grid_search_needs_a_scoring(images):
    assert not hasattr(MKDDetector(), "score")
    with pytest.raises(TypeError, match="no scoring is specified.*'score' method"):
        GridSearchCV(tiny_detector(), {"max_iter": [1, 2]}).fit(images)


# Inputs


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        lambda X: X.reshape(len(X), -1),
        list,
        lambda X: X / 255,
        lambda X: (X / 255).tolist(),
        lambda X: (X.astype(np.uint16) * 257).astype(">u2"),
    ],
    ids=["fortran", "rows", "list", "float64", "nested list", "big-endian uint16"],
)
def test_one_image_set_in_many_forms(convert, images):
    small = images[:, :10, :10] // 2
    scores = tiny_detector().fit(small).score_samples(small)
    X = convert(small)
    detector = tiny_detector(image_shape=(10, 10, 3)).fit(X)
    assert_allclose(detector.score_samples(X), scores, rtol=1e-4)
    assert len(detector.localize(X)) == len(X)


def test_floats_of_any_range(images):
    # the extremes of the training images become 0 and 1, wherever they lie
    scores = tiny_detector().fit(images / 255).score_samples(images / 255)
    low, high = images.min() / 255, images.max() / 255
    assert (low, high) == (0, 1)
    shifted = images / 255 * 40 - 7
    detector = tiny_detector().fit(shifted)
    assert tuple(detector.pixel_range_[:2]) == pytest.approx((-7, 33))
    assert_allclose(detector.score_samples(shifted), scores, rtol=1e-4)


def test_rectangular_image_size(images):
    maps = tiny_detector(image_size=(12, 20)).fit(images).localize(images)
    assert maps.shape == images.shape[:3]


def test_fit_on_a_list_after_an_array_forgets_the_array_s_features(detector, images):
    detector.fit(list(images))
    assert not hasattr(detector, "n_features_in_")
    assert detector.image_shape_ == (None, None, 3)


# Calibration


def test_calibrate_sets_the_conformal_threshold(detector, images):
    held_out = np.random.default_rng(1).integers(0, 256, (37, 20, 24, 3), dtype=np.uint8)
    fpr = 0.1
    assert detector.calibrate(held_out, fpr=fpr) is detector
    anomaly = np.sort(-detector.score_samples(held_out))
    rank = ceil(38 * (1 - fpr))
    assert detector.offset_ == -anomaly[rank - 1]
    assert (detector.predict(held_out) == -1).sum() == 37 - rank
    assert detector.predict_mask(held_out).any((1, 2)).sum() == 37 - rank
    before = detector.offset_
    assert detector.fit(images).offset_ != before


def test_false_alarm_rate_after_calibration_is_right_on_average():
    # over many splits of exchangeable images the false-alarm rate is at most fpr, and near it
    rng = np.random.default_rng(0)
    detector = tiny_detector().fit(rng.integers(0, 256, (10, 16, 16), dtype=np.uint8))
    X = rng.integers(0, 256, (120, 16, 16), dtype=np.uint8)
    scores = detector.score_samples(X)
    rates = []
    for _ in range(30):
        chosen = rng.permutation(120)
        detector.calibrate(X[chosen[:39]], fpr=0.05)
        rates.append((scores[chosen[39:]] < detector.offset_).mean())
    assert 0.03 < np.mean(rates) < 0.07


def test_failed_calibration_changes_nothing(detector, images):
    before = dict(vars(detector))
    with pytest.raises(ValueError, match=r"at least 19 images for fpr=0.05; got 12"):
        detector.calibrate(images, fpr=0.05)
    with pytest.raises(ValueError, match="fpr must be a float"):
        detector.calibrate(images, fpr=5)
    assert vars(detector) == before


# State


def test_global_state_is_left_alone(images):
    generator = np.random.get_state()[1].copy()
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    for outer in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with outer(), torch.autocast("cpu", torch.bfloat16):
            detector = tiny_detector(augmentation="mild", random_state=None).fit(images)
            detector.score_samples(images)
            detector.predict(images)
            detector.calibrate(images, fpr=0.2)
            detector.predict_mask(images)
            for method in METHODS:
                detector.localize(images, method)
            assert torch.is_grad_enabled() is (outer is torch.enable_grad)
            assert torch.is_inference_mode_enabled() is (outer is torch.inference_mode)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_array_equal(np.random.get_state()[1], generator)
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32


def test_default_dtype_of_the_caller_does_not_matter(detector, images):
    estimator = tiny_detector()
    torch.set_default_dtype(torch.float64)
    try:
        scores = estimator.fit(images).score_samples(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_allclose(scores, detector.score_samples(images), rtol=1e-6)


def test_default_device_of_the_caller_does_not_matter(detector, images):
    scores, maps = detector.score_samples(images), detector.localize(images, "smooth_grad")
    with torch.device("meta"):
        again = tiny_detector(augmentation="mild").fit(images)
        assert_array_equal(detector.score_samples(images), scores)
        assert_array_equal(detector.localize(images, "smooth_grad"), maps)
    expected = tiny_detector(augmentation="mild").fit(images)
    assert_array_equal(again.score_samples(images), expected.score_samples(images))


FAILURES = {
    "bad images": ({}, {"X": np.full((3, 8, 8), np.nan)}, "contains NaN"),
    "bad parameter": ({"contamination": 0.7}, {}, "contamination"),
    "bad layer": ({"critical_layers": ["nowhere"]}, {}, "critical_layers"),
    "diverged": ({"learning_rate": 1e30, "max_iter": 3}, {}, "not finite"),
}


@pytest.mark.parametrize(("parameters", "arguments", "message"), FAILURES.values(), ids=FAILURES)
def test_failed_refit_leaves_the_previous_fit(detector, images, parameters, arguments, message):
    before, scores = dict(vars(detector)), detector.score_samples(images)
    original = detector.get_params()
    detector.set_params(**parameters)
    with pytest.raises(ValueError, match=message):
        detector.fit(**({"X": images} | arguments))
    detector.set_params(**{name: original[name] for name in parameters})
    assert vars(detector) == before
    assert_array_equal(detector.score_samples(images), scores)


def interrupted_in_batch(number, monkeypatch):
    """Interrupt the next fit in the batch of this number, from 1."""
    loss_terms, seen = MKDDetector._loss_terms, []

    def interrupted(detector, batch):
        seen.append(len(batch.images))
        if len(seen) == number:
            raise KeyboardInterrupt
        return loss_terms(detector, batch)

    monkeypatch.setattr(MKDDetector, "_loss_terms", interrupted)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_interrupt_in_the_first_epoch_leaves_the_previous_fit(detector, images, monkeypatch):
    interrupted_in_batch(2, monkeypatch)
    before, scores = dict(vars(detector)), detector.score_samples(images)
    with pytest.raises(KeyboardInterrupt):
        detector.set_params(batch_size=5).fit(images)
    assert vars(detector.set_params(batch_size="auto")) == before
    assert_array_equal(detector.score_samples(images), scores)


def test_interrupted_first_fit_leaves_nothing(images, monkeypatch):
    interrupted_in_batch(1, monkeypatch)
    detector = tiny_detector()
    with pytest.raises(KeyboardInterrupt):
        detector.fit(images)
    assert vars(detector) == vars(tiny_detector()) | {"source": detector.source}


def test_interrupt_between_epochs_keeps_what_was_learned(images):
    expected = tiny_detector(max_iter=1, schedule="constant").fit(images)
    detector = tiny_detector(max_iter=5, schedule="constant")
    with pytest.warns(ConvergenceWarning, match="interrupted after 1 of at most 5 epochs"):
        detector.fit(images, callback=interrupt)
    assert detector.n_iter_ == 1
    assert (detector.offset_, detector.map_offset_) == (expected.offset_, expected.map_offset_)
    assert_array_equal(detector.score_samples(images), expected.score_samples(images))
    assert_array_equal(detector.localize(images), expected.localize(images))


def test_interrupt_within_a_later_epoch_keeps_what_was_learned(images, monkeypatch):
    interrupted_in_batch(9, monkeypatch)  # the third of the third epoch
    detector = tiny_detector(max_iter=5, batch_size=5)
    with pytest.warns(ConvergenceWarning, match="interrupted after 2 of at most 5 epochs"):
        detector.fit(images)
    assert detector.n_iter_ == len(detector.loss_curve_["total"]) == 2
    assert (detector.predict(images) == -1).sum() == 1
    assert all(p.grad is None for p in detector.cloner_.parameters())


SECOND_INTERRUPTS = {
    "batch norms": lambda detector: detector.cloner_.register_forward_pre_hook(interrupt),
    "thresholds": lambda detector: setattr(detector, "_outputs", interrupt),
}


@pytest.mark.parametrize("prepare", SECOND_INTERRUPTS.values(), ids=SECOND_INTERRUPTS)
def test_second_interrupt_leaves_the_previous_fit(detector, images, prepare):
    before, scores = dict(vars(detector)), detector.score_samples(images)

    def interrupt_twice(unfinished, epoch):
        prepare(unfinished)
        raise KeyboardInterrupt

    with (
        pytest.warns(ConvergenceWarning, match="interrupted after 1"),
        pytest.raises(KeyboardInterrupt),
    ):
        detector.fit(images, callback=interrupt_twice)
    assert vars(detector) == before
    assert_array_equal(detector.score_samples(images), scores)


def test_gradients_are_gone_after_fit(images):
    for detector in (tiny_detector().fit(images), paper_detector().fit(images)):
        detector.localize(images, "gradient")
        networks = detector.source_, detector.cloner_
        assert all(p.grad is None for network in networks for p in network.parameters())


def test_callback_scores_at_every_epoch(images):
    seen = []
    detector = tiny_detector(max_iter=3).fit(
        images, callback=lambda d, epoch: seen.append((epoch, d.score_samples(images).mean()))
    )
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert seen[-1][1] == detector.score_samples(images).mean()
    assert len({score for _, score in seen}) == 3
    unwatched = tiny_detector(max_iter=3).fit(images)
    assert_array_equal(unwatched.score_samples(images), detector.score_samples(images))


def test_callback_s_detector_has_no_thresholds_and_is_another_object(detector, images):
    kept = []

    def watch(unfinished, epoch):
        for method in (unfinished.predict, unfinished.predict_mask):
            with pytest.raises(NotFittedError):
                method(images)
        kept.append(unfinished)

    detector.fit(images, callback=watch)
    kept[0].set_params(smoothing_sigma=9.0)
    assert detector.smoothing_sigma == 4.0


def test_what_a_callback_sets_holds_until_it_returns(images):
    seen = []

    def watch(unfinished, epoch):
        unfinished.set_params(smoothing_sigma=1.0, max_iter=77)
        seen.append(unfinished.score_samples(images))

    watched = tiny_detector().fit(images, callback=watch)
    expected = tiny_detector().fit(images)
    assert watched.get_params().items() >= {"smoothing_sigma": 4.0, "max_iter": 2}.items()
    assert watched.offset_ == expected.offset_
    assert (seen[-1] != watched.score_samples(images)).all()


# Parameters


@pytest.mark.parametrize(
    "parameters",
    [
        {"normalization": None},
        {"augmentation": "mild"},
        {"batch_size": 6},
        {"learning_rate": 0.1},
        {"schedule": "constant"},
    ],
    ids=str,
)
def test_parameter_has_an_effect(detector, images, parameters):
    other = tiny_detector(**parameters).fit(images)
    assert (other.score_samples(images) != detector.score_samples(images)).all()


def test_without_normalization_pixels_are_from_0_to_1(images):
    detector = tiny_detector(normalization=None, image_size=(20, 24)).fit(images)
    assert_allclose(detector._prepare(list(images)).permute(0, 2, 3, 1), images / 255, atol=1e-6)


CONSTANT = {"schedule": "constant"}


@pytest.mark.parametrize("build", [tiny_detector, paper_detector])
def test_loss_curve_and_convergence(images, build):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = build(max_iter=500, tol=0.05, n_iter_no_change=3, **CONSTANT).fit(images)
    assert 3 < detector.n_iter_ < 500
    curve = detector.loss_curve_
    assert set(curve) == {"total", "value", "direction"}
    assert all(values.shape == (detector.n_iter_,) for values in curve.values())
    weighted = detector.value_weight * curve["value"]
    weighted = weighted + detector.direction_weight_ * curve["direction"]
    assert_allclose(curve["total"], weighted, rtol=1e-5)
    assert curve["total"][-1] < curve["total"][0]
    with pytest.warns(ConvergenceWarning, match="50 epochs without improving"):  # of one step
        build(tol=1e-6, batch_size=12, **CONSTANT).fit(images)


def test_one_cycle_is_not_cut_short(images):
    message = "tol must be None with schedule='one_cycle'.*; got 0.01. Use schedule='constant'"
    with pytest.raises(ValueError, match=message):
        tiny_detector(tol=0.01).fit(images)


def test_automatic_length_leaves_time_to_converge(images):
    detector = tiny_detector(tol=0.05, max_iter="auto", batch_size=2, **CONSTANT).fit(images)
    assert 10 < detector.n_iter_ < 200
    always = tiny_detector(
        tol=0.0, max_iter="auto", batch_size=12, n_iter_no_change=300, **CONSTANT
    )
    with pytest.warns(ConvergenceWarning, match="after max_iter=200"):
        always.fit(images)


def test_progress_bar_only_if_verbose(images, capsys):
    tiny_detector().fit(images)
    assert capsys.readouterr() == ("", "")
    tiny_detector(verbose=1).fit(images)
    assert "Distilling" in capsys.readouterr().err


def test_divergence_names_epoch_and_learning_rate(images):
    with pytest.raises(ValueError, match=r"after epoch \d with learning_rate=1e\+30"):
        tiny_detector(learning_rate=1e30, max_iter=3).fit(images)


BAD_PARAMETERS = {
    "contamination": 0.51,
    "batch_size": 0,
    "max_iter": 0,
    "tol": -1,
    "n_iter_no_change": 0,
    "learning_rate": 0,
    "image_size": (8, 8, 8),
    "normalization": "imagenet",
    "augmentation": "wild",
    "localization": "gradcam",
    "localization_params": {"samples": 3},
    "smoothing_sigma": -1,
    "opening_size": 4,
    "device": "abacus",
    "cloner": "tiny",
    "critical_layers": 0,
    "score_layers": ["features.0"],
    "value_weight": -1,
    "direction_weight": "equal",
    "direction": "channel",
    "image_score": "mean",
    "pose": "loose",
    "source": 16,
}


@pytest.mark.parametrize(("name", "value"), BAD_PARAMETERS.items(), ids=BAD_PARAMETERS)
def test_bad_parameter_is_named_with_its_value(images, name, value):
    with pytest.raises(ValueError, match=name) as raised:
        tiny_detector(**{name: value}).fit(images)
    shown = ["samples"] if name == "localization_params" else [repr(value), str(value)]
    assert any(text in str(raised.value) for text in shown)


def test_weights_that_end_not_finite_are_not_kept(images, monkeypatch):
    def spoil(student, *args, **kwargs):
        with torch.no_grad():
            next(student.parameters()).fill_(torch.nan)
        return {"total": np.ones(1)}

    monkeypatch.setattr("skmkd._base.distill", spoil)
    with pytest.raises(ValueError, match="not finite after epoch 1 with learning_rate=0.005"):
        tiny_detector().fit(images)


def test_source_module_is_not_touched(images):
    source = TinySource().train()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    detector = tiny_detector(source=source).fit(images)
    detector.localize(images, "guided_backprop")
    assert source.training
    assert all(p.requires_grad and p.grad is None for p in source.parameters())
    assert all(torch.equal(t, before[name]) for name, t in source.state_dict().items())


# Warnings point to the caller's line


def warned_at(call, *args, **kwargs):
    """Return categories and files of the warnings of a call, and check their line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args, **kwargs)
    assert {w.lineno for w in caught} == {warned_at.__code__.co_firstlineno + 4}
    return {(w.category, w.filename) for w in caught}


def test_warnings_of_fit_and_scores_point_to_the_caller(images, tmp_path):
    here = {(UserWarning, __file__)}
    converging = {(ConvergenceWarning, __file__)}
    assert warned_at(tiny_detector(tol=1e-6, **CONSTANT).fit, images) == converging
    assert warned_at(tiny_detector(tol=1e-6, **CONSTANT).fit_predict, images) == converging
    assert warned_at(tiny_detector().fit, images, callback=interrupt) == converging
    paths = spoiled(tmp_path, images)
    detector = tiny_detector(on_error="skip")
    assert warned_at(detector.fit, paths) == here
    for method in ("score_samples", "predict", "localize", "predict_mask"):
        assert warned_at(getattr(detector, method), paths) == here
    assert warned_at(detector.calibrate, paths, fpr=0.2) == here
    detector.set_params(memory=tmp_path / "store")
    old = {(FutureWarning, __file__)}
    for method in ("fit", "score_samples", "localize"):
        assert warned_at(getattr(detector, method), images) == old
    assert warned_at(detector.calibrate, images, fpr=0.2) == old


def test_warning_of_random_weights_points_to_the_caller(images):
    detector = tiny_detector(source="squeezenet1_1", source_weights=None, image_size=32)
    assert warned_at(detector.fit, images) == {(UserWarning, __file__)}


# Parameters that have changed since fit


CHANGES = {
    "image_score": ({"image_score": "map-max"}, "'image_score' parameter.*'map-max'"),
    "localization": ({"localization": "gradcam"}, "'localization' parameter.*'gradcam'"),
    "sigma": ({"smoothing_sigma": -1.0}, "'smoothing_sigma' parameter"),
    "opening": ({"opening_size": 2}, "opening_size must be odd; got 2"),
    "on_error": ({"on_error": "rise"}, "'on_error' parameter"),
    "image_size": ({"image_size": (8, 8, 8)}, r"image_size must be .*got \(8, 8, 8\)"),
    "too many layers": ({"score_layers": 99}, "score_layers must be among .*; got 99"),
    "no such layer": ({"score_layers": ["features.0"]}, r"score_layers must .*'features.0'"),
    "options": ({"localization_params": "all"}, "'localization_params' parameter.*'all'"),
    "option": ({"localization_params": {"samples": 3}}, "localization_params .*got .*'samples'"),
    "value": ({"localization_params": {"value": True}}, "value_weight above 0; got 0"),
    "directions": ({"direction_weight": 0, "value_weight": 1.0}, "direction_weight must not be 0"),
    "max_iter": ({"max_iter": 0}, "'max_iter' parameter"),
}  # fmt: skip
CALLS = {
    "score_samples": {}, "decision_function": {}, "predict": {}, "localize": {}, "predict_mask": {},
    "calibrate": {"fpr": 0.1}, "fit": {},
}  # fmt: skip


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_bad_parameter_set_after_fit_is_an_error_everywhere(
    detector, images, change, message, method
):
    before = {name: value for name, value in vars(detector).items() if name.endswith("_")}
    detector.set_params(**change)
    with pytest.raises(ValueError, match=message):
        getattr(detector, method)(images, **CALLS[method])
    assert {k: v for k, v in vars(detector).items() if k.endswith("_")} == before


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 8}, {"critical_layers": 1}, {"max_iter": 7}, {"batch_size": 3},
        {"tol": 0.1, "schedule": "constant"},
        {"learning_rate": 1.0}, {"contamination": 0.5}, {"normalization": None},
        {"augmentation": "mild"}, {"cloner": "equal"}, {"source": "vgg16"}, {"random_state": 9},
        {"precision": "bfloat16"}, {"direction_weight": 2.0},
    ],
    ids=str,
)  # fmt: skip
def test_parameters_of_training_set_after_fit_act_at_the_next_fit(detector, images, change):
    methods = ("score_samples", "localize", "predict", "predict_mask")
    before = [getattr(detector, method)(images) for method in methods]
    detector.set_params(**change)
    for method, expected in zip(methods, before, strict=True):
        assert_array_equal(getattr(detector, method)(images), expected)


def test_image_size_and_layers_act_at_the_next_fit(detector, images):
    scores = detector.score_samples(images)
    for change in ({"image_size": 8}, {"critical_layers": 1}, {"max_iter": 7}):
        refitted = clone(detector).set_params(**change).fit(images)
        assert (refitted.score_samples(images) != scores).all()


# The source, computed once


@pytest.fixture
def passes(monkeypatch):
    """The sizes of all batches that any source computes from now on."""
    build, sizes = base.build_source, []

    def counted(*arguments):
        source = build(*arguments)
        return source._replace(network=Counting(source.network, sizes))

    monkeypatch.setattr(base, "build_source", counted)
    return sizes


@pytest.mark.parametrize("cache", ["auto", 10**9, 0], ids=["auto", "memory", "disk"])
def test_training_computes_the_source_once_and_learns_the_same(images, passes, cache):
    uncached = tiny_detector(max_iter=5, batch_size=5, cache=None).fit(images)
    assert len(passes) > 5
    passes.clear()
    cached = tiny_detector(max_iter=5, batch_size=5, cache=cache).fit(images)
    assert len(passes) == 1  # the twelve images fit into one batch
    for term, curve in uncached.loss_curve_.items():
        assert_allclose(cached.loss_curve_[term], curve, rtol=1e-5)
    assert_allclose(cached.score_samples(images), uncached.score_samples(images), rtol=1e-5)
    assert_allclose(cached.offset_, uncached.offset_, rtol=1e-5)
    assert_allclose(cached.map_offset_, uncached.map_offset_, rtol=1e-4)


def test_cached_scores_of_training_images_are_those_of_score_samples(images):
    detector = tiny_detector(contamination=0.5).fit(images)
    assert detector.offset_ == np.quantile(detector.score_samples(images), 0.5)


def test_calibration_computes_the_source_once_for_scores_and_maps(images, passes):
    detector = tiny_detector().fit(images)
    passes.clear()
    detector.calibrate(images, fpr=0.1)
    assert len(passes) == 1
    scores, maps = detector.score_samples(images), detector.localize(images)
    assert detector.offset_ == np.sort(scores)[0]
    assert detector.map_offset_ == maps.max((1, 2)).max()


SETTINGS = {
    "default": (tiny_detector, {}),
    "paper": (paper_detector, {}),
    "maximum and gradient": (tiny_detector, {"localization": "gradient"}),
    "loss and discrepancy": (tiny_detector, {"image_score": "loss"}),
}


@pytest.mark.parametrize(("build", "parameters"), SETTINGS.values(), ids=SETTINGS)
def test_scores_and_maps_of_one_pass_are_those_of_two(images, passes, build, parameters):
    detector = build(**parameters).fit(images)
    scores, maps = detector.score_samples(images), detector.localize(images)
    passes.clear()
    outputs = list(detector._outputs(check_images(detector, images, reset=False)))
    assert len(passes) == 1
    assert [output.index for output in outputs] == list(range(len(images)))
    assert_array_equal([output.score for output in outputs], scores)
    assert_array_equal([output.map for output in outputs], maps)


def test_augmentation_computes_features_in_every_epoch_and_says_so_if_verbose(
    images, passes, capsys
):
    detector = tiny_detector(augmentation="mild", max_iter=3)
    detector.fit(images)
    assert capsys.readouterr().out == ""
    assert len(passes) > 3
    detector.set_params(verbose=1).fit(images)
    assert "their features are not cached" in capsys.readouterr().out


@pytest.mark.parametrize(
    "parameters",
    [{}, {"cache": 0}, {"cache": None}, {"augmentation": "mild"},
     {"augmentation": "mild", "cache": None}],
    ids=str,
)  # fmt: skip
def test_files_are_decoded_once_in_a_fit(images, tmp_path, monkeypatch, parameters):
    paths, decode, decoded = saved(tmp_path, images), ImageFile.__array__, Counter()

    def counted(file, *args, **kwargs):
        decoded[file.path] += 1
        return decode(file, *args, **kwargs)

    monkeypatch.setattr(ImageFile, "__array__", counted)
    detector = tiny_detector(max_iter=4, batch_size=5, **parameters).fit(paths)
    assert decoded == {str(path): 1 for path in paths}
    expected = tiny_detector(max_iter=4, batch_size=5, **parameters).fit(images)
    assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-6)


def test_cache_that_the_disk_cannot_hold(images, monkeypatch):
    expected = tiny_detector().fit(images).score_samples(images)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 100))
    with pytest.warns(UserWarning, match="The cache was given up"):
        detector = tiny_detector(cache=0).fit(images)
    assert_allclose(detector.score_samples(images), expected, rtol=1e-5)


# The feature store


def stored(folder):
    """The files of a feature store."""
    return sorted(path for path in folder.rglob("*.npy"))


def test_store_shares_features_between_fits_and_calls(images, passes, tmp_path):
    expected = tiny_detector().fit(images)
    scores, maps = expected.score_samples(images), expected.localize(images)
    passes.clear()
    detector = tiny_detector(feature_store=tmp_path).fit(images)
    assert len(passes) == 1
    assert_array_equal(detector.score_samples(images), scores)
    assert_array_equal(detector.localize(images), maps)
    for change in ({"direction": "vector"}, {"critical_layers": 1}, {"max_iter": 3}):
        detector.set_params(**change).fit(images)
    other = tiny_detector(feature_store=str(tmp_path)).fit(images)
    assert_array_equal(other.score_samples(images), scores)
    assert len(passes) == 1
    detector.set_params(image_size=8).fit(images)
    assert len(passes) == 2


def test_store_holds_one_file_for_each_image_and_layer(images, passes, tmp_path):
    detector = tiny_detector(feature_store=tmp_path, batch_size=5).fit(images)
    scores, files = detector.score_samples(images), stored(tmp_path)
    assert len(files) == 2 * len(images)
    assert len({path.parent for path in files}) == 2
    passes.clear()
    order = np.random.default_rng(0).permutation(len(images))
    for chosen in (order, order[:5], [3], [2, 2, 7], [0] * 20):
        assert_array_equal(detector.score_samples(images[chosen]), scores[chosen])
        detector.calibrate(images[chosen], fpr=0.6)
    detector.fit(images[::-2])  # another fold
    assert passes == []
    assert stored(tmp_path) == files


def test_store_computes_what_is_missing(images, passes, tmp_path):
    detector = tiny_detector(feature_store=tmp_path).fit(images[:8])
    scores = tiny_detector().fit(images[:8]).score_samples(images)
    passes.clear()
    assert_allclose(detector.score_samples(images), scores, rtol=1e-6)
    assert passes == [4]
    assert len(stored(tmp_path)) == 2 * len(images)
    stored(tmp_path)[0].unlink()
    assert_allclose(detector.score_samples(images), scores, rtol=1e-6)
    assert passes == [4, 1]


def test_features_of_training_steps_are_not_stored(images, tmp_path):
    for change in ({"augmentation": "mild"}, {"cache": None}):
        tiny_detector(feature_store=tmp_path, max_iter=3, **change).fit(images)
    assert stored(tmp_path) == []


def test_store_that_cannot_be_written(images, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    detector = tiny_detector()
    expected = detector.fit(images).score_samples(images)
    detector.set_params(feature_store=blocked)
    with pytest.warns(UserWarning, match=r"feature store cannot be written.*file"):
        assert_array_equal(detector.score_samples(images), expected)
    with pytest.warns(UserWarning, match=r"feature store cannot be written.*file"):
        detector.fit(images)


def test_store_set_after_fit(images, passes, tmp_path):
    detector = tiny_detector().fit(images).set_params(feature_store=tmp_path)
    passes.clear()
    scores = [detector.score_samples(images) for _ in range(2)]
    assert len(passes) == 1
    assert_array_equal(*scores)


DEPRECATED = pytest.warns(FutureWarning, match="memory was renamed to feature_store")


@pytest.mark.parametrize("kind", [str, lambda path: path, partial(joblib.Memory, verbose=0)])
def test_memory_is_a_deprecated_name_of_the_store(images, passes, tmp_path, kind):
    new, old = tmp_path / "new", tmp_path / "old"
    expected = tiny_detector(feature_store=new).fit(images)
    passes.clear()
    detector = tiny_detector(memory=kind(old))
    for call in (detector.fit, detector.score_samples, detector.localize):
        with DEPRECATED as caught:
            call(images)
        assert len(caught) == 1
    assert len(passes) == 1
    with DEPRECATED:
        assert_array_equal(detector.score_samples(images), expected.score_samples(images))
    names = [[path.name for path in stored(folder)] for folder in (new, old)]
    assert sorted(names[0]) == sorted(names[1])
    assert len(names[0]) == 2 * len(images)
    detector.set_params(memory="deprecated", feature_store=old).fit(images)  # no warning
    assert len(passes) == 1


def test_memory_of_none_is_no_store(images, tmp_path):
    with DEPRECATED:
        tiny_detector(memory=None, feature_store=tmp_path).fit(images)
    assert stored(tmp_path) == []


@pytest.mark.slow
def test_grid_search_shares_features_between_processes(tmp_path):
    X, y = smooth_and_noisy()
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))
    normal_only = [(train[y[train] == 1], test) for train, test in folds]
    scores = {}
    for n_jobs, store in [(1, None), (2, str(tmp_path))]:
        search = GridSearchCV(
            tiny_detector(feature_store=store),
            {"direction": ["position", "vector"], "critical_layers": [1, 2]},
            scoring="roc_auc",
            cv=normal_only,
            n_jobs=n_jobs,
            error_score="raise",
            refit=False,
        ).fit(X, y)
        scores[n_jobs] = search.cv_results_["mean_test_score"]
    assert_allclose(scores[2], scores[1], rtol=1e-3)
    # every image is in a test fold, and the first layer is read from one file with one layer or two
    assert len(stored(tmp_path)) == 2 * len(X)


@pytest.mark.parametrize("cache", ["auto", 0, None])
def test_bfloat16_source_keeps_its_precision_everywhere(images, cache, tmp_path):
    detector = tiny_detector(precision="bfloat16", cache=cache, feature_store=tmp_path)
    detector.fit(images)
    assert detector.precision_ == "bfloat16"
    scores = detector.score_samples(images)
    restored = pickle.loads(pickle.dumps(detector.set_params(precision="float32")))
    assert restored.precision_ == "bfloat16"
    assert_array_equal(restored.score_samples(images), scores)
    plain = tiny_detector(precision="float32").fit(images).score_samples(images)
    assert (plain != scores).all()
    assert_allclose(scores, plain, rtol=0.02)
    for method in METHODS:
        assert np.isfinite(restored.localize(images[:2], method)).all()


def test_auto_precision_is_the_hardware_s(images):
    detector = tiny_detector(precision="auto").fit(images)
    assert detector.precision_ == resolve_precision("auto", detector.device_)


# Scores and maps


def test_scores_depend_neither_on_order_nor_on_other_images(detector, images):
    scores = detector.score_samples(images)
    order = np.random.default_rng(0).permutation(len(images))
    assert_allclose(detector.score_samples(images[order]), scores[order], rtol=1e-7)
    alone = np.concatenate([detector.score_samples(image[None]) for image in images])
    assert_allclose(alone, scores, rtol=1e-7)
    many = np.concatenate([images] * 20)
    assert_allclose(detector.score_samples(many), np.tile(scores, 20), rtol=1e-7)


def test_scores_are_float64_higher_for_normal_images():
    X, y = smooth_and_noisy()
    detector = tiny_detector(max_iter=60).fit(X[y == 1][:20])
    scores = detector.score_samples(X)
    assert scores.dtype == np.float64
    assert roc_auc_score(y, scores) > 0.95
    assert_array_equal(detector.decision_function(X), scores - detector.offset_)
    assert_array_equal(detector.predict(X), np.where(scores >= detector.offset_, 1, -1))


def test_not_fitted(images):
    for method in CALLS.keys() - {"fit"}:
        with pytest.raises(NotFittedError):
            getattr(tiny_detector(), method)(images)


def test_scores_of_two_sizes_of_list_and_array(detector, images):
    scores = detector.score_samples([images[0], images[1][:10]])
    assert_allclose(scores[0], detector.score_samples(images[:1])[0], rtol=1e-6)
    assert scores[1] != detector.score_samples(images[1:2])[0]


def test_memory_map(detector, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    X = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert_array_equal(tiny_detector().fit(X).score_samples(X), detector.score_samples(images))


@pytest.mark.parametrize("method", METHODS)
def test_maps_have_the_images_own_sizes(detector, images, method):
    maps = detector.localize(images, method)
    assert maps.shape == images.shape[:3]
    assert maps.dtype == np.float32
    assert (maps >= 0).all()
    assert maps.any()
    listed = detector.localize([images[0], images[1][:7], images[2][:, :9]], method)
    assert [single.shape for single in listed] == [(20, 24), (7, 24), (20, 9)]
    assert_allclose(listed[0], maps[0], rtol=1e-4, atol=1e-7)


def test_masks_are_maps_above_their_threshold(detector, images):
    masks, maps = detector.predict_mask(images), detector.localize(images)
    assert masks.dtype == bool
    assert_array_equal(masks, maps > detector.map_offset_)
    for mask, single in zip(detector.predict_mask(list(images)), masks, strict=True):
        assert_array_equal(mask, single)


def test_modes_of_the_caller_do_not_matter(detector, images):
    scores, maps = detector.score_samples(images), detector.localize(images)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert_array_equal(tiny_detector().fit(images).score_samples(images), scores)
        assert_array_equal(detector.localize(images), maps)


class Sliceable:
    """Images that are made on access, with a count of those in memory."""

    def __init__(self, n):
        self.shape, self.dtype, self.ndim = (n, 20, 24, 3), np.dtype(np.uint8), 4
        self.alive = self.most = 0

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, self.shape[1:], dtype=np.uint8)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self._freed)
        return image

    def _freed(self):
        self.alive -= 1


def test_scoring_and_maps_stream_over_anything_that_can_be_indexed(detector, monkeypatch):
    monkeypatch.setattr("skmkd._features.batches.CPU_PIXELS", 4 * 16 * 16)
    X = Sliceable(60)
    scores = detector.score_samples(X)
    assert X.most <= 8  # images; a batch holds four
    few = np.stack([X[i] for i in range(60)])
    assert_array_equal(scores, detector.score_samples(few))
    X.most = 0
    for _ in detector._outputs(check_images(detector, X, reset=False)):
        pass
    assert X.most <= 8


# Files


def saved(folder, images, names="image{:02}.png"):
    """Write images as PNG files and return their paths."""
    folder.mkdir(exist_ok=True)
    paths = [folder / names.format(i) for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("cache", ["auto", None])
def test_arrays_and_paths_give_the_same(tmp_path, channels, cache):
    shape = (9, 20, 24) if channels == 1 else (9, 20, 24, channels)
    X = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    paths = saved(tmp_path / "images", X)
    learned = [tiny_detector(cache=cache, batch_size=4).fit(given) for given in (X, paths)]
    for given in (X, paths, [str(p) for p in paths], np.array(paths), tuple(paths)):
        for detector in learned:
            assert_array_equal(detector.score_samples(given), learned[0].score_samples(X))
            assert_array_equal(detector.predict(given), learned[0].predict(X))
            assert_array_equal(np.stack(detector.localize(given)), learned[0].localize(X))
    learned[1].calibrate(paths, fpr=0.2)
    assert learned[1].offset_ == learned[0].calibrate(X, fpr=0.2).offset_


def test_deep_files_are_scaled_not_clipped(tmp_path):
    X = np.random.default_rng(0).integers(0, 65536, (9, 20, 24), dtype=np.uint16)
    paths = saved(tmp_path / "images", X)
    assert_array_equal(
        tiny_detector().fit(paths).score_samples(paths), tiny_detector().fit(X).score_samples(X)
    )


def test_a_grid_takes_paths(tmp_path):
    X, y = smooth_and_noisy(n_normal=12, n_anomalous=6)
    X = (255 * X).astype(np.uint8)
    paths = saved(tmp_path / "images", X)
    scores = [
        cross_val_score(
            tiny_detector(), given, y, cv=NormalOnlySplit(3, random_state=0),
            scoring=anomaly_roc_auc, error_score="raise",
        )
        for given in (X, paths, np.array(paths))
    ]  # fmt: skip
    assert_array_equal(scores[0], scores[1])
    assert_array_equal(scores[0], scores[2])


def spoiled(tmp_path, images):
    """Write images, the second cut short after its header, the third with no header at all."""
    paths = saved(tmp_path / "images", images)
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    paths[2].write_bytes(b"")
    return paths


@pytest.mark.parametrize("image_score", ["loss", "map_max"])
def test_unreadable_files_are_skipped_if_wanted(tmp_path, images, image_score):
    paths = spoiled(tmp_path, images)
    detector = tiny_detector(on_error="skip", image_score=image_score).fit(images)
    rest = np.delete(np.arange(len(images)), [1, 2])
    for call, expected in [(detector.score_samples, np.nan), (detector.predict, -1)]:
        with pytest.warns(UserWarning, match="It is skipped") as caught:
            got = call(paths)
        assert len(caught) == 2
        assert_array_equal(got[[1, 2]], expected)
        assert_array_equal(got[rest], call(images)[rest])
    with pytest.warns(UserWarning, match="It is skipped"):
        maps = detector.localize(paths)
    for i in (1, 2):
        assert np.isnan(maps[i]).all()
    assert maps[1].shape == images.shape[1:3]
    assert_array_equal(np.stack([maps[i] for i in rest]), detector.localize(images)[rest])
    with pytest.warns(UserWarning, match="It is skipped"):
        masks = detector.predict_mask(paths)
    assert masks[1].all()
    assert not masks[0].all()


def test_unreadable_files_are_errors_otherwise(tmp_path, images):
    detector = tiny_detector().fit(images)
    paths = spoiled(tmp_path, images)
    for chosen, name in ((paths[:2], "image01.png"), (paths[2:], "image02.png")):
        for call in (detector.score_samples, detector.predict, detector.localize):
            with pytest.raises(ValueError, match=f"{name} cannot be read as an image"):
                call(chosen)


def test_fit_and_calibrate_leave_unreadable_files_out_if_wanted(tmp_path, images):
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    paths[4].write_bytes(paths[4].read_bytes()[:100])
    whole = np.delete(images, 4, axis=0)
    expected = tiny_detector().fit(whole)
    detector = tiny_detector(on_error="skip")
    with pytest.warns(UserWarning, match=r"4.png cannot be read.*It is left out") as caught:
        detector.fit(paths)
    assert len(caught) == 1
    assert detector.offset_ == expected.offset_
    assert_array_equal(detector.score_samples(images), expected.score_samples(images))
    with pytest.warns(UserWarning, match=r"4.png cannot be read.*It is left out"):
        detector.calibrate(paths, fpr=0.2)
    assert detector.offset_ == expected.calibrate(whole, fpr=0.2).offset_
    before = vars(detector).copy()
    with pytest.raises(ValueError, match="4.png cannot be read as an image"):
        detector.set_params(on_error="raise").fit(paths)
    assert {k: v for k, v in vars(detector).items() if k != "on_error"} == {
        k: v for k, v in before.items() if k != "on_error"
    }
