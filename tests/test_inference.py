from __future__ import annotations

import pickle
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinySource, smooth_and_noisy, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_score

from skmkd import MKDDetector
from skmkd._features import batches as observation
from skmkd._images.checks import check_images
from skmkd.model_selection import NormalOnlySplit, anomaly_roc_auc

METHODS = ["gradient", "smooth_grad", "guided_backprop", "discrepancy"]


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


def test_scores_are_float64_higher_for_normal_images():
    X, y = smooth_and_noisy()
    detector = tiny_detector(max_iter=60).fit(X[y == 1][:20])
    scores = detector.score_samples(X)
    assert scores.dtype == np.float64
    assert roc_auc_score(y, scores) > 0.95
    assert_array_equal(detector.decision_function(X), scores - detector.offset_)
    assert_array_equal(detector.predict(X), np.where(scores >= detector.offset_, 1, -1))


def test_not_fitted(images):
    for method in ("score_samples", "predict", "decision_function", "localize", "calibrate"):
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
    with pytest.raises(ValueError, match="method must be one of discrepancy, .*got 'gradcam'"):
        detector.localize(images, method="gradcam")


def test_masks_ask_for_a_threshold_of_the_maps_at_hand(detector, images):
    detector.set_params(localization="discrepancy")
    with pytest.raises(ValueError, match=r"'gradient'.*'discrepancy'.*Call calibrate"):
        detector.predict_mask(images)
    detector.calibrate(images, fpr=0.1)
    assert detector.predict_mask(images).shape == images.shape[:3]


@pytest.mark.parametrize(
    "change", [{"value_weight": 0.5}, {"direction": "position"}, {"smoothing_sigma": 1.0}], ids=str
)
def test_what_changes_maps_makes_their_threshold_stale(detector, images, change):
    before = detector.localize(images)
    detector.set_params(**change)
    assert not np.allclose(detector.localize(images), before, rtol=1e-3)
    with pytest.raises(ValueError, match="map_offset_ holds for"):
        detector.predict_mask(images)


def untouched_detector(**parameters):
    """A tiny detector that scores and maps by default."""
    return MKDDetector(
        source=TinySource(), critical_layers=2, image_size=16, max_iter=1, tol=None,
        random_state=0, **parameters,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "change"),
    [
        ({}, {"smoothing_sigma": 1.0}),
        ({}, {"image_score": "loss"}),
        ({"value_weight": 1.0}, {"localization_params": {"value": True}}),
        (
            {"value_weight": 1.0, "localization_params": {"value": True}},
            {"value_weight": 2.0},
        ),
    ],
    ids=str,
)
def test_what_changes_scores_makes_their_threshold_stale(images, given, change):
    detector = untouched_detector(**given).fit(images)
    before = detector.score_samples(images)
    detector.set_params(**change)
    assert not np.allclose(detector.score_samples(images), before, rtol=1e-3)
    for method in (detector.predict, detector.decision_function):
        with pytest.raises(ValueError, match=r"offset_ holds for .* calibrate or fit again"):
            method(images)


@pytest.mark.parametrize(
    ("localization", "options"),
    [
        ("gradient", {"n_samples": 2, "noise": 0.5, "value": True}),
        ("guided_backprop", {"n_samples": 2, "noise": 0.5, "value": True}),
        ("smooth_grad", {"value": True}),
    ],
)
def test_options_of_other_maps_leave_their_threshold_as_it_is(images, localization, options):
    detector = untouched_detector(localization=localization, value_weight=1.0).fit(images)
    before = detector.predict_mask(images)
    detector.set_params(localization_params=options)
    assert_array_equal(detector.predict_mask(images), before)


@pytest.mark.parametrize(
    ("localization", "options"),
    [
        ("gradient", {"through_source": True}),
        ("smooth_grad", {"n_samples": 2}),
        ("smooth_grad", {"noise": 0.5}),
    ],
)
def test_options_of_maps_make_their_threshold_stale(images, localization, options):
    detector = untouched_detector(localization=localization).fit(images)
    before = detector.localize(images)
    detector.set_params(localization_params=options)
    assert not np.allclose(detector.localize(images), before, rtol=1e-3)
    with pytest.raises(ValueError, match="map_offset_ holds for"):
        detector.predict_mask(images)


