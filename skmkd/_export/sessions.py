"""What computes an exported file: onnxruntime or OpenVINO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from skmkd._packages import needed, openvino_core

INPUT, PREPARED = "images", "prepared"  # tensors: raw images, and what the networks take
OUTPUTS = ("score", "decision", "label", "map", "mask", "p_value")


class OnnxRuntime:
    """A file computed by onnxruntime."""

    def __init__(self, content: bytes, n_threads: int | None) -> None:
        onnxruntime = needed("onnxruntime", "onnx", "engine='onnxruntime'")
        options = onnxruntime.SessionOptions()
        if n_threads is not None:
            options.intra_op_num_threads = n_threads
        self._session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        self.properties = self._session.get_modelmeta().custom_metadata_map
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, name: str, pixels: np.ndarray) -> np.ndarray:
        """Compute one output for images (n, H, W, C)."""
        return self._session.run([name], {INPUT: pixels})[0]


class OpenVINO:
    """A file computed by OpenVINO, in the precision that the detector was calibrated with.

    Of a detector that computes in bfloat16, only the networks do: what comes before and after them
    is compiled apart, since OpenVINO has one precision for all of a model.
    """

    def __init__(self, content: bytes, n_threads: int | None) -> None:
        self._openvino = needed("openvino", "openvino", "engine='openvino'")
        core = openvino_core()
        model = core.read_model(content)
        told = model.get_rt_info(["framework", "skmkd"]).astype(str)
        self.properties = {"skmkd": told}
        self.outputs = [output.get_any_name() for output in model.outputs]
        threads: dict[str, Any] = {"ENABLE_CPU_PINNING": False}  # others may use these cores
        if n_threads is not None:
            threads["INFERENCE_NUM_THREADS"] = n_threads
        if n_threads == 1:
            threads["NUM_STREAMS"] = 0  # in the caller's thread

        def compiled(part: Any, precision: str) -> Any:
            hint = {"INFERENCE_PRECISION_HINT": precision}
            return core.compile_model(part, "CPU", hint | threads)

        description = json.loads(told)
        fast = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if description["precision"] != "bfloat16" or not fast:
            self._parts = [compiled(model, "f32")]
            return
        layers = description["layers"]
        features = [f"{net}.{layer}" for net in ("source", "cloner") for layer in layers]
        cuts = [
            ([INPUT], [PREPARED], "f32"),
            ([PREPARED], features, "bf16"),
            ([INPUT, *features], self.outputs, "f32"),
        ]
        self._parts = [
            compiled(self._cut(core.read_model(content), before, after), precision)
            for before, after, precision in cuts
        ]

    def _cut(self, model: Any, before: Sequence[str], after: Sequence[str]) -> Any:
        """Return the part of a model between tensors."""
        ports = {
            name: port
            for node in model.get_ordered_ops()
            if node.get_type_name() != "Result"
            for port in node.outputs()
            for name in port.get_names()
        }
        parameters = []
        for name in before:
            port = ports[name]
            parameter = self._openvino.op.Parameter(port.get_element_type(), port.partial_shape)
            parameter.output(0).set_names({name})
            for target in port.get_target_inputs():
                target.replace_source_output(parameter.output(0))
            parameters.append(parameter)
        results = []
        for name in after:
            result = self._openvino.op.Result(ports[name])
            result.output(0).set_names({name})
            results.append(result)
        return self._openvino.Model(results, parameters)

    def run(self, name: str, pixels: np.ndarray) -> np.ndarray:
        """Compute one output for images (n, H, W, C)."""
        known = {INPUT: np.ascontiguousarray(pixels)}
        for part in self._parts:
            request = part.create_infer_request()  # so that threads share none
            request.infer([known[given.get_any_name()] for given in part.inputs])
            for output in part.outputs:
                known[output.get_any_name()] = request.get_tensor(output).data
        return known[name].copy()


SESSIONS: dict[str, Any] = {"onnxruntime": OnnxRuntime, "openvino": OpenVINO}
