"""What the detectors do on a GPU, beside a CPU; ``pytest -m gpu`` runs these alone."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from skimage.data import astronaut, brick

from skmkd import MemKDDetector, MKDDetector, load
from skmkd._features.cache import cached

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

QUICK = {
    "image_size": 32, "batch_size": 8, "max_iter": 3, "validation_fraction": 0, "random_state": 0,
}  # fmt: skip
DETECTORS = {
    "default": MKDDetector(**QUICK),
    "paper": MKDDetector.paper(tol=None, localization="discrepancy", **QUICK),
    "MemKD": MemKDDetector(**QUICK),
}


@contextmanager
def tf32(allowed):
    """Let torch compute float32 in TF32 or not, and restore what it did."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


@pytest.fixture(scope="module")
def crops():
    """Crops (90, 64, 64) of a photograph of bricks, some of which are turned by 90 degrees."""
    rng = np.random.default_rng(0)
    places = rng.integers(0, 512 - 64, (90, 2))
    cut = np.stack([brick()[r : r + 64, c : c + 64] for r, c in places])
    cut[60:] = cut[60:].transpose(0, 2, 1)
    return cut


@pytest.fixture(scope="module")
def saved(crops, tmp_path_factory):
    """Files of detectors that were fitted on the CPU."""
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for name, detector in DETECTORS.items():
        for precision in ("float32", "bfloat16"):
            paths[name, precision] = folder / f"{name}_{precision}.skmkd"
            detector.set_params(device="cpu", precision=precision).fit(crops[:40])
            detector.save(paths[name, precision])
    return paths


def largest(got, expected):
    """Return the largest difference, as a share of the largest value."""
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize(
    ("precision", "fast", "share"),
    [("float32", False, 1e-4), ("float32", True, 1e-2), ("bfloat16", False, 3e-2)],
)
def test_a_gpu_computes_what_a_cpu_does(saved, crops, name, precision, fast, share):
    path = saved[name, precision]
    here, there = load(path, device="cpu"), load(path, device="cuda")
    assert there.device_.type == "cuda"
    assert there.precision_ == precision
    with tf32(fast):
        scores, maps = there.score_samples(crops), there.localize(crops)
        labels = there.predict(crops)
    expected = here.score_samples(crops)
    assert largest(scores, expected) < share
    assert largest(maps, here.localize(crops)) < share
    near = np.abs(expected - here.offset_) < share * np.abs(expected).max()
    assert_array_equal(labels[~near], here.predict(crops)[~near])


@pytest.mark.parametrize("name", DETECTORS)
def test_a_model_fitted_on_a_gpu_is_the_same_on_a_cpu_and_back(crops, name, tmp_path):
    with tf32(False):
        fitted = DETECTORS[name].set_params(device="cuda", precision="float32").fit(crops[:40])
        expected = fitted.score_samples(crops)
        fitted.save(tmp_path / "model.skmkd")
        here = load(tmp_path / "model.skmkd", device="cpu")
        assert largest(here.score_samples(crops), expected) < 1e-4
        here.save(tmp_path / "back.skmkd")
        back = load(tmp_path / "back.skmkd", device="cuda")
        assert_array_equal(back.score_samples(crops), expected)
        assert_array_equal(pickle.loads(pickle.dumps(fitted)).score_samples(crops), expected)


@pytest.mark.parametrize("method", ["gradient", "smooth_grad", "guided_backprop"])
def test_gradient_maps(saved, crops, method):
    path = saved["default", "float32"]
    here, there = load(path, device="cpu"), load(path, device="cuda")
    with tf32(False):
        maps = there.localize(crops[:20], method=method)
    expected = here.localize(crops[:20], method=method)
    assert np.corrcoef(maps.ravel(), expected.ravel())[0, 1] > 0.999  # ReLUs near 0 differ


@pytest.mark.parametrize(("precision", "share"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_scores_do_not_depend_on_other_images(saved, crops, precision, share):
    detector = load(saved["default", precision], device="cuda")
    together = detector.score_samples(crops)
    with tf32(False):
        together = detector.score_samples(crops)
        alone = np.concatenate([detector.score_samples(image[None]) for image in crops])
        turned = detector.score_samples(crops[::-1])[::-1]
    assert largest(alone, together) < share
    assert largest(turned, together) < share


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_fits_of_the_same_seed_differ_by_rounding(crops, precision):
    detector = DETECTORS["default"].set_params(device="cuda", precision=precision)
    first = detector.fit(crops[:40]).score_samples(crops)
    assert largest(detector.fit(crops[:40]).score_samples(crops), first) < 0.05


PLACES = {"on the GPU": "auto", "in memory": "auto", "on disk": 0, "nowhere": None}


@pytest.mark.parametrize("place", PLACES)
def test_a_cache_anywhere_gives_the_same_loss(crops, monkeypatch, place):
    seen = []

    @contextmanager
    def noted(*arguments, **options):
        with cached(*arguments, **options) as dataset:
            seen.append(dataset.rows[""].device.type)
            yield dataset

    monkeypatch.setattr("skmkd._base.cached", noted)
    detector = MKDDetector(**QUICK, device="cuda", precision="float32")
    expected = detector.fit(crops[:40]).loss_curve_["total"]
    assert seen == ["cuda"]
    if place == "in memory":
        monkeypatch.setattr("skmkd._features.cache.gpu_memory", lambda _: (0, 0))
    got = detector.set_params(cache=PLACES[place]).fit(crops[:40]).loss_curve_["total"]
    assert_allclose(got, expected, rtol=1e-2)
    assert seen[1:] == {"on the GPU": ["cuda"], "nowhere": []}.get(place, ["cpu"])


def test_a_gpu_that_is_full_leaves_the_earlier_fit(crops):
    detector = MKDDetector(**QUICK, device="cuda").fit(crops[:40])
    expected = detector.score_samples(crops)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**25) / total)
    try:
        with pytest.raises(MemoryError, match="Lower image_size or batch_size"):
            detector.set_params(image_size=256).fit(crops[:40])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_array_equal(detector.set_params(image_size=32).score_samples(crops), expected)


