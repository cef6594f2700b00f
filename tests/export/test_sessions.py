"""Engines compute a file as a whole or, for bfloat16, in parts."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import tiny_detector
from numpy.testing import assert_allclose, assert_array_equal

from skmkd._export.graph import Graph
from skmkd._export.sessions import OUTPUTS, SESSIONS, OpenVINO
from skmkd._export.writing import exported_content

pytestmark = pytest.mark.slow

if not all(map(find_spec, ("onnxscript", "onnxruntime", "openvino"))):
    pytest.skip("needs onnxscript, onnxruntime and OpenVINO", allow_module_level=True)


def some_images(n=12, size=(20, 24), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def fitted():
    """A detector that computes in bfloat16, or as if it did."""
    return tiny_detector(precision="bfloat16").fit(some_images()).calibrate(some_images(20))


@pytest.fixture(scope="module")
def content(fitted):
    return exported_content(fitted)


@pytest.fixture(scope="module")
def expected(fitted):
    """What the graph computes in float32, with the rounded weights."""
    images = some_images(4, (33, 20), seed=1)
    with torch.no_grad():
        found = Graph(fitted)(torch.from_numpy(images))
    return images, {name: found[name].numpy() for name in OUTPUTS}


@pytest.mark.parametrize("engine", SESSIONS)
def test_all_outputs(content, expected, engine):
    images, values = expected
    session = SESSIONS[engine](content, 1)
    assert sorted(session.outputs) == sorted(OUTPUTS)
    precise = engine == "onnxruntime" or len(session._parts) == 1
    for name, value in values.items():
        found = session.run(name, images)
        assert found.shape == value.shape
        assert found.dtype == value.dtype
        if name in ("score", "map"):
            assert_allclose(
                found, value, rtol=0, atol=abs(value).max() * (1e-5 if precise else 0.03)
            )


def test_openvino_cuts_a_file_in_three_where_the_processor_has_bfloat16(content, expected):
    import openvino

    fast = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    session = OpenVINO(content, None)
    assert len(session._parts) == (3 if fast else 1)
    precisions = [part.get_property("INFERENCE_PRECISION_HINT") for part in session._parts]
    names = [each.get_type_name() for each in precisions]
    assert names == (["f32", "bf16", "f32"] if fast else ["f32"])


def test_parts_compute_what_the_whole_does(content, expected, monkeypatch):
    """With all parts in float32, nothing is lost between them."""
    images, values = expected
    import openvino

    compile_model = openvino.Core.compile_model

    def precisely(self, model, device, hints):
        return compile_model(self, model, device, hints | {"INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino.Core, "compile_model", precisely)
    session = OpenVINO(content, 1)
    for name in ("score", "map"):
        value = values[name]
        assert_allclose(session.run(name, images), value, rtol=0, atol=1e-5 * abs(value).max())


@pytest.mark.parametrize("engine", SESSIONS)
def test_later_calls_leave_results_alone(content, expected, engine):
    images, _ = expected
    session = SESSIONS[engine](content, 1)
    found = session.run("map", images)
    before = found.copy()
    session.run("map", images[::-1])
    assert_array_equal(found, before)


@pytest.mark.parametrize("engine", SESSIONS)
def test_images_need_not_be_contiguous(content, expected, engine):
    images, _ = expected
    session = SESSIONS[engine](content, 1)
    found = session.run("score", images[::-1, :, ::-1][::-1, :, ::-1])
    assert_array_equal(found, session.run("score", images))


def test_nothing_is_sent_or_printed(content, expected, capfd):
    OpenVINO(content, 1).run("score", expected[0])
    assert "openvino_telemetry" not in sys.modules
    assert capfd.readouterr() == ("", "")
