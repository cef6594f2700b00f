"""Objects at one place, or moved from image to image: the parameter `pose` of detectors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from conftest import TINY, TinySource, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from skimage.transform import EuclideanTransform, warp

import skmkd
from skmkd import DetectorEnsemble, MemKDDetector
from skmkd._conformal import held_out
from skmkd._export.writing import check_exportable

SIDE = 48
AS_IT_IS = {"smoothing_sigma": 0, "opening_size": 1}
OBJECTS = {"image_size": SIDE, "validation_fraction": 0.5, "smoothing_sigma": 1.0}


def photographs(n, seed, turn=8.0, shift=6.0, spot=None):
    """Draw an object (n, SIDE, SIDE), uint8, that is turned and shifted, and its spot (n, 2)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    still = (
        0.2 + 0.5 * ((abs(y) < 13) & (abs(x) < 10)) - 0.3 * ((abs(y - 5) < 3) & (abs(x + 3) < 4))
    )
    if spot is not None:
        still = np.where((y - spot[0]) ** 2 + (x - spot[1]) ** 2 < 9, 1.0, still)
    images, spots = [], []
    centre = (SIDE - 1) / 2
    for _ in range(n):
        angle, (dy, dx) = rng.uniform(-turn, turn), rng.uniform(-shift, shift, 2)
        move = (
            EuclideanTransform(translation=(-centre, -centre))
            + EuclideanTransform(rotation=np.deg2rad(angle))
            + EuclideanTransform(translation=(centre + dx, centre + dy))
        )
        image = warp(still, move.inverse, mode="edge", order=1) + 0.02 * rng.standard_normal(
            still.shape
        )
        images.append((255 * image.clip(0, 1)).astype(np.uint8))
        if spot is not None:
            spots.append(move([[centre + spot[1], centre + spot[0]]])[0][::-1])
    return np.stack(images), np.array(spots)


@pytest.fixture(scope="module")
def moving():
    return photographs(60, 0)[0]


@pytest.fixture(scope="module")
def rigid(moving):
    return tiny_detector(pose="rigid", **OBJECTS).fit(moving)


# What is usual at each position


def test_maps_are_compared_with_those_of_held_out_images(moving):
    images = photographs(40, 1, 0, 0)[0]
    plain = tiny_detector(**OBJECTS | AS_IT_IS).fit(images)
    detector = tiny_detector(pose="fixed", **OBJECTS | AS_IT_IS).fit(images)
    _, held = held_out(40, 0.5, None, np.random.default_rng(detector._seed))
    raw, new = plain.localize(images[held]), plain.localize(moving)

    def excess(maps, others):
        deviation = others.std(0, dtype=np.float64)
        usual = deviation + 0.1 * deviation.mean()
        return np.maximum((maps - others.mean(0, dtype=np.float64)) / usual, 0)

    assert_allclose(detector.localize(moving), excess(new, raw), rtol=1e-3, atol=1e-3)
    maxima = excess(new, raw).max((1, 2))
    assert_allclose(-detector.score_samples(moving), maxima, rtol=1e-3)
    apart = [excess(raw[i], np.delete(raw, i, axis=0)).max() for i in range(20)]
    assert_allclose(np.sort(-detector.calibration_scores_), np.sort(apart), rtol=1e-3)
    assert (
        detector.calibration_scores_ < np.sort(detector.score_samples(images[held]))
    ).mean() > 0.9


@pytest.mark.parametrize("pose", ["fixed", "rigid"])
@pytest.mark.parametrize("cache", ["auto", None])
def test_training_images_say_what_is_usual_where_none_are_held_out(moving, pose, cache):
    detector = tiny_detector(pose=pose, contamination=0.1, image_size=SIDE, cache=cache)
    detector.fit(moving)
    assert detector._sums_of_held is detector._left_out is None
    assert (detector.predict(moving) == -1).mean() == pytest.approx(0.1, abs=0.02)


