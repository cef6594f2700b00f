"""Tracing of networks into graphs and extraction of their layers, safe among threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

import torchvision
from torch import fx, nn
from torch.fx.graph import PythonCode
from torchvision.models.feature_extraction import NodePathTracer

from skmkd._locks import lock_that_forks
from skmkd._runtime import uninterrupted

TRACING = lock_that_forks()  # one trace at a time: torch.fx patches nn.Module while it traces
LEAVES = tuple(
    each
    for each in vars(torchvision.ops).values()
    if isinstance(each, type) and issubclass(each, nn.Module)
)


class Tracer(NodePathTracer):
    """Trace a network as torchvision's feature extractors do, with the same names for nodes.

    While torch.fx traces, calls of all modules in the process end up here. Calls from threads
    other than the one that made the tracer are passed through.
    """

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops), leaf_modules=LEAVES)
        self._thread = get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record the call of a module of the traced network."""
        if get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record the use of a parameter of the traced network."""
        if get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class FeatureExtractor(fx.GraphModule):
    """Part of a network that maps images (n, 3, H, W) to a dict of layer -> activations.

    A pickle holds its code, which is traced again when it is loaded.
    """

    def recompile(self) -> PythonCode:
        """Make `forward` from the graph.

        The method of torch.fx keeps all code that it has ever compiled, for tracebacks.
        """
        code = self.graph.python_code("self")
        self._code = code.src  # torch.fx pickles it
        names = dict(code.globals)
        exec(compile(code.src, "<torch.fx>", "exec"), names)
        type(self).forward = names["forward"]  # each has a class of its own
        return code

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, super().__reduce__()


@uninterrupted
def _unpickle(restore: Callable[..., fx.GraphModule], arguments: Any) -> FeatureExtractor:
    with TRACING:
        module = restore(*arguments)
    return FeatureExtractor(module, module.graph)


@uninterrupted
def trace(network: nn.Module) -> tuple[FeatureExtractor, dict[fx.Node, str]]:
    """Return a network in eval mode as a graph, and the names of its nodes in order."""
    with TRACING:
        tracer = Tracer()
        graph = tracer.trace(network)
    return FeatureExtractor(tracer.root, graph), dict(tracer.node_to_qualname)


def extract_features(network: nn.Module, layers: Sequence[str]) -> FeatureExtractor:
    """Cut a network down to the part that computes some layers.

    A layer is the name of a node, or of a module whose last node it is. Outputs of layers are
    copied before an in-place operation overwrites them. The images are copied as well, so that
    the caller's stay unchanged.
    """
    module, names = trace(network)
    graph = module.graph
    images = next(node for node in graph.nodes if node.op == "placeholder")
    nodes = {}
    for layer in layers:
        of_layer = [node for node, name in names.items() if f"{name}.".startswith(f"{layer}.")]
        if not of_layer:
            raise ValueError(f"there is no layer {layer!r}")
        nodes[layer] = of_layer[-1]
    with graph.inserting_after(images):
        own = graph.call_method("clone", (images,))
    images.replace_all_uses_with(own, delete_user_cb=lambda user: user is not own)
    outputs = {}
    for layer, node in nodes.items():
        with graph.inserting_after(node):
            outputs[layer] = graph.call_method("clone", (node,))
    for node in graph.nodes:
        node.type = None  # annotations may not be importable where this is unpickled
        if node.op == "output":
            node.args = (outputs,)
    graph.eliminate_dead_code()
    return FeatureExtractor(module, graph).eval()
