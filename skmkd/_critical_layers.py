"""Where a network is compared: its layers found, chosen by name or number, and tapped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

PAPER_DEPTH = 4  # MKD's critical layers: the last four grid reductions (section 3.2)
PROBE_SIDE = 256  # pixels; at twice as many, feature maps grow and pooled heads do not

Shapes = dict[str, tuple[int, int, int]]  # node -> (C, h, w), in order of computation


class Stage(NamedTuple):
    """A place in a source that its cloner mirrors: a critical layer or a grid reduction."""

    layer: str
    channels: int
    grid: tuple[int, int]
    critical: bool


class Survey:
    """Which nodes of a network are feature maps, and where its grid gets coarser.

    Feature maps are the nodes whose output is (n, C, h, w) with h and w growing with the
    image; that leaves out pooled heads, gates, and maps with channels last.
    """

    def __init__(self, network: nn.Module) -> None:
        self._shapes_at = _shape_probe(network)
        small, large = (self._shapes_at((side, side)) for side in (PROBE_SIDE, 2 * PROBE_SIDE))
        self.nodes = [name for name in small if _scales(small[name], large.get(name))]
        self.spans: dict[str, tuple[int, int]] = {}  # node or module -> first and last node
        for i, name in enumerate(self.nodes):
            for prefix in _prefixes(name):
                self.spans[prefix] = (self.spans.get(prefix, (i, i))[0], i)
        self.reductions = self._find_reductions(small)

    def _find_reductions(self, shapes: Shapes) -> list[str]:
        """List the outermost modules or nodes that halve the grid, in order.

        A node that takes a larger step at once, as some stems do, counts as well.
        """
        side = [shapes[name][1] for name in self.nodes]
        found, i = [], 1
        while i < len(self.nodes):
            for prefix in _prefixes(self.nodes[i]):
                first, last = self.spans[prefix]
                step = side[i - 1] / side[last]
                if first == i and step >= 1.5 and (step < 3 or prefix == self.nodes[i]):
                    found.append(prefix)
                    i = last
                    break
            i += 1
        return found

    def choose(self, critical_layers: str | int | Sequence[str]) -> tuple[str, ...]:
        """Return the critical layers by name."""
        if critical_layers == "auto":
            critical_layers = PAPER_DEPTH
        if not isinstance(critical_layers, Sequence):
            if critical_layers > len(self.reductions):
                raise ValueError(
                    f"critical_layers must name the layers, since the source halves its grid only "
                    f"at {self.reductions}; got the last {critical_layers}."
                )
            return tuple(self.reductions[-critical_layers:])
        return self._check_names([str(layer) for layer in critical_layers])

    def _check_names(self, layers: list[str]) -> tuple[str, ...]:
        if unknown := [layer for layer in layers if layer not in self.spans]:
            raise ValueError(
                "critical_layers must be layers of the source that give maps (n, C, H, W); got "
                f"{unknown[0]!r}. Available are {', '.join(self.nodes[1:])}, and modules that end "
                "in one of them."
            )
        order = [self.spans[layer][1] for layer in layers]
        if not layers or any(a >= b for a, b in pairwise(order)):
            raise ValueError(
                "critical_layers must be one or more layers in the order in which the source "
                f"computes them, each once; got {layers}."
            )
        return tuple(layers)

    def stages(self, layers: tuple[str, ...], image_size: tuple[int, int]) -> tuple[Stage, ...]:
        """List critical layers, and the reductions to grids where no layer is critical."""
        shapes = self._shapes_at(image_size)

        def stage(layer: str, critical: bool) -> Stage:
            channels, *grid = shapes[self.nodes[self.spans[layer][1]]]
            return Stage(layer, channels, (grid[0], grid[1]), critical)

        stages = [stage(layer, True) for layer in layers]
        grids = {s.grid for s in stages}
        for layer in self.reductions:
            between = stage(layer, False)
            if self.spans[layer] < self.spans[layers[-1]] and between.grid not in grids:
                grids.add(between.grid)
                stages.append(between)
        return tuple(sorted(stages, key=lambda s: self.spans[s.layer][1]))


def _shape_probe(network: nn.Module) -> Callable[[tuple[int, int]], Shapes]:
    """Return a function that tells the shapes of a network's maps without computing them."""
    try:
        skeleton = _without_storage(network).float()
        train_nodes, nodes = get_graph_node_names(skeleton, suppress_diff_warning=True)
        probe = create_feature_extractor(
            skeleton,
            train_return_nodes=train_nodes[-1:],
            eval_return_nodes=nodes,
            suppress_diff_warning=True,
        )
    except Exception as error:  # whatever the module's own forward raises under tracing
        raise ValueError(
            f"source must be a network that torch.fx can trace; {type(network).__name__} is not: "
            f"{error}"
        ) from error

    def shapes_at(size: tuple[int, int]) -> Shapes:
        try:
            with torch.device("meta"):
                outputs = probe(torch.zeros(1, 3, *size, dtype=torch.float32))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ValueError(
                f"source must accept images (n, 3, {size[0]}, {size[1]}); "
                f"{type(network).__name__} does not: {error}"
            ) from error
        return {
            name: (output.shape[1], output.shape[2], output.shape[3])
            for name, output in outputs.items()
            if isinstance(output, Tensor) and output.ndim == 4
        }

    return shapes_at


def _without_storage(network: nn.Module) -> nn.Module:
    """Copy a network's structure to the meta device, its tensors left where they are."""
    memo: dict[int, Tensor] = {}
    for parameter in network.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, memo).to("meta")


def _scales(small: tuple[int, int, int], large: tuple[int, int, int] | None) -> bool:
    """Tell whether a map keeps its channels and grows with the image."""
    if large is None or large[0] != small[0]:
        return False
    return all(b > 1.5 * a for a, b in zip(small[1:], large[1:], strict=True))


def _prefixes(name: str) -> list[str]:
    """List the modules around a node, outermost first, and the node itself."""
    return list(accumulate(name.split("."), lambda outer, inner: f"{outer}.{inner}"))


def tap(network: nn.Module, layers: Sequence[str]) -> fx.GraphModule:
    """Cut a network down to what gives the layers, each copied before anything overwrites it."""
    train_nodes, _ = get_graph_node_names(network, suppress_diff_warning=True)
    extractor = create_feature_extractor(
        network,
        train_return_nodes=train_nodes[-1:],
        eval_return_nodes=list(layers),
        suppress_diff_warning=True,
    ).eval()
    graph = extractor.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    copies = {}
    for layer, node in output.args[0].items():
        with graph.inserting_after(node):
            copies[layer] = graph.call_method("clone", (node,))
    output.args = (copies,)
    for node in graph.nodes:
        node.type = None  # annotations, which need not be importable where this is unpickled
    return fx.GraphModule(extractor, graph).eval()
