"""The graph computes in torch what the detector does; files are checked against the graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY, TinySource, paper_detector, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from torchvision.transforms.v2 import functional as transforms

import skmkd
from skmkd import MemKDDetector
from skmkd._export.graph import Graph, resize, resizing

RELATIVE = 1e-5  # of scores; of maps, 1e-4 of their range


def pixels(kind, channels=3, n=12, size=(20, 24), seed=0):
    """Return random images (n, H, W[, C]) of a kind of number, darker to the left."""
    rng = np.random.default_rng(seed)
    shape = (n, *size, channels) if channels > 1 else (n, *size)
    ramp = np.linspace(0.4, 1, size[1])[(None, None, slice(None), *[None] * (channels > 1))]
    values = ramp * rng.random(shape)
    scale = {"bool": 1, "uint8": 255, "uint16": 4095, "float32": 1}[kind]
    return values > 0.3 if kind == "bool" else (scale * values).astype(kind)


def outputs(detector, images):
    """Return what the graph computes for images of one size."""
    array = np.asarray(images)
    array = array[..., None] if array.ndim == 3 else array
    with torch.no_grad():
        found = Graph(detector)(torch.from_numpy(array))
    return {name: each.numpy() for name, each in found.items()}


def assert_same(found, detector, images, roi=None):
    """Compare outputs of one size with a detector's answers."""
    scores = detector.score_samples(images)
    maps = np.stack(list(detector.localize(images)))
    assert_allclose(found["score"], scores, rtol=RELATIVE)
    assert_allclose(found["map"], maps, rtol=0, atol=1e-4 * np.ptp(maps))
    assert_array_equal(found["label"], detector.predict(images))
    assert_allclose(found["decision"], scores - detector.offset_, atol=1e-5 * abs(scores).max())
    clear = np.abs(maps - detector.map_offset_) > 1e-4 * np.ptp(maps)
    assert clear.mean() > 0.99
    assert_array_equal(found["mask"][clear], np.stack(detector.predict_mask(images))[clear])


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "bool"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_graph_answers_as_the_detector(kind, channels):
    detector = tiny_detector().fit(pixels(kind, channels))
    new = pixels(kind, channels, n=5, seed=1)
    assert_same(outputs(detector, new), detector, new)


@pytest.mark.parametrize("size", [(7, 9), (16, 16), (16, 40), (61, 13), (95, 128)])
def test_sizes_that_were_not_seen(size):
    detector = tiny_detector().fit(list(pixels("uint8")))
    new = list(pixels("uint8", n=3, size=size))
    assert_same(outputs(detector, new), detector, new)


@pytest.mark.parametrize(
    "parameters",
    [
        {"image_score": "loss"},
        {"image_score": "loss", "direction": "vector", "value_weight": 1},
        {"value_weight": 1.0, "direction_weight": "auto"},
        {"layer_weights": None, "smoothing_sigma": 0, "opening_size": 1},
        {"critical_layers": ["features.2", "features.5"], "score_layers": 1, "opening_size": 5},
        {"image_size": (12, 20), "normalization": None},
    ],
)
def test_every_way_to_score(parameters):
    detector = tiny_detector(**parameters).fit(pixels("uint8"))
    new = pixels("uint8", n=4, seed=1)
    assert_same(outputs(detector, new), detector, new)


def test_paper_setting():
    detector = paper_detector(localization="discrepancy").fit(pixels("uint8"))
    new = pixels("uint8", n=4, seed=1)
    assert_same(outputs(detector, new), detector, new)


@pytest.mark.parametrize("memory_size", [0, 5])
@pytest.mark.parametrize("paradigm", ["reverse", "forward"])
def test_memories(paradigm, memory_size):
    given = {"source": TinySource(), "paradigm": paradigm, "memory_size": memory_size}
    detector = MemKDDetector(**TINY, **given).fit(pixels("uint8"))
    new = pixels("uint8", n=4, seed=1)
    assert_same(outputs(detector, new), detector, new)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_are_as_the_detector_rounds_them(precision):
    """Weights that bfloat16 holds have zeros in the last sixteen bits."""
    detector = tiny_detector(precision=precision).fit(pixels("uint8"))
    weights = [p for p in Graph(detector).parameters() if p.ndim == 4]
    assert all(p.dtype == torch.float32 for p in weights)
    rounded = [torch.equal(p, p.bfloat16().float()) for p in weights]
    assert all(rounded) == (precision == "bfloat16")


BOX = (3, 5, 18, 21)


