"""Where a network is compared: its layers found, and chosen by name or number."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from skmkd._networks.tracing import trace

PROBE_SIDE = 256  # pixels; at twice as many, feature maps grow and pooled heads do not

Shapes = dict[str, tuple[int, int, int]]  # node -> (C, h, w), in order of computation


class Stage(NamedTuple):
    """A place in a source that its cloner mirrors: a critical layer or a grid reduction."""

    layer: str
    channels: int
    grid: tuple[int, int]
    critical: bool


class LayerRule(NamedTuple):
    """Where a method compares networks when its user does not name the layers."""

    places: str  # "reductions" of the grid, or "stage ends", which are the maps before these
    n: int  # the last so many, for "auto"


REDUCTIONS = LayerRule("reductions", 4)  # MKD's (section 3.2)
STAGE_ENDS = LayerRule("stage ends", 3)  # of ResNets the stages 1 to 3, as in RD and MemKD


class Survey:
    """Which nodes of a network are feature maps, and where its grid gets coarser.

    Feature maps are the nodes whose output is (n, C, h, w) with h and w growing with the
    image; that leaves out pooled heads, gates, and maps with channels last.
    """

    def __init__(self, network: nn.Module) -> None:
        self._probe = _Probe(network)
        small, large = (self._probe.shapes((side, side)) for side in (PROBE_SIDE, 2 * PROBE_SIDE))
        self.nodes = [name for name in small if _scales(small[name], large.get(name))]
        self.spans: dict[str, tuple[int, int]] = {}  # node or module -> first and last node
        for i, name in enumerate(self.nodes):
            for prefix in _prefixes(name):
                self.spans[prefix] = (self.spans.get(prefix, (i, i))[0], i)
        self.reductions = self._find_reductions(small)
        self.stage_ends = self._find_stage_ends()

    def _find_reductions(self, shapes: Shapes) -> list[str]:
        """List the outermost modules or nodes that halve the grid, in order.

        A node that takes a larger step at once, as some stems do, counts as well.
        """
        sides = [PROBE_SIDE, *(shapes[name][1] for name in self.nodes)]  # the image's, the nodes'
        found, i = [], 0
        while i < len(self.nodes):
            for prefix in _prefixes(self.nodes[i]):
                first, last = self.spans[prefix]
                step = sides[i] / sides[last + 1]
                if first == i and step >= 1.5 and (step < 3 or prefix == self.nodes[i]):
                    found.append(prefix)
                    i = last
                    break
            i += 1
        return found

    def _find_stage_ends(self) -> list[str]:
        """List the outermost modules or nodes that end just before a reduction, in order."""
        found = []
        for reduction in self.reductions:
            last = self.spans[reduction][0] - 1
            if last >= 0:  # else the image itself is reduced
                found.append(
                    next(p for p in _prefixes(self.nodes[last]) if self.spans[p][1] == last)
                )
        return found

    def choose(
        self, critical_layers: str | int | Sequence[str], rule: LayerRule
    ) -> tuple[str, ...]:
        """Return the critical layers by name."""
        if critical_layers == "auto":
            critical_layers = rule.n
        if not isinstance(critical_layers, Sequence):
            places = {"reductions": self.reductions, "stage ends": self.stage_ends}[rule.places]
            if critical_layers > len(places):
                raise ValueError(
                    f"critical_layers must name the layers, or be at most {len(places)}, since the "
                    f"{rule.places} of the source's grid are {places}; got {critical_layers}."
                ) from self._probe.failure
            return tuple(places[-critical_layers:])
        return self._check_names([str(layer) for layer in critical_layers])

    def _check_names(self, layers: list[str]) -> tuple[str, ...]:
        if unknown := [layer for layer in layers if layer not in self.spans]:
            raise ValueError(
                "critical_layers must be layers of the source that give maps (n, C, H, W); got "
                f"{unknown[0]!r}. Available are {', '.join(self.nodes)}, and modules that end in "
                "one of them."
            ) from self._probe.failure
        order = [self.spans[layer][1] for layer in layers]
        if not layers or any(a >= b for a, b in pairwise(order)):
            raise ValueError(
                "critical_layers must be one or more layers in the order in which the source "
                f"computes them, each once; got {layers}."
            )
        return tuple(layers)

    def _end(self, layer: str) -> str:
        """Return the last node of a layer, whose output is the layer's."""
        return self.nodes[self.spans[layer][1]]

    def stages(self, layers: tuple[str, ...], image_size: tuple[int, int]) -> tuple[Stage, ...]:
        """List critical layers, and the reductions to grids where no layer is critical."""
        shapes = self._probe.shapes(image_size)
        if unreached := [layer for layer in layers if self._end(layer) not in shapes]:
            raise ValueError(
                f"image_size must be one that the source takes; at {image_size} it fails before "
                f"critical layer {unreached[0]!r}: {self._probe.failure}"
            ) from self._probe.failure

        def stage(layer: str, critical: bool) -> Stage:
            channels, height, width = shapes[self._end(layer)]
            return Stage(layer, channels, (height, width), critical)

        stages = [stage(layer, True) for layer in layers]
        grids = {s.grid for s in stages}
        for layer in self.reductions:
            if self.spans[layer] >= self.spans[layers[-1]]:
                break
            between = stage(layer, False)
            if between.grid not in grids:
                grids.add(between.grid)
                stages.append(between)
        return tuple(sorted(stages, key=lambda s: self.spans[s.layer][1]))


class _Probe:
    """Tell the shapes of a network's maps without computing them, as far as it runs.

    A classifier's head may only take images of one size; the maps before it take any.
    """

    def __init__(self, network: nn.Module) -> None:
        try:
            self._graph, self._names = trace(_without_storage(network).float())
        except Exception as error:  # whatever the module's own forward raises under tracing
            raise ValueError(
                f"source must be a network that torch.fx can trace; {type(network).__name__} is "
                f"not: {error}"
            ) from error
        self.failure: Exception | None = None

    def shapes(self, size: tuple[int, int]) -> Shapes:
        """Return the shapes of all maps for images of a size; keep why it ended early, if so."""
        reader = _ShapeReader(self._graph, self._names)
        self.failure = None
        try:
            with torch.device("meta"):
                reader.run(torch.zeros(1, 3, *size, dtype=torch.float32))
        except Exception as error:  # whatever a layer raises at this size
            self.failure = error
        return reader.shapes


class _ShapeReader(fx.Interpreter):
    """Run a network and note the shape of each map that it comes by."""

    def __init__(self, network: fx.GraphModule, names: dict[fx.Node, str]) -> None:
        super().__init__(network)
        self.shapes: Shapes = {}
        self._names = names

    def run_node(self, n: fx.Node) -> object:
        output = super().run_node(n)
        is_map = isinstance(output, Tensor) and output.ndim == 4
        if is_map and n in self._names and n.op != "placeholder":
            _, channels, height, width = output.shape
            self.shapes[self._names[n]] = (channels, height, width)
        return output


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
