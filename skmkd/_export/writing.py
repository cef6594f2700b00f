"""Writing a detector as an ONNX file, and checking that the file answers as it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from skmkd._export.exported import FORMAT
from skmkd._export.graph import Graph
from skmkd._export.sessions import INPUT, OUTPUTS
from skmkd._images.pixel_range import OPAQUE, dtype_of
from skmkd._networks.tracing import TRACING
from skmkd._packages import needed
from skmkd._runtime import CPU, plain_arithmetic
from skmkd._version import __version__

OPSET = 20
CHECKED = ((3, 0.5), (1, 1.0), (2, 1.7))  # images at once, first several, and their size as a share
AGREE = 1e-4  # relative difference of outputs, at most, between torch and the file
SMALLEST = 1024  # numbers in a tensor that is stored in half the bytes where it loses nothing
LICENCES = {
    "vgg16": "VGG-16 by K. Simonyan and A. Zisserman, CC BY 4.0",
    "efficientnet_lite0": "EfficientNet-Lite0 by the TensorFlow authors, Apache License 2.0",
}


class UnfaithfulExportError(ValueError):
    """An exported file does not answer as its detector does."""


def check_exportable(detector: Any) -> None:
    """Check that a detector can be computed as one graph.

    Raises
    ------
    ValueError
        If it cannot.
    """
    name = type(detector).__name__
    if hasattr(detector, "detectors_"):
        raise ValueError(
            f"A {name} cannot be exported as one file: fit and export its detectors one by one."
        )
    localization = getattr(detector, "localization", "discrepancy")
    if localization != "discrepancy":
        raise ValueError(
            f"localization must be 'discrepancy' to export a {name}, since a graph computes no "
            f"gradients; got {localization!r}. set_params changes it, then calibrate again."
        )
    if detector._tiling.size is not None:
        raise ValueError(
            f"tile_size must be None to export a {name}, which scores each image as a whole; got "
            f"{detector.tile_size}."
        )
    if detector._usual is not None:
        raise ValueError(
            f"pose must be None at fit to export a {name}: a graph does not register images, nor "
            "compare their maps with what is usual at each position."
        )
    if detector._roi_of_each:
        raise ValueError(
            f"roi must be the same for all images to export a {name}; at fit, they had one each."
        )


def exported_content(detector: Any) -> bytes:
    """Return a detector as the content of an ONNX file that was checked.

    Raises
    ------
    ValueError
        If the detector cannot be exported.
    UnfaithfulExportError
        If the content's answers differ from the detector's.
    """
    check_exportable(detector)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needed(package, "onnx", "export")
    graph = Graph(detector)
    content = _converted(graph, detector)
    _check_answers(graph, content, detector)
    return content


def _converted(graph: Graph, detector: Any) -> bytes:
    """Return a graph as the content of an ONNX file."""
    example = next(_examples(detector))[1]
    with TRACING, plain_arithmetic(False, CPU):  # torch.export patches torch
        names = list(graph(example))
        free = dict.fromkeys(range(3), Dim.DYNAMIC)
        try:
            program = torch.onnx.export(
                graph, (example,), dynamo=True, opset_version=OPSET, input_names=[INPUT],
                output_names=names, dynamic_shapes=(free,), external_data=False, verbose=False,
            )  # fmt: skip
        except Exception as error:
            raise ValueError(
                f"{type(detector).__name__} cannot be exported: torch.onnx cannot convert its "
                f"source or cloner: {error}"
            ) from error
    assert program is not None
    model = program.model_proto
    _tidy(model)
    _shrink(model)
    _describe(model, detector)
    return model.SerializeToString()


def _examples(detector: Any) -> Iterator[tuple[int, Tensor]]:
    """Yield images of noise, in numbers and sizes that an export might mix up."""
    low, high, kind = detector.pixel_range_
    roi = detector._roi
    rng = np.random.default_rng(0)
    for n, share in CHECKED:
        height, width = (round(share * side) + 1 for side in detector._prepare.size)
        if roi is not None:
            height, width = roi.frame or (roi.box[2] + height, roi.box[3] + width)
        shape = (n, height, width, detector.image_shape_[2])
        noise = rng.uniform(low, high, shape)
        if kind != "float":
            noise = np.clip(noise, 0, OPAQUE[kind]).round()
        yield n, torch.from_numpy(noise.astype(dtype_of(kind)))


def _check_answers(graph: Graph, content: bytes, detector: Any) -> None:
    """Check that a file answers as its graph, for several numbers and sizes of images."""
    session = needed("onnxruntime", "onnx", "export").InferenceSession(
        content, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    for n, images in _examples(detector):
        with plain_arithmetic(False, CPU):
            expected = graph(images)
        found = dict(zip(names, session.run(names, {INPUT: images.numpy()}), strict=True))
        for name in ("score", "map"):
            wanted = expected[name].numpy()
            if found[name].shape != wanted.shape:
                raise UnfaithfulExportError(
                    f"The exported {name} of {n} image(s) has the shape {found[name].shape} "
                    f"instead of {wanted.shape}; please report it to the developers of skmkd."
                )
            difference = float(np.abs(found[name] - wanted).max() / np.abs(wanted).max())
            if not difference <= AGREE:
                raise UnfaithfulExportError(
                    f"The exported {name} of {n} image(s) differs by {difference:.1g} of its "
                    f"largest value; at most {AGREE:g} is allowed."
                )


def _tidy(model: Any) -> None:
    """Keep what networks take and give as names alone, and leave out where the code was."""
    kept = [output for output in model.graph.output if output.name in OUTPUTS]
    within = [output for output in model.graph.output if output.name not in OUTPUTS]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    model.graph.value_info.extend(within)
    graph = model.graph
    named = (graph.input, graph.output, graph.value_info, graph.initializer, graph.node)
    for part in (model, graph, *chain(*named)):
        del part.metadata_props[:]


def _shrink(model: Any) -> None:
    """Store weights in half the bytes wherever no number changes."""
    onnx = needed("onnx", "onnx", "export")
    casts = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < SMALLEST:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    made = {cast.output[0] for cast in casts}
    kept = [info for info in model.graph.value_info if info.name not in made]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _describe(model: Any, detector: Any) -> None:
    """Write into a model what a program needs to know of it, as JSON and in words."""
    onnx = needed("onnx", "onnx", "export")
    origin = detector._origin
    description = {
        "format": FORMAT,
        "skmkd": __version__,
        "torch": torch.__version__,
        "detector": type(detector).__name__,
        "precision": detector.precision_,
        "offset": detector.offset_,
        "map_offset": detector.map_offset_,
        "image_shape": detector.image_shape_,
        "pixel_range": detector.pixel_range_,
        "seen_pixels": detector._seen_pixels,
        "image_size": detector._prepare.size,
        "roi": None if detector._roi is None else detector._roi.box,
        "frame": None if detector._roi is None else detector._roi.frame,
        "layers": detector.critical_layers_,
        "source": origin.name,
        "source_weights": origin.weights,
        "licence": LICENCES.get(origin.name, "") if origin.weights == "bundled" else "",
    }
    onnx.helper.set_model_props(model, {"skmkd": json.dumps(description)})
    model.producer_name, model.producer_version = "skmkd", __version__
    model.graph.name = type(detector).__name__
    kind = detector.pixel_range_.kind
    model.doc_string = (
        f"images: {kind} (n, H, W, {detector.image_shape_[2]}), the pixels as they are. score: "
        "higher = more normal; decision: score - offset; label: 1 normal, -1 anomaly; map: higher "
        "= more anomalous; mask: map > map_offset; p_value: share of normal images that are as "
        "anomalous."
    )
