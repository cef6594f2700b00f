from __future__ import annotations

import pickle
import shutil
import warnings
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from math import ceil

import joblib
import numpy as np
import pytest
import torch
from conftest import Counting, TinySource, smooth_and_noisy, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skmkd
from skmkd import _base as base
from skmkd._runtime import resolve_precision
from skmkd._thresholds import training_threshold

METHODS = ["gradient", "smooth_grad", "guided_backprop", "discrepancy"]


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


def test_fit_predict_and_y_are_what_outlier_detectors_make_of_them(images):
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
    monkeypatch.setattr(base, "MAP_THRESHOLD_IMAGES", 5)
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
    search = GridSearchCV(tiny_detector(), grid, scoring="roc_auc", cv=cv).fit(X, y)
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(np.unique(search.cv_results_["mean_test_score"])) > 1
    assert search.best_estimator_.predict(X).shape == (len(X),)


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


def test_floats_with_a_range_of_their_own(images):
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


def test_calibrate_keeps_its_promise_on_the_mean():
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


def interrupt(detector, epoch):
    raise KeyboardInterrupt


FAILURES = {
    "interrupted": ({}, {"callback": interrupt}, KeyboardInterrupt),
    "bad images": ({}, {"X": np.full((3, 8, 8), np.nan)}, ValueError),
    "bad parameter": ({"contamination": 0.7}, {}, ValueError),
    "bad layer": ({"critical_layers": ["nowhere"]}, {}, ValueError),
    "diverged": ({"learning_rate": 1e30, "max_iter": 3}, {}, ValueError),
}


@pytest.mark.parametrize(("parameters", "arguments", "error"), FAILURES.values(), ids=FAILURES)
def test_failed_refit_leaves_the_previous_fit(detector, images, parameters, arguments, error):
    before, scores = dict(vars(detector)), detector.score_samples(images)
    original = detector.get_params()
    detector.set_params(**parameters)
    with pytest.raises(error):
        detector.fit(**({"X": images} | arguments))
    detector.set_params(**{name: original[name] for name in parameters})
    assert vars(detector) == before
    assert_array_equal(detector.score_samples(images), scores)


def test_failed_first_fit_leaves_nothing(images):
    detector = tiny_detector()
    with pytest.raises(KeyboardInterrupt):
        detector.fit(images, callback=interrupt)
    assert vars(detector) == vars(tiny_detector()) | {"source": detector.source}


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

    watched = tiny_detector(image_score="map_max").fit(images, callback=watch)
    expected = tiny_detector(image_score="map_max").fit(images)
    assert watched.get_params().items() >= {"smoothing_sigma": 4.0, "max_iter": 2}.items()
    assert watched.offset_ == expected.offset_
    assert (seen[-1] != watched.score_samples(images)).all()


# Parameters


@pytest.mark.parametrize(
    "parameters",
    [{"normalization": None}, {"augmentation": "mild"}, {"batch_size": 4}, {"learning_rate": 0.1}],
    ids=str,
)
def test_parameter_has_an_effect(detector, images, parameters):
    other = tiny_detector(**parameters).fit(images)
    assert (other.score_samples(images) != detector.score_samples(images)).all()


def test_no_normalization_hands_over_pixels_from_0_to_1(images):
    detector = tiny_detector(normalization=None, image_size=(20, 24)).fit(images)
    assert_allclose(
        detector._observer(recall=False).tensor(list(images)).permute(0, 2, 3, 1),
        images / 255,
        atol=1e-6,
    )


