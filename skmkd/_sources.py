"""Source networks: a name or a module becomes a frozen network tapped at its critical layers."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import accumulate
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from skmkd._backend import forked_rng, place

BUNDLED_SOURCE, BUNDLED_FILE = "vgg16", "vgg16_imagenet_fp16.pt"
BUNDLED_SHA256 = "6b9c253227bf6b67f2b2b63e69b90f5a7a6047ad2d02ed9e6a058a4269b1c048"
PAPER_DEPTH = 4  # MKD's critical layers: the last four grid reductions (section 3.2)
PROBE_SIDE = 256  # pixels; at twice as many, feature maps grow and pooled heads do not

State = Mapping[str, Tensor]
Shapes = dict[str, tuple[int, int, int]]  # node -> (C, h, w), in order of computation


class Normalization(NamedTuple):
    """Mean and standard deviation of the channels of a network's input, pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IDENTITY = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Stage(NamedTuple):
    """A place in a source that its cloner mirrors: a critical layer or a grid reduction."""

    layer: str
    channels: int
    grid: tuple[int, int]
    critical: bool


class Source(NamedTuple):
    """A frozen network tapped at its critical layers.

    Parameters
    ----------
    network : nn.Module
        Images (n, 3, H, W) to a dict of critical layer -> activations (n, C, h, w).
    stages : tuple of Stage
        What a cloner mirrors, in order of computation, up to the last critical layer.
    normalization : Normalization
        The input that the weights were trained for.
    """

    network: nn.Module
    stages: tuple[Stage, ...]
    normalization: Normalization


def build_source(
    source: str | nn.Module,
    weights: str | os.PathLike[str] | State | None,
    critical_layers: str | int | Sequence[str],
    image_size: tuple[int, int],
    device: torch.device,
    seed: int,
) -> Source:
    """Build the frozen source network, tapped at its critical layers.

    Raises
    ------
    ValueError
        If the source, its weights or a critical layer is unknown or does not fit.
    OSError
        If weights cannot be downloaded or the bundled file is damaged.
    """
    network, state, normalization = _load(source, weights, seed)
    network.eval().requires_grad_(False)
    survey = _Survey(network)
    layers = survey.choose(critical_layers)
    stages = survey.stages(layers, image_size)
    tapped = _tap(network, layers)
    if state is not None:
        _load_state(tapped, state)
    return Source(place(tapped.requires_grad_(False), device), stages, normalization)


# Weights: nothing here ever falls back to random ones


def _load(
    source: str | nn.Module, weights: Any, seed: int
) -> tuple[nn.Module, State | None, Normalization]:
    """Return the network, the state that it is still to be given, and its normalisation."""
    if isinstance(source, nn.Module):
        if weights in ("bundled", "imagenet"):
            raise ValueError(
                "source_weights must be 'auto', None, a path or a state dict if source is a "
                f"module, which brings its own weights; got {weights!r}."
            )
        state = None if weights is None or weights == "auto" else _read_state(weights)
        return copy.deepcopy(source), state, IMAGENET
    if source not in list_models(module=torchvision.models):
        raise ValueError(
            f"source must be {BUNDLED_SOURCE!r}, another classification model of torchvision "
            "(torchvision.models.list_models() names them) or an nn.Module; got "
            f"{source!r}."
        )
    if source != BUNDLED_SOURCE and weights in ("auto", "bundled"):
        raise ValueError(
            f"source_weights must be 'imagenet', a path, a state dict or None for {source!r}, "
            f"since only {BUNDLED_SOURCE!r} comes with weights; got {weights!r}."
        )
    if weights is None:
        return _random_network(source, seed), None, IMAGENET
    if weights == "imagenet":
        return _download(source, seed)
    if weights in ("auto", "bundled"):
        with torch.device("meta"):
            return get_model(source, weights=None), _read_bundled(), IMAGENET
    with forked_rng(seed):  # some constructors compute, and cannot do so on the meta device
        return get_model(source, weights=None), _read_state(weights), IMAGENET


def _random_network(source: str, seed: int) -> nn.Module:
    warnings.warn(
        f"source_weights=None gives {source!r} random weights; a source without training "
        "knows little that a cloner could learn.",
        UserWarning,
        stacklevel=2,
    )
    with forked_rng(seed):
        return get_model(source, weights=None)


def _download(source: str, seed: int) -> tuple[nn.Module, None, Normalization]:
    weights = get_model_weights(source).DEFAULT
    preset = weights.transforms()
    try:
        with forked_rng(seed):
            network = get_model(source, weights=weights, progress=False)
    except OSError as error:
        raise ConnectionError(
            f"source_weights='imagenet' needs {weights.url}, which could not be downloaded "
            f"({error}). Fetch that file where there is a network and pass its path as "
            f"source_weights, or put it into {torch.hub.get_dir()}/checkpoints; or use "
            f"source={BUNDLED_SOURCE!r} with source_weights='bundled', which needs no network."
        ) from error
    return network, None, Normalization(tuple(preset.mean), tuple(preset.std))


def _read_bundled() -> State:
    content = (resources.files("skmkd") / "weights" / BUNDLED_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != BUNDLED_SHA256:
        raise OSError(f"The bundled weights {BUNDLED_FILE} are damaged; reinstall skmkd.")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {f"features.{name}": tensor for name, tensor in state.items()}


def _read_state(weights: str | os.PathLike[str] | State) -> State:
    if isinstance(weights, Mapping):
        state: Any = weights
    else:
        path = os.fspath(weights)
        if not os.path.isfile(path):
            raise ValueError(
                "source_weights must be 'auto', 'bundled', 'imagenet', the path of a file, a "
                f"state dict or None; got {path!r}, where there is no file."
            )
        try:
            if path.endswith(".safetensors"):
                state = load_file(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, SafetensorError, EOFError) as error:
            raise ValueError(
                f"source_weights must be a file of tensors, read without running code; {path!r} "
                f"is not: {error}"
            ) from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError("source_weights must map the names of parameters to tensors.")
    return state


def _load_state(network: nn.Module, state: State) -> None:
    """Copy into the network what it needs of a state; layers past the last tap need nothing."""
    needed = network.state_dict()
    counters = {name for name in needed if name.endswith("num_batches_tracked")}
    if missing := [name for name in needed if name not in state and name not in counters]:
        raise ValueError(
            f"source_weights must hold {missing[0]!r} (and {len(missing) - 1} more that are "
            f"missing); it begins with {list(state)[:3]}."
        )
    given = {name: state.get(name, torch.zeros(())) for name in needed}
    for name, tensor in given.items():
        if tensor.shape != needed[name].shape:
            raise ValueError(
                f"source_weights must hold {name!r} in shape {tuple(needed[name].shape)}; got "
                f"{tuple(tensor.shape)}."
            )
    copies = {name: tensor.detach().clone() for name, tensor in given.items()}
    network.load_state_dict(copies, assign=True)


# Layers


class _Survey:
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
                if first == i and 1.5 <= step and (step < 3 or prefix == self.nodes[i]):
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
        if not layers or any(a >= b for a, b in zip(order, order[1:], strict=False)):
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
        skeleton = _without_storage(network)
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
                outputs = probe(torch.zeros(1, 3, *size))
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


def _tap(network: nn.Module, layers: Sequence[str]) -> fx.GraphModule:
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
    return fx.GraphModule(extractor, graph).eval()
