"""Source networks: a name or a module becomes a frozen network tapped at its critical layers."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from skmkd._networks.layers import LayerRule, Stage, Survey
from skmkd._networks.precision import BFloat16, to_device
from skmkd._networks.tracing import tap
from skmkd._runtime import forked_rng

BUNDLED_SOURCE, BUNDLED_FILE = "vgg16", "vgg16_imagenet_fp16.pt"
BUNDLED_SHA256 = "6b9c253227bf6b67f2b2b63e69b90f5a7a6047ad2d02ed9e6a058a4269b1c048"
COUNTER = "num_batches_tracked"  # a batch norm's, which only training uses

State = Mapping[str, Tensor]


class Normalization(NamedTuple):
    """Mean and standard deviation of the channels of a network's input, pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IDENTITY = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Origin(NamedTuple):
    """What a source was built from."""

    name: str  # torchvision's, or the class of a module
    weights: str  # "module", "bundled", "imagenet", "given" or "random"


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
    origin : Origin
        What `rebuild_source` has to know.
    whole : nn.Module
        The network before it was tapped; it may have no weights.
    """

    network: nn.Module
    stages: tuple[Stage, ...]
    normalization: Normalization
    origin: Origin
    whole: nn.Module


def build_source(
    source: str | nn.Module,
    weights: str | os.PathLike[str] | State | None,
    critical_layers: str | int | Sequence[str],
    rule: LayerRule,
    image_size: tuple[int, int],
    device: torch.device,
    precision: str,
    seed: int,
) -> Source:
    """Build the frozen source network, tapped at its critical layers, to compute in a precision.

    Raises
    ------
    ValueError
        If the source, its weights or a critical layer is unknown or does not fit.
    OSError
        If weights cannot be downloaded or the bundled file is damaged.
    """
    network, state, normalization = _load(source, weights, seed)
    network.eval().requires_grad_(False)
    survey = Survey(network)
    layers = survey.choose(critical_layers, rule)
    stages = survey.stages(layers, image_size)
    frozen = _freeze(tap(network, layers), state, device, precision)
    return Source(frozen, stages, normalization, _origin(source, weights), network)


def rebuild_source(
    origin: Origin,
    given: nn.Module | str | os.PathLike[str] | State | None,
    layers: Sequence[str],
    device: torch.device,
    precision: str,
) -> nn.Module:
    """Build the network of an earlier source again, from a module or from weights.

    Raises
    ------
    ValueError
        If that is not enough, or does not fit.
    """
    if isinstance(given, nn.Module):
        network, state = copy.deepcopy(given), None
    else:
        network, state, _ = _load(origin.name, given, seed=0)
    tapped = tap(network.eval().requires_grad_(False), layers)
    return _freeze(tapped, state, device, precision)


def source_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a source, named as before it was lowered to bfloat16.

    Batch norms' counters, which only training uses, are left out.
    """
    inner = network.network if isinstance(network, BFloat16) else network
    return {n: tensor for n, tensor in inner.state_dict().items() if not n.endswith(COUNTER)}


def fingerprint(state: State) -> str:
    """Return a hash of tensors: of their names, types, shapes and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _freeze(
    tapped: nn.Module, state: State | None, device: torch.device, precision: str
) -> nn.Module:
    if state is not None:
        _load_state(tapped, state)
    placed = to_device(tapped.requires_grad_(False), device)
    return BFloat16(placed) if precision == "bfloat16" else placed


def _origin(source: str | nn.Module, weights: Any) -> Origin:
    if isinstance(source, nn.Module):
        return Origin(type(source).__name__, "module")
    kinds = {"auto": "bundled", "bundled": "bundled", "imagenet": "imagenet", None: "random"}
    named = isinstance(weights, (str, type(None)))
    return Origin(source, kinds.get(weights, "given") if named else "given")


# Nothing below ever falls back to random weights


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
    normalization = _torchvisions_normalization(source)
    if weights is None:
        return _random_network(source, seed), None, normalization
    if weights == "imagenet":
        return _download(source, seed), None, normalization
    state = _read_bundled() if weights in ("auto", "bundled") else _read_state(weights)
    # some constructors compute, and cannot do so on the meta device
    with torch.device("meta") if source == BUNDLED_SOURCE else forked_rng(seed):
        return _network(source), state, normalization


def _torchvisions_normalization(source: str) -> Normalization:
    preset = get_model_weights(source).DEFAULT.transforms()
    return Normalization(tuple(preset.mean), tuple(preset.std))


def _network(source: str) -> nn.Module:
    """Build torchvision's network as its own weights need it, which it does with these only."""
    network = get_model(source, weights=None)
    if hasattr(network, "transform_input"):
        vars(network)["transform_input"] = True
    return network


def _random_network(source: str, seed: int) -> nn.Module:
    warnings.warn(
        f"source_weights=None gives {source!r} random weights; a source without training "
        "knows little that a cloner could learn.",
        UserWarning,
        stacklevel=2,
    )
    with forked_rng(seed):
        return _network(source)


def _download(source: str, seed: int) -> nn.Module:
    weights = get_model_weights(source).DEFAULT
    try:
        with forked_rng(seed):
            return get_model(source, weights=weights, progress=False)
    except OSError as error:
        raise ConnectionError(
            f"source_weights='imagenet' needs {weights.url}, which could not be downloaded "
            f"({error}). Fetch that file where there is a network and pass its path as "
            f"source_weights, or put it into {torch.hub.get_dir()}/checkpoints; or use "
            f"source={BUNDLED_SOURCE!r} with source_weights='bundled', which needs no network."
        ) from error


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
    counters = {name for name in needed if name.endswith(COUNTER)}
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
