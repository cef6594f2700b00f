"""Source networks: from a name or a module to a frozen network that computes critical layers."""

from __future__ import annotations

import copy
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, fx, nn
from torchvision.models import get_model, get_model_weights, list_models

from skmkd._networks.efficientnet import EfficientNetLite0, in_stages
from skmkd._networks.fusion import fuse
from skmkd._networks.layers import LayerIndex, LayerRule, Stage
from skmkd._networks.precision import BFloat16, to_device
from skmkd._networks.tracing import extract_features
from skmkd._runtime import forked_rng
from skmkd._warnings import warn

COUNTER = "num_batches_tracked"  # of a batch norm; only training uses it

State = Mapping[str, Tensor]


class Normalization(NamedTuple):
    """Mean and standard deviation of the channels that a network takes, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IDENTITY = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LITE = Normalization((127 / 255,) * 3, (128 / 255,) * 3)


class Bundle(NamedTuple):
    """A network whose weights come with skmkd."""

    build: Callable[[], nn.Module]
    normalization: Normalization
    file: str
    sha256: str  # of the file
    rename: Callable[[str], str]  # from the names of tensors in the file to the network's


BUNDLES = {
    "vgg16": Bundle(
        partial(get_model, "vgg16", weights=None),
        IMAGENET,
        "vgg16_imagenet_fp16.pt",
        "6b9c253227bf6b67f2b2b63e69b90f5a7a6047ad2d02ed9e6a058a4269b1c048",
        "features.{}".format,
    ),
    "efficientnet_lite0": Bundle(
        EfficientNetLite0,
        LITE,
        "efficientnet_lite0_imagenet_fp16.safetensors",
        "f79d4c2f443ae7b4160246cd8cf3090802c288d11e0249545729f455d6a561ca",
        in_stages,
    ),
}


class Origin(NamedTuple):
    """What a source was built from."""

    name: str  # of a bundled or torchvision's network, or the class of a module
    weights: str  # "module", "bundled", "imagenet", "given" or "random"


class Source(NamedTuple):
    """A frozen network that computes critical layers.

    Parameters
    ----------
    network : nn.Module
        Images (n, 3, H, W) to a dict of critical layer -> activations (n, C, h, w).
    stages : tuple of Stage
        The layers that a cloner mirrors, in order of computation, up to the last critical one.
    normalization : Normalization
        How the images were normalized that the weights were trained on.
    origin : Origin
        What `rebuild_source` needs to know.
    whole : nn.Module
        The whole network; its weights may be missing (on the meta device).
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
    """Build the frozen source network that computes the critical layers in a precision.

    Raises
    ------
    ValueError
        If the source, its weights or a critical layer is unknown or does not fit.
    OSError
        If weights cannot be downloaded or the bundled file is damaged.
    """
    network, state, normalization, origin = _load(source, weights, seed)
    network.eval()
    index = LayerIndex(network)
    layers = index.choose(critical_layers, rule)
    stages = index.stages(layers, image_size)
    frozen = _freeze(extract_features(network, layers), state, device, precision)
    return Source(frozen, stages, normalization, origin, network)


def rebuild_source(
    origin: Origin,
    given: nn.Module | str | os.PathLike[str] | State | None,
    layers: Sequence[str],
    device: torch.device,
    precision: str,
) -> nn.Module:
    """Build a source network again, from a module or from weights.

    Raises
    ------
    ValueError
        If that is not enough, or does not fit.
    """
    if isinstance(given, nn.Module):
        network, state = copy.deepcopy(given), None
    else:
        network, state, _, _ = _load(origin.name, given, seed=0)
    return _freeze(extract_features(network.eval(), layers), state, device, precision)