def region(kind):
    """Return a region of interest of images (20, 24): a rectangle, or a mask with a hole."""
    if kind == "rectangle":
        return BOX
    mask = np.zeros((20, 24), bool)
    mask[3:18, 5:21] = True
    mask[8:12, 9:15] = False
    return mask


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("shape", ["rectangle", "mask"])
def test_regions(kind, shape):
    detector = tiny_detector(roi=region(shape)).fit(pixels(kind))
    new = pixels(kind, n=4, seed=1)
    found = outputs(detector, new)
    assert_same(found, detector, new)
    outside = np.ones((20, 24), bool)
    outside[3:18, 5:21] = False
    if shape == "mask":
        outside = ~region(shape)
    assert (found["map"][:, outside] == 0).all()
    assert (found["map"][:, ~outside] != 0).mean() > 0.9


@pytest.mark.parametrize("shape", ["rectangle", "mask"])
def test_what_is_outside_of_a_region_changes_nothing(shape):
    detector = tiny_detector(roi=region(shape)).fit(pixels("float32"))
    new = pixels("float32", n=4, seed=1)
    other = new.copy()
    outside = np.ones((20, 24), bool)
    outside[3:18, 5:21] = False
    other[:, outside if shape == "rectangle" else ~region(shape)] = np.nan
    for name, each in outputs(detector, new).items():
        assert_array_equal(outputs(detector, other)[name], each)


def test_floats_far_outside_of_the_range_are_clipped_as_the_detector_does():
    detector = tiny_detector(pixel_range=(0.0, 1.0)).fit(pixels("float32"))
    new = pixels("float32", n=4, seed=1)
    new[:, 3, 3] = (30, -40, 1e30)
    assert_same(outputs(detector, new), detector, new)


def test_p_values():
    good, new = pixels("uint8", n=30), pixels("uint8", n=20, seed=1)
    groups = np.repeat(range(6), 5)
    detector = tiny_detector().fit(good[:10]).calibrate(good, groups=groups, fpr=0.2)
    assert_allclose(outputs(detector, new)["p_value"], detector.p_value(new), rtol=1e-6)
    assert len(np.unique(detector.p_value(new))) > 3
    uncalibrated = tiny_detector().fit(good)
    assert "p_value" not in outputs(uncalibrated, new)


def test_thresholds_are_those_that_were_set_last():
    detector = tiny_detector().fit(pixels("uint8")).calibrate(pixels("uint8", n=30, seed=1))
    new = pixels("uint8", n=30, seed=2)
    before = outputs(detector, new)
    detector.set_fpr(0.5)
    after = outputs(detector, new)
    assert_same(after, detector, new)
    assert (after["label"] < before["label"]).any()
    assert after["mask"].sum() > before["mask"].sum()


def test_thresholds_that_no_longer_hold_are_refused():
    detector = tiny_detector().fit(pixels("uint8")).set_params(smoothing_sigma=1)
    with pytest.raises(ValueError, match="offset_ was set for the parameters"):
        Graph(detector)


def test_loaded_and_cloned_detectors_have_the_same_graph(tmp_path):
    detector = tiny_detector().fit(pixels("uint8"))
    detector.save(tmp_path / "model.skmkd")
    loaded = skmkd.load(tmp_path / "model.skmkd", source=TinySource())
    again = clone(detector).fit(pixels("uint8"))
    new = pixels("uint8", n=3, seed=1)
    expected = outputs(detector, new)
    for each in (loaded, again):
        for name, found in outputs(each, new).items():
            assert_array_equal(found, expected[name])


def test_a_graph_leaves_its_detector_alone():
    detector = tiny_detector().fit(pixels("uint8"))
    new = pixels("uint8", n=3, seed=1)
    before = detector.score_samples(new)
    for parameter in Graph(detector).parameters():
        parameter.zero_()
    assert_array_equal(detector.score_samples(new), before)


# The resize


SIDES = [(1, 1), (1, 9), (9, 1), (16, 16), (16, 31), (31, 16), (37, 5), (5, 37), (720, 128), (9, 8)]


@pytest.mark.parametrize(("old", "new"), SIDES)
def test_resize_is_torchvisions(old, new):
    planes = torch.rand(2, 3, old, 11, generator=torch.Generator().manual_seed(0))
    expected = transforms.resize(planes, [new, 17], antialias=True)
    assert_allclose(resize(planes, (new, 17)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), SIDES)
def test_weights_of_a_resize_average(old, new):
    matrix = resizing(old, new)
    assert matrix.shape == (new, old)
    assert (matrix >= 0).all()
    assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    assert_allclose(matrix.flip(0, 1), matrix, atol=1e-5)  # no side is preferred