def test_loss_curve_and_convergence(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = tiny_detector(max_iter=500, tol=0.05, n_iter_no_change=3).fit(images)
    assert 3 < detector.n_iter_ < 500
    curve = detector.loss_curve_
    assert set(curve) == {"total", "value", "direction"}
    assert all(values.shape == (detector.n_iter_,) for values in curve.values())
    weighted = curve["value"] + detector.direction_weight_ * curve["direction"]
    assert_allclose(curve["total"], weighted, rtol=1e-5)
    assert curve["total"][-1] < curve["total"][0]
    with pytest.warns(ConvergenceWarning, match="10 epochs without improving"):
        tiny_detector(tol=1e-6).fit(images)


def test_progress_bar_only_when_asked(images, capsys):
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
    with pytest.raises(ValueError, match="not finite after epoch 1 with learning_rate=0.001"):
        tiny_detector().fit(images)


def test_source_module_is_not_touched(images):
    source = TinySource().train()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    detector = tiny_detector(source=source).fit(images)
    detector.localize(images, "guided_backprop")
    assert source.training
    assert all(p.requires_grad and p.grad is None for p in source.parameters())
    assert all(torch.equal(t, before[name]) for name, t in source.state_dict().items())


# The source, computed once


@pytest.fixture
def looks(monkeypatch):
    """The sizes of all batches that any source sees from now on."""
    build, seen = base.build_source, []

    def counted(*arguments):
        source = build(*arguments)
        return source._replace(network=Counting(source.network, seen))

    monkeypatch.setattr(base, "build_source", counted)
    return seen


@pytest.mark.parametrize("cache", ["auto", 10**9, 0], ids=["auto", "memory", "disk"])
def test_training_asks_the_source_once_and_learns_the_same(images, looks, cache):
    uncached = tiny_detector(max_iter=5, batch_size=5, cache=None).fit(images)
    passes = len(looks)
    looks.clear()
    cached = tiny_detector(max_iter=5, batch_size=5, cache=cache).fit(images)
    assert len(looks) == 1  # the twelve images fit into one batch
    assert passes > 5
    for term, curve in uncached.loss_curve_.items():
        assert_allclose(cached.loss_curve_[term], curve, rtol=1e-5)
    assert_allclose(cached.score_samples(images), uncached.score_samples(images), rtol=1e-5)
    assert_allclose(cached.offset_, uncached.offset_, rtol=1e-5)
    assert_allclose(cached.map_offset_, uncached.map_offset_, rtol=1e-4)


def test_cached_scores_of_training_images_are_those_of_score_samples(images):
    detector = tiny_detector(contamination=0.5).fit(images)
    assert detector.offset_ == np.quantile(detector.score_samples(images), 0.5)


def test_calibration_asks_the_source_once_for_scores_and_maps(images, looks):
    detector = tiny_detector().fit(images)
    looks.clear()
    detector.calibrate(images, fpr=0.1)
    assert len(looks) == 1
    scores, maps = detector.score_samples(images), detector.localize(images)
    assert detector.offset_ == np.sort(scores)[0]
    assert detector.map_offset_ == maps.max((1, 2)).max()


def test_augmentation_sets_the_cache_aside_and_says_so_when_asked(images, looks, capsys):
    detector = tiny_detector(augmentation="mild", max_iter=3)
    detector.fit(images)
    assert capsys.readouterr().out == ""
    assert len(looks) > 3
    detector.set_params(verbose=1).fit(images)
    assert "no feature is cached" in capsys.readouterr().out


def test_cache_that_the_disk_cannot_hold(images, monkeypatch):
    expected = tiny_detector().fit(images).score_samples(images)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 100))
    with pytest.warns(UserWarning, match="feature cache was given up"):
        detector = tiny_detector(cache=0).fit(images)
    assert_allclose(detector.score_samples(images), expected, rtol=1e-5)


@pytest.mark.parametrize("as_path", [True, False])
def test_memory_shares_the_source_between_fits_and_calls(images, looks, tmp_path, as_path):
    memory = tmp_path if as_path else joblib.Memory(tmp_path, verbose=0)
    expected = tiny_detector().fit(images)
    plain = expected.score_samples(images)
    maps = expected.localize(images)
    looks.clear()
    detector = tiny_detector(memory=memory).fit(images)
    assert len(looks) == 1
    assert_array_equal(detector.score_samples(images), plain)
    assert_array_equal(detector.localize(images), maps)
    for change in ({"direction_weight": 3.0}, {"critical_layers": 1}, {"max_iter": 3}):
        detector.set_params(**change).fit(images)
    assert len(looks) == 1
    detector.score_samples(images[::-1].copy())
    assert len(looks) == 2
    detector.set_params(image_size=8).fit(images)
    assert len(looks) == 3


def test_memory_that_cannot_be_opened_is_done_without(images, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    detector = tiny_detector()
    expected = detector.fit(images).score_samples(images)
    detector.set_params(memory=blocked)
    with pytest.warns(UserWarning, match="memory=.*file.* cannot be used"):
        assert_array_equal(detector.score_samples(images), expected)
    with pytest.warns(UserWarning, match="memory=.*file.* cannot be used"):
        detector.fit(images)


def test_memory_named_after_fit(images, looks, tmp_path):
    detector = tiny_detector().fit(images).set_params(memory=tmp_path)
    looks.clear()
    scores = [detector.score_samples(images) for _ in range(2)]
    assert len(looks) == 1
    assert_array_equal(*scores)


def test_memory_holds_one_entry_for_a_batch_and_layer_whatever_is_trained(images, tmp_path):
    for augmentation, cache in [(None, "auto"), ("mild", "auto"), (None, None)]:
        tiny_detector(
            memory=tmp_path, augmentation=augmentation, cache=cache, batch_size=5, max_iter=3
        ).fit(images)
    entries = list(tmp_path.rglob("output.pkl"))
    assert len(entries) == 2  # one batch, two layers


def test_grid_search_shares_the_source_between_processes(tmp_path):
    X, y = smooth_and_noisy()
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))
    normal_only = [(train[y[train] == 1], test) for train, test in folds]
    scores = {}
    for n_jobs, memory in [(1, None), (2, str(tmp_path))]:
        search = GridSearchCV(
            tiny_detector(memory=memory),
            {"direction_weight": [0.5, "auto"], "critical_layers": [1, 2]},
            scoring="roc_auc",
            cv=normal_only,
            n_jobs=n_jobs,
            error_score="raise",
            refit=False,
        ).fit(X, y)
        scores[n_jobs] = search.cv_results_["mean_test_score"]
    assert_allclose(scores[2], scores[1], rtol=1e-3)
    assert len(list(tmp_path.rglob("output.pkl"))) == 2 * (3 + 3)  # layers; folds to learn and test


@pytest.mark.parametrize("cache", ["auto", 0, None])
def test_bfloat16_source_keeps_its_precision_everywhere(images, cache, tmp_path):
    detector = tiny_detector(precision="bfloat16", cache=cache, memory=str(tmp_path)).fit(images)
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