def test_training_images_say_what_is_usual_where_few_are_held_out(moving):
    detector = tiny_detector(pose="fixed", image_size=SIDE, validation_fraction=0.2)
    with pytest.warns(UserWarning, match="8 held-out image"):
        detector.fit(moving[:40])
    assert detector._sums_of_held is detector._left_out is None
    _, held = held_out(40, 0.2, None, np.random.default_rng(detector._seed))
    seen = np.sort(detector.score_samples(moving[held]))
    assert_allclose(detector.calibration_scores_, seen, rtol=1e-5)


def test_false_alarms_are_as_rare_as_they_should_be():
    shares = []
    for seed in range(8):
        images = photographs(70, seed)[0]
        parameters = {"random_state": seed, "max_iter": 1} | OBJECTS
        detector = tiny_detector(pose="rigid", **parameters).fit(images[:40])
        shares.append([(detector.predict(images[40:]) == -1).mean(),
                       detector.predict_mask(images[40:]).any((1, 2)).mean()])  # fmt: skip
    # of 20 images, the most anomalous one is exceeded by 1 / 21 of new ones, in the mean
    assert (np.mean(shares, axis=0) < 1 / 21 + 0.035).all()


def test_without_pose_positions_are_alike(moving):
    plain = tiny_detector(**OBJECTS).fit(moving)
    assert plain._usual is plain._template is None
    assert (
        plain.score_samples(moving)
        != tiny_detector(pose="fixed", **OBJECTS).fit(moving).score_samples(moving)
    ).all()


# Images that are registered


def test_defects_are_found_and_shown_where_the_image_has_them(rigid):
    bad, spots = photographs(20, 5, spot=(-6, 3))
    good, _ = photographs(20, 6)
    assert rigid.score_samples(bad).max() < rigid.score_samples(good).min()
    peaks = [np.unravel_index(each.argmax(), each.shape) for each in rigid.localize(bad)]
    assert abs(peaks - spots).max() < 6
    assert (np.std(peaks - spots, axis=0) < 1.5).all()  # the tiny source's have one offset
    assert (np.std(spots, axis=0) > 3).all()


def test_maps_are_0_where_the_template_shows_nothing(rigid):
    (image,), _ = photographs(1, 7, 0, 0)
    lowered = np.concatenate([np.repeat(image[:1], 8, axis=0), image[:-8]])  # by 8 rows
    single = rigid.localize(lowered[None])[0]
    assert (single >= 0).all()
    assert (single[:4] == 0).all()
    assert single[10:].any()


@pytest.mark.parametrize("form", ["list", "files", "colour", "uint16", "float"])
def test_images_in_every_form(rigid, moving, form, tmp_path):
    forms = {
        "list": list(moving),
        "colour": np.repeat(moving[..., None], 3, axis=-1),
        "uint16": moving.astype(np.uint16) * 257,
        "float": moving / np.float32(255),
    }
    if form == "files":
        forms["files"] = [tmp_path / f"{i}.png" for i in range(len(moving))]
        for image, path in zip(moving, forms["files"], strict=True):
            Image.fromarray(image).save(path)
    X = forms[form]
    detector = tiny_detector(
        pose="rigid", pixel_range=(0, 65535) if form == "uint16" else "auto", **OBJECTS
    )
    detector.fit(X)
    assert_allclose(detector.score_samples(X), rigid.score_samples(moving), rtol=0.05)
    assert np.shape(detector.localize(X[:2])) == (2, SIDE, SIDE)


def test_an_image_s_score_does_not_depend_on_others(rigid, moving):
    together = rigid.score_samples(moving)
    assert_allclose(rigid.score_samples(moving[::-1])[::-1], together, rtol=1e-5)
    assert_allclose([*rigid.score_samples(moving[:1])], together[:1], rtol=1e-5)


def test_the_region_of_interest_is_where_the_object_is_registered(moving):
    box = (2, 3, 46, 44)
    detector = tiny_detector(pose="rigid", roi=box, **OBJECTS).fit(moving)
    cut = tiny_detector(pose="rigid", **OBJECTS).fit(moving[:, 2:46, 3:44])
    assert_allclose(
        detector.score_samples(moving), cut.score_samples(moving[:, 2:46, 3:44]), rtol=1e-5
    )
    maps = detector.localize(moving[:3])
    assert not maps[:, :2].any()
    assert not maps[:, :, 44:].any()
    mask = np.zeros((SIDE, SIDE), bool)
    mask[4:44, 4:44] = True
    mask[4:8, 4:8] = False
    masked = tiny_detector(pose="rigid", roi=mask, **OBJECTS).fit(moving)
    assert not masked.localize(moving[:3])[:, ~mask].any()


