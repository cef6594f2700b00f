"""Critical layers: the feature maps of a network, and which of them a method compares."""

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
    """A layer that the cloner mirrors: a critical one, or one that reduces the grid."""

    layer: str
    channels: int
    grid: tuple[int, int]
    critical: bool


class LayerRule(NamedTuple):
    """Which layers a method compares if the user does not name them."""

    places: str  # "reductions" of the grid, or "stage ends", the layers just before these
    n: int  # the last n, for "auto"


REDUCTIONS = LayerRule("reductions", 4)  # MKD's (section 3.2)
STAGE_ENDS = LayerRule("stage ends", 3)  # of ResNets the stages 1 to 3, as in RD and MemKD


class LayerIndex:
    """The feature maps of a network, and the layers that reduce its grid.

    Feature maps are the nodes whose output is (n, C, h, w) with h and w growing with the
    image; that leaves out pooled heads, gates, and maps with channels last.
    """

    def __init__(self, network: nn.Module) -> None:
        self._probe = _ShapeProbe(network)
        small, large = (self._probe.shapes((side, side)) for side in (PROBE_SIDE, 2 * PROBE_SIDE))
        self.nodes = []
        for name, (channels, height, width) in small.items():
            other = large.get(name, (0, 0, 0))
            if other[0] == channels and other[1] > 1.5 * height and other[2] > 1.5 * width:
                self.nodes.append(name)
        self.spans: dict[str, tuple[int, int]] = {}  # node or module -> first and last node
        for i, name in enumerate(self.nodes):
            for prefix in _prefixes(name):
                self.spans[prefix] = (self.spans.get(prefix, (i, i))[0], i)
        self._sides = [PROBE_SIDE, *(small[name][1] for name in self.nodes)]  # of image and nodes
        self._grids = list(accumulate(self._sides, _without_padding))
        self.reductions = self._find_reductions()

    def _find_reductions(self) -> list[str]:
        """List the outermost modules or nodes that halve the grid, in order.

        A single node with a larger stride, as in some stems, counts as well.
        """
        found, i = [], 0
        while i < len(self.nodes):
            for prefix in _prefixes(self.nodes[i]):
                first, last = self.spans[prefix]
                stride = self._grids[i] / self._grids[last + 1]
                if first == i and stride >= 1.5 and (stride < 3 or prefix == self.nodes[i]):
                    found.append(prefix)
                    i = last
                    break
            i += 1
        return found

    @property
    def stage_ends(self) -> list[str]:
        """The outermost modules or nodes that end just before a reduction, in order.

        Padding that comes between does not count.
        """
        found = []
        for reduction in self.reductions:
            last = self.spans[reduction][0] - 1
            while self._sides[last + 1] > self._grids[last + 1]:
                last -= 1
            if last >= 0:  # else the image itself is reduced
                found.append(
                    next(p for p in _prefixes(self.nodes[last]) if self.spans[p][1] == last)
                )
        return found

    def choose(
        self, critical_layers: str | int | Sequence[str], rule: LayerRule
    ) -> tuple[str, ...]:
        """Return the names of the critical layers."""
        if critical_layers == "auto":
            critical_layers = rule.n
        if not isinstance(critical_layers, Sequence):
            candidates = self.reductions if rule.places == "reductions" else self.stage_ends
            if critical_layers > len(candidates):
                raise ValueError(
                    "critical_layers must name the layers, or be at most "
                    f"{len(candidates)}, since the {rule.places} of the source's grid are "
                    f"{candidates}; got {critical_layers}."
                ) from self._probe.failure
            return tuple(candidates[-critical_layers:])
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

    def stages(self, layers: tuple[str, ...], image_size: tuple[int, int]) -> tuple[Stage, ...]:
        """List the critical layers, and a reduction to each grid without a critical layer."""
        shapes = self._probe.shapes(image_size)
        reductions = [
            layer for layer in self.reductions
            if self.spans[layer] < self.spans[layers[-1]] and layer not in layers
        ]  # fmt: skip
        stages: list[Stage] = []
        for layer in [*layers, *reductions]:
            critical, last = layer in layers, self.nodes[self.spans[layer][1]]
            if last not in shapes:
                raise ValueError(
                    f"image_size must be one that the source takes; at {image_size} it fails "
                    f"before critical layer {layer!r}: {self._probe.failure}"
                ) from self._probe.failure
            channels, height, width = shapes[last]
            if critical or (height, width) not in [stage.grid for stage in stages]:
                stages.append(Stage(layer, channels, (height, width), critical))
        return tuple(sorted(stages, key=lambda stage: self.spans[stage.layer][1]))


class _ShapeProbe(fx.Interpreter):
    """Run a network on the meta device and record the shapes of its maps, as far as it runs.

    The head of a classifier may take images of one size only; the maps before it take any.
    """

    failure: Exception | None = None  # what ended the last run early

    def __init__(self, network: nn.Module) -> None:
        # deepcopy takes these for the copies, so that no memory is allocated
        memo: dict[int, Tensor] = {}
        for parameter in network.parameters():
            empty = torch.empty_like(parameter, device="meta")
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
        for buffer in network.buffers():
            memo[id(buffer)] = torch.empty_like(buffer, device="meta")
        try:
            module, self._names = trace(copy.deepcopy(network, memo).to("meta").float())
        except Exception as error:  # whatever the module's own forward raises under tracing
            raise ValueError(
                f"source must be a network that torch.fx can trace; {type(network).__name__} is "
                f"not: {error}"
            ) from error
        super().__init__(module)

    def shapes(self, size: tuple[int, int]) -> Shapes:
        """Return the shapes of all maps for images of a size."""
        self._shapes: Shapes = {}
        self.failure = None
        try:
            with torch.device("meta"):
                self.run(torch.zeros(1, 3, *size, dtype=torch.float32))
        except Exception as error:  # whatever a layer raises at this size
            self.failure = error
        return self._shapes

    def run_node(self, n: fx.Node) -> object:
        """Run a node and record the shape of its output."""
        output = super().run_node(n)
        is_map = isinstance(output, Tensor) and output.ndim == 4
        if is_map and n in self._names and n.op != "placeholder":
            _, channels, height, width = output.shape
            self._shapes[self._names[n]] = (channels, height, width)
        return output


def _without_padding(before: int, side: int) -> int:
    """Return the side of a map, or that before it if it is padded, not upsampled."""
    return before if before < side < 2 * before else side


def _prefixes(name: str) -> list[str]:
    """List the modules around a node, outermost first, and the node itself."""
    return list(accumulate(name.split("."), lambda outer, inner: f"{outer}.{inner}"))
