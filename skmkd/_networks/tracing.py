"""Networks as graphs: traced while other threads compute, and cut down to some layers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from threading import RLock, get_ident
from typing import Any

import torchvision
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

TRACING = RLock()  # for one thread at a time: torch.fx changes nn.Module itself meanwhile
if hasattr(os, "register_at_fork"):  # else a child would wait for a thread that it does not have
    os.register_at_fork(
        before=TRACING.acquire, after_in_parent=TRACING.release, after_in_child=TRACING.release
    )
LEAVES = tuple(
    each
    for each in vars(torchvision.ops).values()
    if isinstance(each, type) and issubclass(each, nn.Module)
)


class Tracer(NodePathTracer):
    """Trace a network as torchvision's extractors do, with their names for its nodes.

    Meanwhile every call of any module in the process comes here. Those of other threads pass.
    """

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops), leaf_modules=LEAVES)

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """Return the graph of a network."""
        with TRACING:
            self._thread = get_ident()
            return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note a call of a module, if it is of the network that is traced."""
        if get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Note the use of a parameter likewise."""
        if get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class Tapped(fx.GraphModule):
    """A network cut down to some layers: images (n, 3, H, W) to layer -> activations.

    Its pickle holds its code, which is traced when it is read.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, super().__reduce__()


def _restored(restore: Callable[..., fx.GraphModule], arguments: Any) -> Tapped:
    with TRACING:  # torch.fx reads code through an attribute of a class
        read = restore(*arguments)
    return Tapped(read, read.graph)


def trace(network: nn.Module) -> tuple[fx.GraphModule, dict[fx.Node, str]]:
    """Return a network in eval mode as a graph, and the names of its nodes in order."""
    tracer = Tracer()
    graph = tracer.trace(network)
    return fx.GraphModule(tracer.root, graph), dict(tracer.node_to_qualname)


def tap(network: nn.Module, layers: Sequence[str]) -> Tapped:
    """Cut a network down to what gives the layers, each copied before anything overwrites it.

    A layer is a node by its name, or what the last node of a module gives. The images are copied,
    too, so that those of the caller stay as they are.
    """
    whole, names = trace(network)
    graph = whole.graph
    images = next(node for node in graph.nodes if node.op == "placeholder")
    own = _copied(images)
    images.replace_all_uses_with(own, delete_user_cb=lambda user: user is not own)
    copies = {layer: _copied(_end(names, layer)) for layer in layers}
    for node in graph.nodes:
        node.type = None  # annotations, which need not be importable where this is unpickled
        if node.op == "output":
            node.args = (copies,)
    graph.eliminate_dead_code()
    return Tapped(whole, graph).eval()


def _copied(node: fx.Node) -> fx.Node:
    with node.graph.inserting_after(node):
        return node.graph.call_method("clone", (node,))


def _end(names: dict[fx.Node, str], layer: str) -> fx.Node:
    for node, name in reversed(names.items()):
        if f"{name}.".startswith(f"{layer}."):
            return node
    raise ValueError(f"there is no layer {layer!r}")