def corners(opposite):
    mask = np.zeros((SIDE, SIDE), bool)
    for rows, columns in ((slice(5), slice(5)), (slice(-5, None), slice(-5, None))):
        mask[rows, columns] = True
    return mask[::-1] if opposite else mask


@pytest.mark.parametrize("pose", ["fixed", "rigid"])
def test_regions_with_nothing_that_is_known_are_normal_and_cannot_be_learned(moving, pose):
    images = list(moving)
    detector = tiny_detector(pose=pose, **OBJECTS).fit(images, roi=[corners(False)] * 60)
    other = np.zeros((SIDE, SIDE), bool)
    other[22:26, [0, 1, -2, -1]] = True
    other[[0, 1, -2, -1], 22:26] = True
    assert_array_equal(detector.score_samples(images[:2], roi=[other] * 2), 0)
    regions = [(corners(False), corners(True), other)[i % 3] for i in range(60)]
    with pytest.raises(ValueError, match="roi must be much the same for all images with pose"):
        tiny_detector(pose=pose, **OBJECTS).fit(images, roi=regions)


def test_the_edges_that_few_moved_images_show_change_no_threshold():
    images = photographs(60, 4, shift=9)[0]
    detector = tiny_detector(pose="rigid", **OBJECTS).fit(images)
    assert 0.5 < detector._usual.known.float().mean() < 0.99
    _, held = held_out(60, 0.5, None, np.random.default_rng(detector._seed))
    n = len(held)
    apart = []
    for i in range(n):  # of an image, against what is usual of the others alone
        others = copy.deepcopy(detector)
        tiles = others._tiles(others._check_images(images[np.delete(held, i)]))
        others._usual = None
        sums = others._sums(others._dataset(tiles)).where(detector._usual.known)
        others._usual = sums.usual(1)
        apart += others.score_samples(images[held[i] : held[i] + 1]).tolist()
    assert_allclose(detector.calibration_scores_, np.sort(apart), rtol=1e-4)


def test_unreadable_images_have_no_score(moving, tmp_path):
    detector = tiny_detector(pose="rigid", on_error="skip", **OBJECTS).fit(list(moving))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")
    good = tmp_path / "good.png"
    Image.fromarray(moving[0]).save(good)
    with pytest.warns(UserWarning, match="skipped"):
        scores = detector.score_samples([broken, good])
    assert np.isnan(scores[0])
    assert np.isfinite(scores[1])


# Detectors with a pose


@pytest.mark.parametrize("pose", ["fixed", "rigid"])
def test_saved_pickled_and_loaded_detectors_give_the_same(moving, pose, tmp_path):
    source = TinySource()
    detector = tiny_detector(source=source, pose=pose, **OBJECTS).fit(moving)
    detector.save(tmp_path / "detector.skmkd")
    loaded = skmkd.load(tmp_path / "detector.skmkd", source=source)
    assert loaded.pose == pose
    for other in (loaded, pickle.loads(pickle.dumps(detector))):
        assert_array_equal(other.localize(moving), detector.localize(moving))
        assert_array_equal(other.predict(moving), detector.predict(moving))


def test_ensembles_leave_held_out_images_out_as_well(moving, tmp_path):
    source = TinySource()
    members = [
        (str(pose), tiny_detector(source=source, pose=pose, image_size=SIDE))
        for pose in ("rigid", None)
    ]
    ensemble = DetectorEnsemble(members, validation_fraction=0.5, random_state=0).fit(moving)
    member = ensemble.named_detectors_["rigid"]
    assert member._sums_of_held is member._left_out is None
    assert ensemble.named_detectors_["None"]._usual is None
    _, held = held_out(60, 0.5, None, np.random.default_rng(ensemble._seed))
    seen = np.sort(ensemble.score_samples(moving[held]))
    assert (ensemble.calibration_scores_ < seen).mean() > 0.9
    ensemble.save(tmp_path / "ensemble.skmkd")
    loaded = skmkd.load(tmp_path / "ensemble.skmkd", source={"rigid": source, "None": source})
    assert_array_equal(loaded.score_samples(moving), ensemble.score_samples(moving))