@pytest.mark.parametrize(
    ("change", "methods"),
    [
        ({"value_weight": 1.0}, ("predict", "predict_mask")),
        ({"direction": "vector"}, ("predict", "predict_mask")),
        ({"localization_params": {"n_samples": 32}}, ("predict", "predict_mask")),
        ({"opening_size": 5}, ("predict",)),
    ],
    ids=str,
)
def test_what_changes_nothing_leaves_thresholds_as_they_are(images, change, methods):
    detector = untouched_detector().fit(images)
    before = {method: getattr(detector, method)(images) for method in methods}
    detector.set_params(**change)
    for method, answer in before.items():
        assert_array_equal(getattr(detector, method)(images), answer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_score": "map-max"}, "'image_score' parameter.*'map-max'"),
        ({"localization": "gradcam"}, "'localization' parameter.*'gradcam'"),
        ({"smoothing_sigma": -1.0}, "'smoothing_sigma' parameter"),
        ({"opening_size": 2}, "opening_size must be odd; got 2"),
        ({"on_error": "rise"}, "'on_error' parameter"),
        ({"value_weight": 0.0, "localization_params": {"value": True}}, "value_weight above 0"),
    ],
    ids=str,
)
def test_parameters_are_checked_when_they_have_changed_since_fit(detector, images, change, message):
    detector.set_params(**change)
    for ask in (detector.score_samples, detector.localize, partial(detector.calibrate, fpr=0.1)):
        with pytest.raises(ValueError, match=message):
            ask(images)


def test_answers_do_not_depend_on_the_caller_s_mode(detector, images):
    scores, maps = detector.score_samples(images), detector.localize(images)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert_array_equal(tiny_detector().fit(images).score_samples(images), scores)
        assert_array_equal(detector.localize(images), maps)


def test_moved_state_keeps_the_device(detector, images):
    state = detector.__getstate__()
    state["device_"] = torch.device("cuda", torch.cuda.device_count())  # one that is not here
    moved = object.__new__(type(detector))
    moved.__setstate__(state)
    assert_array_equal(moved.score_samples(images), detector.score_samples(images))


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


class Sliceable:
    """Images that are made when asked for, and how many were asked for and let go."""

    def __init__(self, n):
        self.shape, self.dtype, self.ndim = (n, 20, 24, 3), np.dtype(np.uint8), 4
        self.alive = self.most = 0

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, self.shape[1:], dtype=np.uint8)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self._let_go)
        return image

    def _let_go(self):
        self.alive -= 1


def test_scoring_and_maps_stream_over_anything_that_can_be_indexed(detector, monkeypatch):
    monkeypatch.setitem(observation.BATCH_PIXELS, ("cpu", "float32"), 4 * 16 * 16)
    X = Sliceable(60)
    scores = detector.score_samples(X)
    assert X.most <= 8  # images; a batch holds four
    few = np.stack([X[i] for i in range(60)])
    assert_array_equal(scores, detector.score_samples(few))
    X.most = 0
    images = check_images(detector, X, reset=False)
    reader = detector._reader(images)
    for _ in detector._maps(reader, images, range(60), detector._attribution):
        pass
    assert X.most <= 8


def test_gradients_need_no_graph_through_the_source(detector, images, monkeypatch):
    modes = []
    observer = detector._observer(recall=False)
    forward = detector.source_.forward

    def watched(x):
        modes.append((torch.is_grad_enabled(), x.requires_grad))
        return forward(x)

    monkeypatch.setattr(detector.source_, "forward", watched)
    detector.localize(images, "gradient")
    assert observer.batch_size >= len(images)
    assert modes == [(False, False)]  # one batch, one pass


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
    for ask, expected in [(detector.score_samples, np.nan), (detector.predict, -1)]:
        with pytest.warns(UserWarning, match="It is skipped") as caught:
            got = ask(paths)
        assert len(caught) == 2
        assert_array_equal(got[[1, 2]], expected)
        assert_array_equal(got[rest], ask(images)[rest])
    with pytest.warns(UserWarning, match="It is skipped"):
        maps = detector.localize(paths)
    for i in (1, 2):
        assert np.isnan(maps[i]).all()
    assert maps[1].shape == images.shape[1:3]
    assert_array_equal(np.stack([maps[i] for i in rest]), detector.localize(images)[rest])
    with pytest.warns(UserWarning, match="It is skipped"):
        masks = detector.predict_mask(paths)
    assert masks[1].all()  # what cannot be read is no normal image
    assert not masks[0].all()


def test_unreadable_files_are_errors_otherwise(tmp_path, images):
    detector = tiny_detector().fit(images)
    paths = spoiled(tmp_path, images)
    for chosen, name in ((paths[:2], "image01.png"), (paths[2:], "image02.png")):
        for ask in (detector.score_samples, detector.predict, detector.localize):
            with pytest.raises(ValueError, match=f"{name} cannot be read as an image"):
                ask(chosen)