def source_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a source, with the same names in every precision.

    Counters of batch norms, which only training uses, are left out.
    """
    inner = network.network if isinstance(network, BFloat16) else network
    return {n: tensor for n, tensor in inner.state_dict().items() if not n.endswith(COUNTER)}


def fingerprint(state: State) -> str:
    """Return a SHA-256 of tensors: of their names, dtypes, shapes and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _freeze(
    network: fx.GraphModule, state: State | None, device: torch.device, precision: str
) -> nn.Module:
    """Load the weights that a network needs, if any are given, and move it to a device."""
    network.requires_grad_(False)
    if state is not None:
        needed = network.state_dict()
        counters = {name for name in needed if name.endswith(COUNTER)}
        if missing := [name for name in needed if name not in state and name not in counters]:
            raise ValueError(
                f"source_weights must hold {missing[0]!r} (and {len(missing) - 1} more that are "
                f"missing); it begins with {list(state)[:3]}."
            )
        tensors = {name: state.get(name, torch.zeros(())) for name in needed}
        for name, tensor in tensors.items():
            if tensor.shape != needed[name].shape:
                raise ValueError(
                    f"source_weights must hold {name!r} in shape {tuple(needed[name].shape)}; got "
                    f"{tuple(tensor.shape)}."
                )
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        network.load_state_dict(copies, assign=True)
    parameters = dict(network.named_parameters())
    for name, tensor in network.state_dict().items():  # as ReLUs may hide it
        is_weight = name in parameters or name.endswith(("running_mean", "running_var"))
        if is_weight and not tensor.isfinite().all():
            raise ValueError(f"source must have finite weights; {name!r} has not.")
    fuse(network)
    network = to_device(network, device)
    return BFloat16(network) if precision == "bfloat16" else network


# Nothing below falls back to random weights


def _load(
    source: str | nn.Module, weights: Any, seed: int
) -> tuple[nn.Module, State | None, Normalization, Origin]:
    """Return a network, the weights still to be loaded into it if any, its input and origin."""
    if isinstance(source, nn.Module):
        if weights in ("bundled", "imagenet"):
            raise ValueError(
                "source_weights must be 'auto', None, a path or a state dict if source is a "
                f"module, which brings its own weights; got {weights!r}."
            )
        state = None if weights is None or weights == "auto" else _read_state(weights)
        origin = Origin(type(source).__name__, "module")
        return copy.deepcopy(source), state, IMAGENET, origin
    of_torchvision = source in list_models(module=torchvision.models)
    if source not in BUNDLES and not of_torchvision:
        raise ValueError(
            f"source must be {', '.join(map(repr, BUNDLES))}, another classification model of "
            "torchvision (torchvision.models.list_models() names them) or an nn.Module; got "
            f"{source!r}."
        )
    bundle = BUNDLES.get(source)
    if bundle is None and weights in ("auto", "bundled"):
        raise ValueError(
            f"source_weights must be 'imagenet', a path, a state dict or None for {source!r}, "
            f"since only {' and '.join(map(repr, BUNDLES))} come with weights; got {weights!r}."
        )
    if weights == "imagenet" and not of_torchvision:
        raise ValueError(
            f"source_weights must be 'bundled', a path, a state dict or None for {source!r}, "
            f"which torchvision does not have; got {weights!r}."
        )
    build, normalization = _of_torchvision(source) if bundle is None else bundle[:2]
    if weights == "imagenet":
        return _download(source, seed), None, normalization, Origin(source, "imagenet")
    if weights is None:
        warn(
            f"source_weights=None gives {source!r} random weights; the features of an untrained "
            "source say little about what is normal."
        )
        state, kind = None, "random"
    elif weights in ("auto", "bundled"):
        state, kind = _read_bundled(source), "bundled"
    else:
        state, kind = _read_state(weights), "given"
    # the constructors of some other networks compute, which fails on the meta device
    on_meta = bundle is not None and state is not None
    with torch.device("meta") if on_meta else forked_rng(seed):
        network = build()
    if hasattr(network, "transform_input"):  # as torchvision's own weights need it
        vars(network)["transform_input"] = True
    return network, state, normalization, Origin(source, kind)


def _of_torchvision(source: str) -> tuple[Callable[[], nn.Module], Normalization]:
    """Return what builds a network of torchvision's, and its input."""
    preset = get_model_weights(source).DEFAULT.transforms()
    normalization = Normalization(tuple(preset.mean), tuple(preset.std))
    return partial(get_model, source, weights=None), normalization


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
            f"{' or '.join(map(repr, BUNDLES))} as source, whose weights come with skmkd."
        ) from error


def _read_bundled(source: str) -> State:
    bundle = BUNDLES[source]
    content = (resources.files("skmkd") / "weights" / bundle.file).read_bytes()
    if hashlib.sha256(content).hexdigest() != bundle.sha256:
        raise OSError(f"The bundled weights {bundle.file} are damaged; reinstall skmkd.")
    if bundle.file.endswith(".safetensors"):
        state = load(content)
    else:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {bundle.rename(name): tensor for name, tensor in state.items()}


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