def test_memkd_has_a_pose(moving):
    tiny = {**TINY, "source": TinySource(), "memory_size": 4}
    detector = MemKDDetector(**tiny | OBJECTS, pose="rigid").fit(moving)
    bad, _ = photographs(10, 5, spot=(-6, 3))
    assert detector.score_samples(bad).max() < np.quantile(detector.score_samples(moving), 0.05)
    assert detector.localize(bad).shape == (10, SIDE, SIDE)


def test_a_callback_s_detector_knows_what_is_usual_and_can_be_saved(moving, tmp_path):
    source, path = TinySource(), tmp_path / "detector.skmkd"
    detector = tiny_detector(source=source, pose="fixed", **OBJECTS)
    detector.fit(moving, callback=lambda fitted, epoch: fitted.save(path))
    seen = skmkd.load(path, source=source).score_samples(moving)
    assert_allclose(seen, detector.score_samples(moving), rtol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pose": "loose"}, "The 'pose' parameter .* Got 'loose'"),
        ({"pose": "rigid", "tile_size": 16}, "pose must be None with tile_size.*got 'rigid'"),
        ({"pose": "fixed", "image_score": "loss"}, "pose must be None unless .*'loss'"),
        ({"pose": "fixed", "localization": "gradient"}, "pose must be None unless .*'gradient'"),
    ],
)  # fmt: skip
def test_a_pose_that_does_not_fit_is_an_error_and_the_fit_stays(moving, parameters, message):
    detector = tiny_detector(pose="fixed", **OBJECTS).fit(moving)
    before = detector.score_samples(moving)
    detector.set_params(**parameters)
    with pytest.raises(ValueError, match=message):
        detector.fit(moving[:30])
    detector.set_params(pose="fixed", tile_size=None, image_score="map_max")
    detector.set_params(localization="discrepancy")
    assert_array_equal(detector.score_samples(moving), before)


def test_maps_stay_those_that_were_usual_at_fit(rigid, moving):
    detector = pickle.loads(pickle.dumps(rigid))
    with pytest.raises(ValueError, match="pose must be None unless .*'gradient'"):
        detector.localize(moving, method="gradient")
    with pytest.raises(ValueError, match="With pose, maps must be of .* Fit again"):
        detector.set_params(score_layers=1).score_samples(moving)
    detector.set_params(score_layers=None, smoothing_sigma=1.0).score_samples(moving)
    detector.set_params(score_layers=1).fit(moving)


@pytest.mark.parametrize("pose", ["fixed", "rigid"])
def test_a_detector_that_was_fitted_with_a_pose_cannot_be_exported(moving, pose):
    detector = tiny_detector(pose=pose, **OBJECTS).fit(moving)
    for now in (pose, None):  # what it was at fit counts
        with pytest.raises(ValueError, match="pose must be None at fit to export a MKDDetector"):
            check_exportable(detector.set_params(pose=now))
    check_exportable(tiny_detector(**OBJECTS).fit(moving).set_params(pose=pose))


def test_groups_are_for_calibrate(moving):
    lots = np.repeat(np.arange(6), 10)
    detector = tiny_detector(pose="fixed", **OBJECTS)
    for judge in (detector, DetectorEnsemble([("a", detector), ("b", tiny_detector(**OBJECTS))])):
        with pytest.raises(ValueError, match=r"groups must be None in fit with a pose.*calibrate"):
            judge.fit(moving, groups=lots)
    detector.set_params(contamination=0.1).fit(moving, groups=lots)  # none are held out
    detector.calibrate(photographs(60, 3)[0], fpr=0.2, groups=lots)
