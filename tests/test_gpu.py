"""What the detectors do on a GPU, of CUDA or MPS, beside a CPU; ``pytest -m gpu`` runs these."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ACCELERATOR, needs_cuda, needs_gpu, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from skimage.data import astronaut, brick
from skimage.transform import rotate

from skmkd import MemKDDetector, MKDDetector, load
from skmkd._features.cache import cached

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.gpu, needs_gpu]

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
    here, there = load(path, device="cpu"), load(path, device=ACCELERATOR)
    assert there.device_.type == ACCELERATOR
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
        fitted = DETECTORS[name].set_params(device=ACCELERATOR, precision="float32").fit(crops[:40])
        expected = fitted.score_samples(crops)
        fitted.save(tmp_path / "model.skmkd")
        here = load(tmp_path / "model.skmkd", device="cpu")
        assert largest(here.score_samples(crops), expected) < 1e-4
        here.save(tmp_path / "back.skmkd")
        back = load(tmp_path / "back.skmkd", device=ACCELERATOR)
        assert_array_equal(back.score_samples(crops), expected)
        assert_array_equal(pickle.loads(pickle.dumps(fitted)).score_samples(crops), expected)


@pytest.mark.parametrize("method", ["gradient", "smooth_grad", "guided_backprop"])
def test_gradient_maps(saved, crops, method):
    path = saved["default", "float32"]
    here, there = load(path, device="cpu"), load(path, device=ACCELERATOR)
    with tf32(False):
        maps = there.localize(crops[:20], method=method)
    expected = here.localize(crops[:20], method=method)
    assert np.corrcoef(maps.ravel(), expected.ravel())[0, 1] > 0.999  # ReLUs near 0 differ


@pytest.mark.parametrize(("precision", "share"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_scores_do_not_depend_on_other_images(saved, crops, precision, share):
    detector = load(saved["default", precision], device=ACCELERATOR)
    with tf32(False):
        together = detector.score_samples(crops)
        alone = np.concatenate([detector.score_samples(image[None]) for image in crops])
        turned = detector.score_samples(crops[::-1])[::-1]
    assert largest(alone, together) < share
    assert largest(turned, together) < share


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_fits_of_the_same_seed_differ_by_rounding(crops, precision):
    detector = DETECTORS["default"].set_params(device=ACCELERATOR, precision=precision)
    first = detector.fit(crops[:40]).score_samples(crops)
    assert largest(detector.fit(crops[:40]).score_samples(crops), first) < 0.05


PLACES = {"on the GPU": "auto", "in memory": "auto", "on disk": 0, "nowhere": None}


@needs_cuda
@pytest.mark.parametrize("place", PLACES)
def test_a_cache_anywhere_gives_the_same_loss(crops, monkeypatch, place):
    seen = []

    @contextmanager
    def noted(*arguments, **options):
        with cached(*arguments, **options) as dataset:
            seen.append(dataset.rows[""].device.type)
            yield dataset

    monkeypatch.setattr("skmkd._base.cached", noted)
    detector = MKDDetector(**QUICK, device=ACCELERATOR, precision="float32")
    expected = detector.fit(crops[:40]).loss_curve_["total"]
    assert seen == ["cuda"]
    if place == "in memory":
        monkeypatch.setattr("skmkd._features.cache.gpu_memory", lambda _: (0, 0))
    got = detector.set_params(cache=PLACES[place]).fit(crops[:40]).loss_curve_["total"]
    assert_allclose(got, expected, rtol=1e-2)
    assert seen[1:] == {"on the GPU": ["cuda"], "nowhere": []}.get(place, ["cpu"])


@needs_cuda
def test_a_gpu_that_is_full_leaves_the_earlier_fit(crops):
    detector = MKDDetector(**QUICK, device=ACCELERATOR).fit(crops[:40])
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
    detector = load(saved["default", "bfloat16"], device=ACCELERATOR)
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
    if ACCELERATOR == "cuda":  # MPS has no float64; for it, the CPU prepares images
        there = prepared[0](prepared[1], torch.device(ACCELERATOR))
        assert there.dtype == torch.float32
        assert_allclose(there.cpu(), here, atol=1e-4)
    detector = tiny_detector(device=ACCELERATOR).fit(images)
    with tf32(False):
        maps = detector.localize(images)
    assert [single.shape for single in maps] == [np.shape(image)[:2] for image in images]


def test_augmented_images(crops):
    detector = MKDDetector(**QUICK, device=ACCELERATOR, augmentation="mild").fit(crops[:40])
    assert np.isfinite(detector.score_samples(crops)).all()


@needs_cuda
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
    DETECTORS["default"].set_params(device=ACCELERATOR, precision="auto").fit(crops[:40]).localize(
        crops
    )
    assert state() == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", DETECTORS)
def test_an_image_alone_has_the_same_score_each_time(saved, crops, name, precision):
    detector = load(saved[name, precision], device=ACCELERATOR)
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
        load(saved[name, precision], device=ACCELERATOR)
        .set_params(smoothing_sigma=1.0)
        .score_samples(first),
    )
    if detector.get_params().get("image_score", "map_max") == "map_max":
        assert other != expected[0]


def test_a_refit_is_not_scored_by_what_was_recorded(crops):
    detector = MKDDetector(**QUICK, device=ACCELERATOR).fit(crops[:40])
    before = [detector.score_samples(crops[60:61]) for _ in range(6)]
    detector.fit(crops[40:60])
    after = [detector.score_samples(crops[60:61]) for _ in range(6)]
    assert len({float(score[0]) for score in before}) == len({float(s[0]) for s in after}) == 1
    assert before[0] != after[0]


def test_threads_replay_in_turn(saved, crops):
    detector = load(saved["default", "float32"], device=ACCELERATOR)
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
    there = load(tmp_path / "tiles.skmkd", device=ACCELERATOR)
    with tf32(False):
        assert largest(there.score_samples(images), expected) < 1e-4
        assert largest(there.localize(images[:2]), maps) < 1e-4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_weigh_what_they_do_on_a_cpu(crops, precision):
    weights = []
    for device in ("cpu", ACCELERATOR):
        detector = MKDDetector(**QUICK, precision=precision, device=device)
        weights.append(detector.fit(crops[:40]).layer_weights_)
    assert weights[0].std() > 0.1
    assert_allclose(weights[1], weights[0], rtol=0.1)  # of cloners that differ by rounding


def test_objects_that_move(crops, tmp_path):
    """A photograph of a part, shifted and turned."""
    rng = np.random.default_rng(0)
    moved = np.stack(
        [
            rotate(astronaut()[..., 0], angle, preserve_range=True, mode="edge")[
                r : r + 256 : 4, c : c + 256 : 4
            ].astype(np.uint8)
            for angle, r, c in zip(
                rng.uniform(-5, 5, 60),
                rng.integers(0, 40, 60),
                rng.integers(80, 120, 60),
                strict=True,
            )
        ]
    )
    parameters = QUICK | {"pose": "rigid", "precision": "float32", "validation_fraction": 0.4}
    here = MKDDetector(**parameters, device="cpu").fit(moved)
    here.save(tmp_path / "moving.skmkd")
    there = load(tmp_path / "moving.skmkd", device=ACCELERATOR)
    with tf32(False):
        scores, maps = there.score_samples(moved), there.localize(moved)
        alone = np.concatenate([there.score_samples(image[None]) for image in moved[:8]])
    assert largest(scores, here.score_samples(moved)) < 1e-2  # of poses that differ by rounding
    assert largest(maps, here.localize(moved)) < 5e-2
    assert largest(alone, scores[:8]) < 1e-3
    fitted = MKDDetector(**parameters, device=ACCELERATOR).fit(moved)
    assert np.isfinite(fitted.score_samples(moved)).all()
    assert {tensor.device.type for tensor in fitted._usual} == {"cpu"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["default", "MemKD"])
def test_export_of_what_was_fitted_on_a_gpu(crops, name, precision, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    detector = DETECTORS[name].set_params(device=ACCELERATOR, precision=precision).fit(crops[:40])
    devices = {p.device for p in detector.cloner_.parameters()}
    parity = detector.export(tmp_path / "model.onnx", check=crops)
    assert parity.rank_correlation > 0.99
    assert {p.device for p in detector.cloner_.parameters()} == devices


def test_memories_begin_with_features_of_the_first_batch(crops):
    """As on a CPU: the items are drawn there, and features differ by rounding."""
    items = []
    for device in ("cpu", ACCELERATOR):
        detector = MemKDDetector(
            **QUICK | {"max_iter": 1}, learning_rate=1e-12, precision="float32", device=device
        )
        with tf32(False):
            memory = detector.fit(crops[:40]).cloner_.memories["1"]
        items.append(torch.stack([memory.keys, memory.values]).detach().cpu())
    torch.testing.assert_close(*items, rtol=1e-3, atol=1e-3)


def test_several_detectors_in_threads(saved, crops):
    """Each is prepared and recorded while the others are, or compute."""
    paths = [saved[name, "float32"] for name in ("default", "MemKD")] * 2
    detectors = [load(path, device=ACCELERATOR) for path in paths]
    expected = [load(path, device=ACCELERATOR).score_samples(crops[:1]) for path in paths]

    def run(detector):
        return [detector.score_samples(crops[:1]) for _ in range(8)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, detectors * 2))
    for scores, score in zip(found, expected * 2, strict=True):
        for each in scores:
            assert_array_equal(each, score)


def test_fits_in_threads(crops):
    def run(seed):
        detector = MKDDetector(**QUICK | {"random_state": seed}, device=ACCELERATOR)
        return detector.fit(crops[:40]).score_samples(crops)

    expected = [run(seed) for seed in range(2)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, [0, 1, 0, 1]))
    for got, wanted in zip(found, expected * 2, strict=True):
        assert largest(got, wanted) < 0.05


@needs_cuda
def test_results_wait_for_the_caller_s_stream_and_the_threads_that_read(saved, crops):
    """Other threads would compute on the default stream, which has much to do here."""
    detector = load(saved["default", "float32"], device="cuda")
    expected = detector.score_samples(crops)
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)  # half a second
    with torch.cuda.stream(torch.cuda.Stream()):
        assert_array_equal(detector.score_samples(crops), expected)
        results = list(detector.iter_results(crops))
    assert_array_equal([result.score for result in results], expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_a_detector_stays_on_its_gpu(crops):
    with torch.cuda.device(1):
        detector = MKDDetector(**QUICK, device="auto").fit(crops[:40])
    assert detector.device_ == torch.device("cuda:1")
    used = torch.cuda.memory_allocated(0)
    with ThreadPoolExecutor(1) as thread:  # which begins with the first GPU
        expected = thread.submit(detector.score_samples, crops).result()
    assert_array_equal(detector.score_samples(crops), expected)
    assert len({float(detector.score_samples(crops[:1])[0]) for _ in range(6)}) == 1
    assert torch.cuda.memory_allocated(0) == used
    named = MKDDetector(**QUICK, device="cuda:1").fit(crops[:40])
    assert {p.device for p in named.cloner_.parameters()} == {torch.device("cuda:1")}


FORK = """
import os, sys
import numpy as np
from skmkd import MKDDetector, load
images = np.load(sys.argv[1])
detector = MKDDetector(image_size=32, max_iter=1, device="cuda", validation_fraction=0).fit(images)
detector.save(sys.argv[2])
if os.fork() == 0:
    try:
        load(sys.argv[2], device="cpu").score_samples(images)
        detector.score_samples(images)
    except RuntimeError as error:
        print(error, flush=True)
        os._exit(0)
    os._exit(1)
assert os.wait()[1] == 0
detector.score_samples(images)
"""


@needs_cuda
def test_a_forked_process_computes_on_its_cpu_and_says_so_of_the_gpu(crops, tmp_path):
    np.save(tmp_path / "images.npy", crops[:20])
    words = [sys.executable, "-W", "ignore", "-c", FORK]
    files = [str(tmp_path / name) for name in ("images.npy", "model.skmkd")]
    done = subprocess.run(
        [*words, *files], capture_output=True, text=True, check=True, cwd=ROOT, timeout=300
    )
    assert "'spawn'" in done.stdout