def test_threads_share_a_detector(saved, crops):
    detector = load(saved["default", "bfloat16"], device="cuda")
    expected = detector.score_samples(crops), detector.localize(crops)
    with ThreadPoolExecutor(4) as pool:
        scores = [pool.submit(detector.score_samples, crops) for _ in range(8)]
        maps = [pool.submit(detector.localize, crops) for _ in range(8)]
    for each in scores:
        assert_array_equal(each.result(), expected[0])
    for each in maps:
        assert_array_equal(each.result(), expected[1])


def kinds():
    """Images of every kind of number and channels, and lists of several sizes."""
    colour = np.stack([astronaut()[i : i + 90, i : i + 120] for i in range(0, 320, 40)])
    transparent = np.concatenate([colour, colour[..., :1]], axis=3)
    floats = colour.astype(np.float32) / 255
    return {
        "uint8": colour,
        "uint16": colour[..., 0].astype(np.uint16) * 257,
        "float32": floats,
        "float64": floats.astype(float) * 20 + 1000,
        "int64": colour.astype(np.int64) * 10**6,
        "bool": colour[..., 0] > 128,
        "rgba": transparent,
        "list": [image[: 40 + 5 * i] for i, image in enumerate(colour)],
        "reversed": colour[:, ::-1, ::-1],
    }


@pytest.mark.parametrize("kind", kinds())
def test_images_of_every_kind_are_prepared_alike(kind):
    images = kinds()[kind]
    detector = tiny_detector(device="cpu").fit(images)
    prepared = detector._prepare, [np.atleast_3d(image) for image in images[:1]]
    here = prepared[0](prepared[1])
    there = prepared[0](prepared[1], torch.device("cuda"))
    assert there.dtype == torch.float32
    assert_allclose(there.cpu(), here, atol=1e-4)
    detector = tiny_detector(device="cuda").fit(images)
    with tf32(False):
        maps = detector.localize(images)
    assert [single.shape for single in maps] == [np.shape(image)[:2] for image in images]


def test_augmented_images(crops):
    detector = MKDDetector(**QUICK, device="cuda", augmentation="mild").fit(crops[:40])
    assert np.isfinite(detector.score_samples(crops)).all()


def test_no_global_state_changes(crops):
    def state():
        backends = torch.backends
        return (
            torch.cuda.get_rng_state().tolist(), torch.get_rng_state().tolist(),
            backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.allow_tf32,
            backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(),
            torch.is_grad_enabled(), torch.is_autocast_enabled("cuda"),
            torch.is_autocast_cache_enabled(),
        )  # fmt: skip

    before = state()
    DETECTORS["default"].set_params(device="cuda", precision="auto").fit(crops[:40]).localize(crops)
    assert state() == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", DETECTORS)
def test_an_image_alone_has_the_same_score_each_time(saved, crops, name, precision):
    detector = load(saved[name, precision], device="cuda")
    first, second = crops[:1], crops[60:61]
    expected = [detector.score_samples(each) for each in (first, second)]
    maps = detector.localize(first)
    for _ in range(6):  # some of these are computed, one is recorded, the last are replayed
        for image, score in zip((first, second), expected, strict=True):
            assert_array_equal(detector.score_samples(image), score)
        assert_array_equal(detector.localize(first), maps)
    detector.set_params(smoothing_sigma=1.0)
    other = detector.score_samples(first)
    assert_array_equal(
        other,
        load(saved[name, precision], device="cuda")
        .set_params(smoothing_sigma=1.0)
        .score_samples(first),
    )
    if detector.get_params().get("image_score", "map_max") == "map_max":
        assert other != expected[0]


def test_a_refit_is_not_scored_by_what_was_recorded(crops):
    detector = MKDDetector(**QUICK, device="cuda").fit(crops[:40])
    before = [detector.score_samples(crops[60:61]) for _ in range(6)]
    detector.fit(crops[40:60])
    after = [detector.score_samples(crops[60:61]) for _ in range(6)]
    assert len({float(score[0]) for score in before}) == len({float(s[0]) for s in after}) == 1
    assert before[0] != after[0]


def test_threads_replay_in_turn(saved, crops):
    detector = load(saved["default", "float32"], device="cuda")
    expected = np.concatenate([detector.score_samples(image[None]) for image in crops[:30]])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: detector.score_samples(image[None]), crops[:30]))
    assert_array_equal(np.concatenate(found), expected)


def test_tiles(crops, tmp_path):
    images = np.tile(crops[:12], (1, 2, 2))
    parameters = QUICK | {"tile_size": 64, "image_size": 64, "precision": "float32"}
    detector = MKDDetector(**parameters, device="cpu").fit(images)
    expected, maps = detector.score_samples(images), detector.localize(images[:2])
    detector.save(tmp_path / "tiles.skmkd")
    there = load(tmp_path / "tiles.skmkd", device="cuda")
    with tf32(False):
        assert largest(there.score_samples(images), expected) < 1e-4
        assert largest(there.localize(images[:2]), maps) < 1e-4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_weigh_what_they_do_on_a_cpu(crops, precision):
    weights = []
    for device in ("cpu", "cuda"):
        detector = MKDDetector(**QUICK, precision=precision, device=device)
        weights.append(detector.fit(crops[:40]).layer_weights_)
    assert weights[0].std() > 0.1
    assert_allclose(weights[1], weights[0], rtol=0.1)  # of cloners that differ by rounding
