"""OpenVINO as the engine of networks that no longer learn, on a CPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, MutableSet, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from skmkd._maps.discrepancy import Features
from skmkd._networks.cloners import plain_copy
from skmkd._networks.precision import is_native
from skmkd._networks.tracing import TRACING
from skmkd._packages import needed, openvino_core
from skmkd._runtime import CPU, note_threads, plain_arithmetic

COMPILED: MutableSet[Any] = WeakSet()


def _keep_in_child() -> None:
    for compiled in list(COMPILED):  # to free it would wait for threads that are not in the child
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(compiled))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_in_child)


def compile_openvino(network: nn.Module, precision: str) -> Callable[[Any], Features]:
    """Return what computes a frozen network in OpenVINO, in a number format.

    Parameters
    ----------
    network : nn.Module
        A network on the CPU in eval mode that maps images (n, 3, H, W), or features, to a dict of
        layer -> activations (n, C, h, w). It is copied.
    precision : {"float32", "bfloat16"}
        The number format of results, and of products where the hardware has it, else float32.

    Returns
    -------
    run : callable
        Maps what the network does to the same dict. Its first call takes a second for every
        height and width. Threads may share it.

    Raises
    ------
    ImportError
        If OpenVINO is not installed.
    """
    _openvino()
    return _Compiled(network, precision)


class _Compiled:
    """A copy of a network, and what OpenVINO makes of it for inputs of different shapes."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        self._network = _ChannelsLast(network, precision).eval().requires_grad_(False)
        self._products = "bf16" if precision == "bfloat16" and is_native(CPU) else "f32"
        self._known: dict[Any, tuple[Any, list[str]]] = {}

    def __call__(self, inputs: Any) -> Features:
        """Compute the network's output for images (n, 3, H, W) or for features."""
        names = None if isinstance(inputs, Tensor) else sorted(inputs)
        given = [inputs] if names is None else [inputs[name] for name in names]
        with plain_arithmetic(False, CPU):
            rows = [each.float().permute(0, 2, 3, 1).contiguous() for each in given]
            compiled, layers = self._compiled(rows, names)
            request = compiled.create_infer_request()  # of this call, so that threads share none
            for i, each in enumerate(rows):
                request.set_input_tensor(i, _view(each))
            results = []
            for i, output in enumerate(compiled.outputs):
                sides = [side.get_length() for side in list(output.partial_shape)[1:]]
                results.append(torch.empty([len(rows[0]), *sides], dtype=self._network.dtype))
                request.set_output_tensor(i, _view(results[-1]))
            request.infer()
        return {name: a.permute(0, 3, 1, 2) for name, a in zip(layers, results, strict=True)}

    def _compiled(self, rows: list[Tensor], names: list[str] | None) -> tuple[Any, list[str]]:
        """Return the compiled network and the names of its outputs."""
        threads = torch.get_num_threads()
        key = (threads, *(each.shape[1:] for each in rows))
        with TRACING:
            if key not in self._known:
                model, layers = _convert(self._network, rows, names)
                settings = {
                    "INFERENCE_PRECISION_HINT": self._products,  # by default bfloat16 if it is fast
                    "INFERENCE_NUM_THREADS": threads,
                    "NUM_STREAMS": int(threads > 1),  # none: in the caller's thread
                    "ENABLE_CPU_PINNING": False,  # to the first cores, as every other process
                }
                compiled = openvino_core().compile_model(model, "CPU", settings)
                COMPILED.add(compiled)
                note_threads()
                self._known[key] = compiled, layers
        return self._known[key]


class _ChannelsLast(nn.Module):
    """A copy of a network in float32 whose inputs and outputs have their channels last."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network = plain_copy(network)
        self.dtype = getattr(torch, precision)

    def forward(self, rows: Sequence[Tensor], names: Sequence[str] | None) -> Features:
        """Run the network: (n, H, W, C) -> layer -> (n, h, w, C)."""
        given = [each.permute(0, 3, 1, 2) for each in rows]
        features = self.network(given[0] if names is None else dict(zip(names, given, strict=True)))
        return {name: a.permute(0, 2, 3, 1).to(self.dtype) for name, a in features.items()}


def _convert(
    network: nn.Module, rows: list[Tensor], names: list[str] | None
) -> tuple[Any, list[str]]:
    """Return a network as OpenVINO's model for inputs of any number, and its outputs' names.

    OpenVINO's own conversion sends telemetry and logs, and `torch.export`, which it needs, changes
    how torch computes in other threads.

    Raises
    ------
    ValueError
        If OpenVINO cannot compute the network.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    layers: list[str] = []

    def run(*examples: Tensor) -> list[Tensor]:
        for each in examples:
            [int(side) for side in each.shape[1:]]  # makes constants of them
        features = network(examples, names)
        layers[:] = features
        return list(features.values())

    n = 1 + max(side for each in rows for side in each.shape)  # equal sides share a symbol
    examples = [each[:1].expand(n, -1, -1, -1) for each in rows]
    try:
        with plain_arithmetic(True, CPU):  # without gradients, convolutions are oneDNN's own
            graph = make_fx(
                torch.func.functionalize(run), tracing_mode="symbolic", _allow_non_fake_inputs=True
            )(*examples)
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchFXPythonDecoder(graph)
        model = frontend.convert(frontend.load(decoder))
        model.reshape({i: [-1, *each.shape[1:]] for i, each in enumerate(rows)})
        if any(output.partial_shape[0].get_max_length() >= 0 for output in model.outputs):
            raise ValueError("its output has one size for any number of images.")
    except Exception as error:
        raise ValueError(
            f"engine='openvino' cannot compute this network; use engine='torch' for it: {error}"
        ) from error
    return model, layers


def _view(tensor: Tensor) -> Any:
    """Return OpenVINO's view of a contiguous tensor in float32 or bfloat16."""
    openvino = _openvino()
    if tensor.dtype == torch.float32:
        return openvino.Tensor(tensor.numpy(), shared_memory=True)
    bits = tensor.view(torch.int16).numpy()  # numpy has no bfloat16
    return openvino.Tensor(bits, openvino.Shape(list(tensor.shape)), openvino.Type.bf16)


def _openvino() -> Any:
    return needed("openvino", "openvino", "engine='openvino'")
