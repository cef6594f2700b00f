"""Exported files answer as their detectors, in each engine and without torch."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import torch
from conftest import TINY, TinySource, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.base import clone

import skmkd
from skmkd import MemKDDetector, load_exported
from skmkd._images.pixel_range import PixelRange
from skmkd._packages import MissingExtraError

pytestmark = pytest.mark.slow

if not all(map(find_spec, ("onnxscript", "onnxruntime", "openvino"))):
    pytest.skip("needs onnxscript, onnxruntime and OpenVINO", allow_module_level=True)

ENGINES = ("onnxruntime", "openvino")
RELATIVE = 1e-5  # of scores; of maps, 1e-4 of their range
onnx = pytest.importorskip("onnx")


def pixels(kind, channels=3, n=12, size=(20, 24), seed=0):
    """Return random images (n, H, W[, C]) of a kind of number, darker to the left."""
    rng = np.random.default_rng(seed)
    shape = (n, *size, channels) if channels > 1 else (n, *size)
    ramp = np.linspace(0.4, 1, size[1])[(None, None, slice(None), *[None] * (channels > 1))]
    scale = {"uint8": 255, "uint16": 4095, "float32": 1}[kind]
    return (scale * ramp * rng.random(shape)).astype(kind)


def mask():
    inside = np.zeros((20, 24), bool)
    inside[3:18, 5:21] = True
    inside[8:12, 9:15] = False
    return inside


KINDS = {  # of images that a detector learns from, and the detector
    "colour": (("uint8", 3), lambda: tiny_detector(value_weight=1.0)),
    "region, alpha": (("uint16", 4), lambda: tiny_detector(roi=mask())),
    "rectangle, grey": (
        ("float32", 1), lambda: tiny_detector(roi=(3, 5, 18, 21), image_score="loss")
    ),
    "memories": (("uint16", 1), lambda: MemKDDetector(source=TinySource(), memory_size=5, **TINY)),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function that fits and exports each kind of detector once."""
    known = {}

    def make(name):
        if name not in known:
            given, detector = KINDS[name]
            fitted = detector().fit(list(pixels(*given)))
            if name != "rectangle, grey":
                fitted.calibrate(list(pixels(*given, n=20, seed=1)))
            path = tmp_path_factory.mktemp("exported") / "model.onnx"
            fitted.export(path)
            known[name] = fitted, path
        return known[name]

    return make


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", KINDS)
def test_answers_are_the_detectors(made, name, engine):
    detector, path = made(name)
    exported = load_exported(path, engine=engine)
    assert exported.engine_ == engine
    images = [*pixels(*KINDS[name][0], n=4, seed=2), *pixels(*KINDS[name][0], n=2, seed=3)]
    if "region" not in name:  # which is of images of one size
        for size in ((23, 30), (31, 64), (31, 64), (90, 41)):
            images += [*pixels(*KINDS[name][0], n=1, size=size, seed=4)]
    scores, maps = detector.score_samples(images), detector.localize(images)
    assert_allclose(exported.score_samples(images), scores, rtol=RELATIVE)
    assert_allclose(exported.decision_function(images), scores - detector.offset_, atol=1e-5)
    assert_array_equal(exported.predict(images), detector.predict(images))
    found, masks = exported.localize(images), exported.predict_mask(images)
    for single, expected, marked in zip(found, maps, masks, strict=True):
        assert single.shape == expected.shape == marked.shape
        assert single.dtype == np.float32
        assert marked.dtype == bool
        assert_allclose(single, expected, rtol=0, atol=1e-4 * np.ptp(expected))
        assert_array_equal(marked, single > detector.map_offset_)
    if name != "rectangle, grey":
        assert_allclose(exported.p_value(images), detector.p_value(images), rtol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_arrays_lists_and_files_are_the_same(made, engine, tmp_path):
    _, path = made("colour")
    exported = load_exported(path, engine=engine)
    images = pixels("uint8", n=3)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    maps = exported.localize(images)
    assert maps.shape == (3, 20, 24)
    assert exported.predict_mask(images).shape == (3, 20, 24)
    for same in (list(images), files, [str(file) for file in files]):
        assert_array_equal(exported.score_samples(same), exported.score_samples(images))
        assert isinstance(exported.localize(same), list)
        assert_array_equal(exported.localize(same), maps)


def test_many_images_are_computed_in_batches(made, monkeypatch):
    _, path = made("colour")
    exported = load_exported(path, engine="onnxruntime")
    images = [*pixels("uint8", n=5), *pixels("uint8", n=2, size=(30, 20)), *pixels("uint8", n=3)]
    together = exported.score_samples(images)
    monkeypatch.setattr("skmkd._export.exported.BATCH_PIXELS", 2 * 20 * 24)
    assert_allclose(exported.score_samples(images), together, rtol=1e-6)


def test_attributes_describe_the_detector(made):
    detector, path = made("region, alpha")
    exported = load_exported(path)
    assert exported.offset_ == detector.offset_
    assert exported.map_offset_ == detector.map_offset_
    assert exported.pixel_range_ == detector.pixel_range_
    assert exported.image_shape_ == detector.image_shape_
    assert exported.description_["detector"] == "MKDDetector"
    assert exported.description_["layers"] == list(detector.critical_layers_)


def test_images_are_checked_as_the_detector_checks_them(made):
    detector, path = made("colour")
    exported = load_exported(path)
    for wrong in (pixels("float32"), pixels("uint8", 4), [], np.zeros((2, 3, 4, 5, 6))):
        with pytest.raises(ValueError) as expected:  # noqa: PT011
            detector.score_samples(wrong)
        with pytest.raises(ValueError) as found:  # noqa: PT011
            exported.score_samples(wrong)
        name = type(detector).__name__
        assert str(found.value) == str(expected.value).replace(name, "ExportedDetector")


@pytest.mark.parametrize("name", ["region, alpha", "rectangle, grey"])
def test_images_must_hold_the_region(made, name):
    detector, path = made(name)
    small = list(pixels(*KINDS[name][0], n=1, size=(17, 24)))
    with pytest.raises(ValueError, match="roi") as expected:
        detector.score_samples(small)
    with pytest.raises(ValueError, match="roi") as found:
        load_exported(path).score_samples(small)
    assert str(found.value) == str(expected.value)


def test_nothing_outside_of_the_rectangle_is_looked_at(made):
    detector, path = made("rectangle, grey")
    exported, image = load_exported(path), pixels("float32", 1, n=1)
    expected = exported.score_samples(image)
    image[:, 19], image[:, :, 0] = np.nan, 1e20
    assert_array_equal(exported.score_samples(image), expected)
    assert_allclose(detector.score_samples(image), expected, rtol=RELATIVE)


def test_images_that_float32_would_round_are_refused(made, monkeypatch):
    _, path = made("rectangle, grey")
    exported, image = load_exported(path), pixels("float32", 1, n=1)
    expected = exported.score_samples(image)
    assert_array_equal(exported.score_samples(image.astype(float)), expected)
    far = PixelRange(1e6, 1e6 + 1, "float")
    monkeypatch.setattr(exported, "pixel_range_", far)
    monkeypatch.setattr(exported, "_seen_pixels", None)
    with pytest.raises(ValueError, match=r"X\[0\] must hold pixels that float32 tells apart"):
        exported.score_samples(image + np.float64(1e6))


def test_images_on_another_scale_are_warned_of(made):
    _, path = made("region, alpha")
    dark = [image // 1000 for image in pixels("uint16", 4, n=6)]
    with pytest.warns(UserWarning, match="seem to be on the scale of those of fit"):
        load_exported(path).score_samples(dark)


@pytest.mark.parametrize("engine", ENGINES)
def test_skipped_images_are_nan(made, engine, tmp_path):
    detector, path = made("rectangle, grey")
    good, other = pixels("float32", 1, n=2)
    bad = good.copy()
    bad[10, 10] = np.nan
    images = [good, bad, other, good[:5]]
    exported = load_exported(path, engine=engine, on_error="skip")
    with pytest.warns(UserWarning, match="skipped") as told:
        scores = exported.score_samples(images)
    assert ["X[1]" in str(told[0].message), "X[3]" in str(told[1].message)] == [True, True]
    assert_array_equal(np.isnan(scores), [False, True, False, True])
    assert_allclose(scores[[0, 2]], detector.score_samples([good, other]), rtol=RELATIVE)
    tolerant = copy.deepcopy(detector).set_params(on_error="skip")
    for method in ("predict", "localize", "predict_mask"):
        with pytest.warns(UserWarning, match="skipped"):
            found = getattr(exported, method)(images)
        with pytest.warns(UserWarning, match="skipped"):
            expected = getattr(tolerant, method)(images)
        assert [np.shape(each) for each in found] == [np.shape(each) for each in expected]
        for i in (1, 3):
            assert_array_equal(found[i], expected[i])


def test_p_values_need_calibration(made):
    _, path = made("rectangle, grey")
    with pytest.raises(ValueError, match="must have calibration scores"):
        load_exported(path).p_value(pixels("float32", 1))


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_share_a_detector(made, engine):
    _, path = made("colour")
    exported = load_exported(path, engine=engine, n_threads=1)
    batches = [pixels("uint8", n=4, seed=seed) for seed in range(16)]
    expected = [exported.localize(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        assert_array_equal(list(pool.map(exported.localize, batches)), expected)


@pytest.mark.parametrize("again", [clone, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_read_the_file_again(made, again):
    _, path = made("colour")
    exported = load_exported(path, engine="openvino", on_error="skip")
    copied = again(exported)
    assert copied.get_params() == exported.get_params()
    assert repr(copied) == repr(exported)
    images = pixels("uint8", n=3)
    assert_array_equal(copied.score_samples(images), exported.score_samples(images))


def test_parameters_take_effect(made):
    detector, path = made("colour")
    exported = load_exported(path, engine="onnxruntime")
    assert exported.set_params(engine="openvino") is exported
    assert exported.engine_ == "openvino"
    other, new = made("memories")
    exported.set_params(path=new, engine="auto")
    assert exported.engine_ == "onnxruntime"
    assert exported.offset_ == other.offset_ != detector.offset_


@pytest.mark.parametrize(
    "given", [{"engine": "torch"}, {"n_threads": 0}, {"n_threads": 10**6}, {"on_error": "ignore"}]
)
def test_wrong_parameters_are_refused(made, given):
    _, path = made("colour")
    with pytest.raises(ValueError, match=f"The '{next(iter(given))}' parameter of Exported"):
        load_exported(path, **given)


# Files


@pytest.mark.parametrize("engine", ENGINES)
def test_other_files_are_refused(engine, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_exported(tmp_path / "nowhere.onnx", engine=engine)
    with pytest.raises(OSError, match="a device, not a file: "):
        load_exported(os.devnull, engine=engine)
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
    graph = onnx.helper.make_graph([node], "other", [x], [y])
    opset = onnx.helper.make_opsetid("", 20)
    other = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    for content in (b"", b"not a model", other.SerializeToString()):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(ValueError, match=r"must be a file that .* wrote; '.*model.onnx' is"):
            load_exported(tmp_path / "model.onnx", engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_files_that_refer_to_others_are_refused(made, engine, tmp_path):
    model = onnx.load(made("colour")[1])
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights")
    assert (tmp_path / "weights").exists()
    with pytest.raises(ValueError, match="path must be one whole file; .* refers to others"):
        load_exported(tmp_path / "model.onnx", engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_newer_formats_are_refused(made, engine, tmp_path):
    model = onnx.load(made("colour")[1])
    told = json.loads(model.metadata_props[0].value)
    onnx.helper.set_model_props(model, {"skmkd": json.dumps(told | {"format": 2, "skmkd": "9.0"})})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"format 2, written by skmkd 9.0; .* up to 1\."):
        load_exported(tmp_path / "model.onnx", engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_files_whose_metadata_was_edited_are_refused(made, engine, tmp_path):
    model = onnx.load(made("colour")[1])
    told = json.loads(model.metadata_props[0].value)
    del told["image_shape"]
    onnx.helper.set_model_props(model, {"skmkd": json.dumps(told)})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"'.*model.onnx': metadata must .* 'image_shape'; got no"):
        load_exported(tmp_path / "model.onnx", engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_that_are_missing_are_named(made, engine, monkeypatch):
    _, path = made("colour")
    monkeypatch.setitem(sys.modules, engine, None)
    extra = {"onnxruntime": "onnx", "openvino": "openvino"}[engine]
    with pytest.raises(MissingExtraError, match=rf"engine='{engine}' needs.*skmkd\[{extra}\]"):
        load_exported(path, engine=engine)
    other = next(name for name in ENGINES if name != engine)
    assert load_exported(path).engine_ == other  # which is there


# Without torch


PROGRAM = """
import sys
import warnings
warnings.simplefilter("error")

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "safetensors", "onnx", "onnxscript"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Refused())
import numpy as np
import skmkd

path, place, engine = sys.argv[1:]
exported = skmkd.load_exported(path, engine=engine)
files = [f"{place}/{i}.png" for i in range(3)]
np.savez(f"{place}/{engine}.npz", exported.score_samples(files), np.stack(exported.localize(files)))
assert exported.predict(files).shape == (3,)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_torch_is_not_needed(made, engine, tmp_path):
    detector, path = made("colour")
    images = pixels("uint8", n=3)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    words = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path), engine]
    root = str(Path(skmkd.__file__).parents[1])
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    assert done.returncode == 0, done.stderr
    scores, maps = np.load(tmp_path / f"{engine}.npz").values()
    assert_allclose(scores, detector.score_samples(images), rtol=RELATIVE)
    assert_allclose(maps, detector.localize(images), atol=1e-4 * np.ptp(maps))


@pytest.mark.skipif(sys.platform != "linux" or which("g++") is None, reason="needs g++ on Linux")
def test_the_program_of_the_guide_answers_the_same(made, tmp_path):
    guide = (Path(__file__).parents[2] / "docs/guide/export.md").read_text()
    (program,) = re.findall(r"```cpp\n(.*?)```", guide, re.S)
    assert len(program.splitlines()) <= 60
    (tmp_path / "score.cpp").write_text(program)
    folder = Path(find_spec("openvino").origin).parent
    (library,) = (folder / "libs").glob("libopenvino.so.*")
    words = ["g++", "-std=c++17", "score.cpp", f"-I{folder / 'include'}", str(library)]
    words += [f"-Wl,-rpath,{folder / 'libs'}", "-o", "score"]
    subprocess.run(words, cwd=tmp_path, check=True)

    detector, path = made("colour")
    image = pixels("uint8", n=1, size=(31, 22), seed=5)
    Image.fromarray(image[0]).save(tmp_path / "image.ppm")
    words = [tmp_path / "score", path, tmp_path / "image.ppm", tmp_path / "map.bin"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    assert_allclose(float(said[0]), detector.score_samples(list(image)), rtol=RELATIVE)
    assert int(said[1]) == detector.predict(list(image))
    found = np.fromfile(tmp_path / "map.bin", np.float32).reshape(31, 22)
    (expected,) = detector.localize(list(image))
    assert_allclose(found, expected, rtol=0, atol=1e-4 * np.ptp(expected))


def test_nothing_global_changes(made):
    _, path = made("colour")
    images = pixels("uint8", n=3)
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    filters = list(warnings.filters)
    for engine in ENGINES:
        load_exported(path, engine=engine).localize(images)
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert_array_equal(np.random.get_state()[1], state[1])
    assert list(warnings.filters) == filters
