"""The method `export`: what it writes, what it says, and when it writes nothing."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import TinySource, tiny_detector
from sklearn.exceptions import NotFittedError

import skmkd
from skmkd import DetectorEnsemble, load_exported
from skmkd._export import exporting
from skmkd._export.parity import Parity
from skmkd._export.sessions import OUTPUTS
from skmkd._export.writing import UnfaithfulExportError

pytestmark = pytest.mark.slow

if not all(map(find_spec, ("onnxscript", "onnxruntime"))):
    pytest.skip("needs onnxscript and onnxruntime", allow_module_level=True)


def good_images(n=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 20, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def fitted(exported):
    return exported[0]


@pytest.fixture(scope="module")
def content(exported):
    return exported[1]


@pytest.fixture
def quick(content, monkeypatch):
    """What is exported is known, whatever the detector."""
    monkeypatch.setattr(exporting, "exported_content", lambda _: content)


@pytest.fixture
def other():
    """A detector with other scores."""
    return tiny_detector(source=TinySource(1)).fit(good_images())


@pytest.mark.usefixtures("quick")
def test_a_saved_detector_is_exported_as_it_is(fitted, tmp_path):
    fitted.save(tmp_path / "model.skmkd")
    loaded = skmkd.load(tmp_path / "model.skmkd", source=TinySource())
    parity = loaded.export(tmp_path / "model.onnx", check=good_images(5, seed=1))
    assert parity.n_images == 5
    assert parity.largest_difference <= 1e-5
    assert parity.rank_correlation == pytest.approx(1)
    assert parity.n_labels_changed == 0
    assert load_exported(tmp_path / "model.onnx").offset_ == fitted.offset_
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.skmkd"]


@pytest.mark.usefixtures("quick")
def test_without_images_there_is_no_parity(fitted, content, tmp_path):
    assert fitted.export(tmp_path / "model.onnx") is None
    assert (tmp_path / "model.onnx").read_bytes() == content


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("device", "passes"), [("cpu", False), ("cuda:0", True), ("mps", True)])
def test_scores_of_a_gpu_may_differ_by_more(fitted, tmp_path, monkeypatch, device, passes):
    found = Parity(20, 1.5e-4, 1.0, 0)  # in TF32, on an H200
    monkeypatch.setattr("skmkd._export.exporting.parity", lambda *_: found)
    monkeypatch.setattr(fitted, "device_", torch.device(device))
    expected = nullcontext() if passes else pytest.raises(UnfaithfulExportError, match="1e-05")
    with expected:
        assert fitted.export(tmp_path / "model.onnx", check=good_images()) == found


@pytest.mark.usefixtures("quick")
def test_scores_past_the_tolerance_leave_the_old_file(other, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")
    for given in ({}, {"tolerance": 1e-3}):
        with pytest.raises(UnfaithfulExportError, match=r"differ by .* of the largest, more than"):
            other.export(path, check=good_images(), **given)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]
    parity = other.export(path, check=good_images(), tolerance=10)
    assert parity.largest_difference > 1e-3
    assert path.read_bytes() != b"older"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("given", [{"tolerance": 0.1}, {"check": [], "tolerance": -1}])
def test_a_tolerance_is_of_images(fitted, given, tmp_path):
    with pytest.raises(ValueError, match="tolerance must be at least 0, and images must be given"):
        fitted.export(tmp_path / "model.onnx", **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_images_that_cannot_be_read_are_left_out_of_the_check(fitted, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    images = [*good_images(3), np.zeros((4, 4, 3))]
    with pytest.raises(ValueError, match=r"X\[3\]"):
        fitted.export(tmp_path / "model.onnx", check=images)
    tolerant = tiny_detector(on_error="skip").fit(good_images())
    with pytest.warns(UserWarning, match="skipped"):
        parity = tolerant.export(tmp_path / "model.onnx", check=images)
    assert parity.n_images == 3


def test_only_fitted_detectors_are_exported(tmp_path):
    with pytest.raises(NotFittedError):
        tiny_detector().export(tmp_path / "model.onnx")


@pytest.mark.parametrize("path", ["nowhere/model.onnx", "."])
def test_places_that_cannot_be_written_are_found_first(fitted, path, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "exported_content", None)
    with pytest.raises(OSError):  # noqa: PT011
        fitted.export(tmp_path / path)


def test_an_ensemble_is_refused_with_a_sentence(tmp_path):
    ensemble = DetectorEnsemble([("only", tiny_detector())], contamination=0.1).fit(good_images())
    with pytest.raises(ValueError, match=r"A DetectorEnsemble cannot be exported .* one by one\."):
        ensemble.export(tmp_path / "model.onnx")


def test_outputs_are_documented():
    text = inspect.getdoc(exporting.ExportMixin.export)
    for name in ("images", *OUTPUTS):
        assert f"``{name}``: " in text
