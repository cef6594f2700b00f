"""A fitted detector becomes a file and comes back: parameters, what was learned, networks."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from skmkd._files.archive import read_archive, write_archive
from skmkd._networks.cloners import Cloner
from skmkd._networks.forward import ForwardCloner
from skmkd._networks.precision import to_device
from skmkd._networks.reverse import ReverseCloner
from skmkd._networks.sources import Origin, fingerprint, rebuild_source, source_state
from skmkd._runtime import plain_arithmetic, resolve_device, restored_device

Weights = str | os.PathLike[str] | Mapping[str, Tensor]
NETWORKS = {network.__name__: network for network in (Cloner, ForwardCloner, ReverseCloner)}
# those whose `architecture`, as plain values, builds them again


def save_detector(
    detector: BaseEstimator, path: str | os.PathLike[str], include_source: bool
) -> None:
    """Write a fitted detector into one file; see `BaseInference.save`."""
    if not type(detector).__module__.startswith("skmkd."):
        raise ValueError(
            f"save stores skmkd's own classes, since load knows no others; got a "
            f"{type(detector).__name__}. Pickle it instead."
        )
    given = detector.get_params(deep=False)
    learned = {name: value for name, value in vars(detector).items() if name not in given}
    modules = {name: value for name, value in learned.items() if isinstance(value, nn.Module)}
    seen = source_state(modules.pop("source_"))
    tensors = {
        f"{name}.{key}": tensor
        for name, module in modules.items()
        for key, tensor in _state(module, name).items()
    }
    if include_source and learned["_origin"].weights != "module":
        tensors |= {f"source_.{key}": tensor for key, tensor in seen.items()}
    values = {
        "detector": type(detector).__name__,
        "parameters": {n: value for n, value in given.items() if not _is_left_out(n, value)},
        "attributes": {n: v for n, v in learned.items() if not isinstance(v, nn.Module)},
        "source_sha256": fingerprint(seen),
        "networks": {name: _description(module) for name, module in modules.items()},
    }
    write_archive(path, values, tensors)


def load_detector(
    path: str | os.PathLike[str],
    detectors: Mapping[str, type[BaseEstimator]],
    source: nn.Module | Weights | None,
    cloner: nn.Module | None,
    device: str | None,
) -> Any:
    """Return the detector in a file, of one of the classes given by name; see `load`."""
    values, tensors = read_archive(path)
    file = repr(os.fspath(path))
    if (name := values["detector"]) not in detectors:
        raise ValueError(f"{file} holds a {name}; this skmkd knows {', '.join(detectors)}.")
    parameters, learned = values["parameters"], values["attributes"]
    known = detectors[name]
    own = {n for n in learned if hasattr(known, n) or n in known._get_param_names()}
    if unwanted := own | {"memory"} & set(parameters):
        raise ValueError(f"{file} sets {min(unwanted)}, which no file may.")
    origin, target = learned["_origin"], learned["device_"]
    target = restored_device(target) if device is None else resolve_device(device)
    learned["device_"] = target
    with plain_arithmetic(True, target):
        given = _source_weights(file, origin, source, _part(tensors, "source_"))
        seen = _source(file, given, learned, target, values["source_sha256"])
        learned["source_"] = seen
        for name, description in values["networks"].items():
            network = _network(file, description, cloner if name == "cloner_" else None)
            _fill(file, network, _part(tensors, name))
            learned[name] = to_device(network, target).eval()
    if origin.weights == "module":
        parameters.setdefault("source", source)
    elif "source_weights" not in parameters:
        parameters["source_weights"] = {n: t.cpu() for n, t in source_state(seen).items()}
    if cloner is not None:
        parameters.setdefault("cloner", cloner)
    detector = known(**parameters)
    vars(detector).update(learned)
    return detector


def _is_left_out(name: str, value: Any) -> bool:
    """Tell a parameter that no file can or should hold, so that load puts another in its place.

    A store of features belongs to its machine and is made of pickles: no file may lead there.
    """
    return (
        name == "memory"
        or isinstance(value, (nn.Module, np.random.RandomState))
        or (name == "source_weights" and isinstance(value, Mapping))
    )


def _state(network: nn.Module, name: str) -> dict[str, Tensor]:
    state = network.state_dict()
    if other := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"save stores tensors only; {other[0]!r} in the state of {name} is none.")
    return state


def _description(network: nn.Module) -> dict[str, Any]:
    name = type(network).__name__
    known = NETWORKS.get(name) is type(network)
    return {"class": name, "architecture": network.architecture if known else None}


def _part(tensors: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    prefix = f"{network}."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _source_weights(
    file: str, origin: Origin, given: nn.Module | Weights | None, saved: dict[str, Tensor]
) -> nn.Module | Weights:
    """Return what the source can be built from: what is given, else the file's or the bundled."""
    if origin.weights == "module" and not isinstance(given, nn.Module):
        raise ValueError(
            f"source must be the module that {file} was saved with, a {origin.name}: only its "
            f"hash is in the file; got {given!r}."
        )
    if given is not None:
        return given
    if saved:
        return saved
    if origin.weights == "bundled":
        return "bundled"
    raise ValueError(
        f"source must be the weights of {origin.name!r}, or a module that has them: {file} was "
        "saved without; got None."
    )


def _source(
    file: str, given: nn.Module | Weights, learned: dict[str, Any], device: torch.device, sha: str
) -> nn.Module:
    """Return the source, if its weights are those that the detector learned with."""
    layers, precision = learned["critical_layers_"], learned["precision_"]
    try:
        network = rebuild_source(learned["_origin"], given, layers, device, precision)
    except ValueError as error:
        raise ValueError(f"source must fit what {file} was saved with: {error}") from error
    if (got := fingerprint(source_state(network))) != sha:
        raise ValueError(
            f"source must have the weights that {file} was saved with, of SHA-256 {sha}; got {got}."
        )
    return network


def _network(file: str, description: dict[str, Any], given: nn.Module | None) -> nn.Module:
    """Return a network still without the weights that it was saved with."""
    name, architecture = description["class"], description["architecture"]
    if architecture is not None:
        if given is not None:
            raise ValueError(f"cloner must be None, since {file} holds its own; got {given!r}.")
        with torch.device("meta"):
            network = NETWORKS[name](*architecture)
        return network.to_empty(device="cpu")
    if not isinstance(given, nn.Module):
        raise ValueError(
            f"cloner must be a module like that which {file} was saved with, a {name}: only its "
            f"weights are in the file; got {given!r}."
        )
    return copy.deepcopy(given)


def _fill(file: str, network: nn.Module, state: dict[str, Tensor]) -> None:
    shapes, expected = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for tensors in (network.state_dict(), state)
    )
    if different := dict(expected.items() ^ shapes.items()):
        name = min(different)
        raise ValueError(
            f"cloner must have the parameters that are in {file}, such as {name!r} of shape "
            f"{expected.get(name)}; got {shapes.get(name)}."
        )
    network.load_state_dict(state)
