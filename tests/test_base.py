from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinySource, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

METHODS = ["gradient", "smooth_grad", "guided_backprop", "discrepancy"]


def smooth_and_noisy(n_normal=30, n_anomalous=10, seed=0):
    """Synthetic images (n, 16, 16, 3): gradients in brightness are normal, noise is not."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, 16)[:, None, None] * rng.random((n_normal, 1, 1, 3))
    normal = np.broadcast_to(ramp, (n_normal, 16, 16, 3)) + 0.02 * rng.random((n_normal, 16, 16, 3))
    X = np.concatenate([normal / 1.02, rng.random((n_anomalous, 16, 16, 3))])
    return X, np.repeat([1, -1], [n_normal, n_anomalous])


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


def test_pickle_in_a_fresh_process(detector, images, tmp_path):
    (tmp_path / "detector.pkl").write_bytes(pickle.dumps(detector))
    np.save(tmp_path / "images.npy", images)
    program = (
        "import pickle, numpy as np\n"
        "detector = pickle.load(open('detector.pkl', 'rb'))\n"
        "images = np.load('images.npy')\n"
        "np.save('scores.npy', detector.score_samples(images))\n"
        "np.save('maps.npy', detector.localize(images))\n"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path += {paths}\n{program}"],
        cwd=tmp_path,
        check=True,
    )
    assert_allclose(np.load(tmp_path / "scores.npy"), detector.score_samples(images), rtol=1e-6)
    assert_allclose(np.load(tmp_path / "maps.npy"), detector.localize(images), rtol=1e-4)


def test_scores_depend_neither_on_order_nor_on_neighbours(detector, images):
    scores = detector.score_samples(images)
    order = np.random.default_rng(0).permutation(len(images))
    assert_allclose(detector.score_samples(images[order]), scores[order], rtol=1e-7)
    alone = np.concatenate([detector.score_samples(image[None]) for image in images])
    assert_allclose(alone, scores, rtol=1e-7)
    many = np.concatenate([images] * 20)
    assert_allclose(detector.score_samples(many), np.tile(scores, 20), rtol=1e-7)


def test_input_is_not_modified(images):
    before = images.copy()
    detector = tiny_detector(augmentation="mild").fit(images)
    detector.predict(images)
    for method in METHODS:
        detector.localize(images, method)
    assert_array_equal(images, before)


def test_scores_are_float64_higher_for_normal_images():
    X, y = smooth_and_noisy()
    detector = tiny_detector(max_iter=60).fit(X[y == 1][:20])
    scores = detector.score_samples(X)
    assert scores.dtype == np.float64
    assert roc_auc_score(y, scores) > 0.95
    assert_array_equal(detector.decision_function(X), scores - detector.offset_)
    assert_array_equal(detector.predict(X), np.where(scores >= detector.offset_, 1, -1))


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


def test_not_fitted(images):
    for method in ("score_samples", "predict", "decision_function", "localize", "calibrate"):
        with pytest.raises(NotFittedError):
            getattr(tiny_detector(), method)(images)


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


def test_scores_of_two_sizes_of_list_and_array(detector, images):
    scores = detector.score_samples([images[0], images[1][:10]])
    assert_allclose(scores[0], detector.score_samples(images[:1])[0], rtol=1e-6)
    assert scores[1] != detector.score_samples(images[1:2])[0]


def test_memory_map(detector, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    X = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert_array_equal(tiny_detector().fit(X).score_samples(X), detector.score_samples(images))


def test_rectangular_image_size(images):
    maps = tiny_detector(image_size=(12, 20)).fit(images).localize(images)
    assert maps.shape == images.shape[:3]


def test_fit_on_a_list_after_an_array_forgets_the_array_s_features(detector, images):
    detector.fit(list(images))
    assert not hasattr(detector, "n_features_in_")
    assert detector.image_shape_ == (None, None, 3)


# Maps


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


def test_default_method_is_the_parameter_s(images):
    detector = tiny_detector(localization="discrepancy").fit(images)
    assert_array_equal(detector.localize(images), detector.localize(images, "discrepancy"))
    assert (detector.localize(images) != detector.localize(images, "gradient")).any()


def test_masks_are_maps_above_their_threshold(detector, images):
    masks, maps = detector.predict_mask(images), detector.localize(images)
    assert masks.dtype == bool
    assert_array_equal(masks, maps > detector.map_offset_)
    for mask, single in zip(detector.predict_mask(list(images)), masks, strict=True):
        assert_array_equal(mask, single)


def test_unknown_method(detector, images):
    with pytest.raises(ValueError, match="method must be one of gradient, .*got 'gradcam'"):
        detector.localize(images, method="gradcam")


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


def test_masks_ask_for_a_threshold_of_the_maps_at_hand(detector, images):
    detector.set_params(localization="discrepancy")
    with pytest.raises(ValueError, match=r"'gradient'.*'discrepancy'.*Call calibrate"):
        detector.predict_mask(images)
    detector.calibrate(images, fpr=0.1)
    assert detector.predict_mask(images).shape == images.shape[:3]


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


def test_answers_do_not_depend_on_the_caller_s_mode(detector, images):
    scores, maps = detector.score_samples(images), detector.localize(images)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert_array_equal(tiny_detector().fit(images).score_samples(images), scores)
        assert_array_equal(detector.localize(images), maps)


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


def test_moved_state_keeps_the_device(detector, images):
    assert detector.device_ == torch.device("cpu") or torch.cuda.is_available()
    state = detector.__getstate__()
    state["device_"] = torch.device("cuda", torch.cuda.device_count())  # one that is not here
    moved = object.__new__(type(detector))
    moved.__setstate__(state)
    assert_array_equal(moved.score_samples(images), detector.score_samples(images))


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, "'n_samples' parameter of localization_params .* Got 0"),
        ({"n_samples": 2.5}, "'n_samples' parameter of localization_params .* Got 2.5"),
        ({"noise": "a"}, "'noise' parameter of localization_params .* Got 'a'"),
        ({"value": None}, "'value' parameter of localization_params"),
        ({"zz": 1}, r"must be among .* got \['zz'\]"),
    ],
)
def test_bad_localization_options(detector, images, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_detector(localization_params=options).fit(images)
    detector.set_params(localization_params=options)
    with pytest.raises(ValueError, match=message):
        detector.localize(images)


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
    with pytest.warns(ConvergenceWarning):
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
