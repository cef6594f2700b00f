"""What is in an exported file, and which detectors cannot be one."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinySource, tiny_detector
from numpy.testing import assert_array_equal
from torch import nn

import skmkd
from skmkd._export import writing
from skmkd._export.graph import Graph
from skmkd._export.writing import UnfaithfulExportError, check_exportable, exported_content
from skmkd._packages import MissingExtraError

if not all(map(find_spec, ("onnxscript", "onnxruntime"))):
    pytest.skip("needs onnxscript and onnxruntime", allow_module_level=True)

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def good_images(n=12, kind="uint8"):
    return np.random.default_rng(0).integers(0, 256, (n, 20, 24, 3)).astype(kind)


@pytest.fixture(scope="module")
def fitted(exported):
    return exported[0]


@pytest.fixture(scope="module")
def content(exported):
    return exported[1]


def told(values):
    """Return name -> (type, dimensions) of inputs or outputs; None is any number."""
    return {
        value.name: (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [dim.dim_value or None for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


def test_inputs_and_outputs(content):
    graph = onnx.load_from_string(content).graph
    assert told(graph.input) == {"images": ("UINT8", [None, None, None, 3])}
    assert told(graph.output) == {
        "score": ("FLOAT", [None]),
        "decision": ("FLOAT", [None]),
        "label": ("INT64", [None]),
        "map": ("FLOAT", [None, None, None]),
        "mask": ("BOOL", [None, None, None]),
        "p_value": ("FLOAT", [None]),
    }
    batch, height, width, _ = (d.dim_param for d in graph.input[0].type.tensor_type.shape.dim)
    assert len({batch, height, width}) == 3
    for output in graph.output:
        dims = [dim.dim_param for dim in output.type.tensor_type.shape.dim]
        assert dims == [batch, height, width][: len(dims)]


def test_the_file_is_valid_onnx(content):
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert {each.domain for each in model.opset_import} <= {""}
    assert not model.functions


def test_the_file_says_what_it_is_and_nothing_of_the_machine(content, fitted):
    model = onnx.load_from_string(content)
    (entry,) = model.metadata_props
    assert entry.key == "skmkd"
    description = json.loads(entry.value)
    assert description["skmkd"] == model.producer_version == skmkd.__version__
    assert description["torch"] == torch.__version__
    assert description["offset"] == fitted.offset_
    assert description["map_offset"] == fitted.map_offset_
    assert tuple(description["pixel_range"]) == fitted.pixel_range_
    graph = model.graph
    parts = (graph.node, graph.value_info, graph.input, graph.output, graph.initializer)
    for part in (graph, *chain(*parts)):
        assert not part.metadata_props
        assert not getattr(part, "doc_string", "")
    folders = {str(Path(module.__file__).parent) for module in (skmkd, torch, onnx)}
    for text in [*folders, str(Path.home()), "site-packages", ".py", "Traceback", "forward("]:
        assert text.encode() not in content, text


@pytest.mark.parametrize(
    ("source", "weights", "licence"),
    [
        ("vgg16", "bundled", "CC BY 4.0"),
        ("efficientnet_lite0", "bundled", "Apache License 2.0"),
        ("vgg16", "file", ""),
        ("alexnet", "torchvision", ""),
    ],
)
def test_licences_are_of_the_weights_that_come_with_the_package(fitted, source, weights, licence):
    described = object.__new__(type(fitted))
    origin = fitted._origin._replace(name=source, weights=weights)
    described.__dict__ = vars(fitted) | {"_origin": origin}
    model = onnx.ModelProto()
    writing._describe(model, described)
    found = json.loads(model.metadata_props[0].value)["licence"]
    assert licence in found
    assert bool(found) == bool(licence)


def test_weights_that_float16_holds_are_stored_so_and_load_to_the_same_bits():
    rng = np.random.default_rng(0)
    rounded = rng.normal(size=(64, 64)).astype(np.float16).astype(np.float32)
    tensors = {
        "rounded": rounded,
        "small": rounded[:4, :4],
        "exact": rng.normal(size=(64, 64)).astype(np.float32),
        "large": rounded * 2.0**20,
        "whole": rng.integers(0, 9, (64, 64)),
    }
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", [name], [f"{name} out"]) for name in tensors],
            "weights",
            [],
            [
                onnx.helper.make_tensor_value_info(
                    f"{name} out", onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype), tensor.shape
                )
                for name, tensor in tensors.items()
            ],
            [onnx.numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    before = model.ByteSize()
    writing._shrink(model)
    assert before - model.ByteSize() > 1.9 * rounded.size
    halves = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert halves == ["rounded_half"]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for tensor, found in zip(tensors.values(), session.run(None, {}), strict=True):
        assert_array_equal(found, tensor, strict=True)


# What is refused


def test_answers_of_another_detector_are_noticed(content, fitted):
    other = tiny_detector(source=TinySource(1)).fit(good_images())
    with pytest.raises(UnfaithfulExportError, match=r"exported score of 3 image\(s\) differs by"):
        writing._check_answers(Graph(other), content, other)
    writing._check_answers(Graph(fitted), content, fitted)


def test_a_fixed_number_of_images_is_noticed(content, fitted, monkeypatch):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    class Fixed:
        get_outputs = session.get_outputs

        def __init__(self, *_, **__):
            pass

        def run(self, names, given):
            return [each[:2] for each in session.run(names, given)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fixed)
    with pytest.raises(UnfaithfulExportError, match=r"score of 3 .* shape \(2,\) instead of \(3,"):
        writing._check_answers(Graph(fitted), content, fitted)


def test_what_a_graph_cannot_do_is_refused(fitted):
    check_exportable(fitted)
    images = good_images()
    gradients = tiny_detector(localization="gradient").fit(images)
    with pytest.raises(ValueError, match=r"must be 'discrepancy' to export a MKD.*got 'gradient'"):
        check_exportable(gradients)
    tiles = tiny_detector(tile_size=16).fit(images)
    with pytest.raises(ValueError, match=r"tile_size must be None to export a MKD.* got 16"):
        check_exportable(tiles)
    regions = tiny_detector().fit(list(images), roi=[(0, i, 10, 12) for i in range(12)])
    with pytest.raises(ValueError, match="roi must be the same for all images to export a MKD"):
        check_exportable(regions)


class Untraceable(nn.Module):
    """A cloner that leaves torch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)

    def forward(self, images):
        shrunk = images[..., ::2, ::2], images[..., ::4, ::4]
        first, second = self.first(shrunk[0]), self.second(shrunk[1])
        if float(first.detach().mean()) > 1e9:
            first = -first
        return {"features.2": first, "features.5": second}


def test_cloners_that_torch_cannot_export_are_refused():
    detector = tiny_detector(cloner=Untraceable()).fit(good_images())
    with pytest.raises(ValueError, match="MKDDetector cannot be exported: torch.onnx cannot conve"):
        exported_content(detector)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_packages_that_are_missing_are_named(fitted, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf'export needs {package}: .* "skmkd\[onnx\]"'):
        exported_content(fitted)
