"""Saving and loading of fitted detectors: parameters, fitted attributes and networks."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor, nn

from skmkd._files.archive import read_archive, write_archive
from skmkd._files.migration import upgrade
from skmkd._maps.usual import Usual
from skmkd._networks.cloners import Cloner
from skmkd._networks.forward import ForwardCloner
from skmkd._networks.precision import to_device
from skmkd._networks.reverse import ReverseCloner
from skmkd._networks.sources import Origin, fingerprint, rebuild_source, source_state
from skmkd._runtime import plain_arithmetic, resolve_device, restored_device

Weights = str | os.PathLike[str] | Mapping[str, Tensor]
Sources = nn.Module | Weights | Mapping[str, nn.Module | Weights] | None
Modules = nn.Module | Mapping[str, nn.Module] | None
CLONERS = {network.__name__: network for network in (Cloner, ForwardCloner, ReverseCloner)}
# classes whose attribute `architecture` holds their constructor's arguments, all plain values
FEATURE_STORES = {"memory", "feature_store"}  # of pickles, to which no file may lead


def save_detector(
    detector: BaseEstimator, path: str | os.PathLike[str], include_source: bool
) -> None:
    """Write a fitted detector into one file; see `SavingMixin.save`."""
    write_archive(path, *_described(detector, include_source))


def _described(
    detector: BaseEstimator, include_source: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the values and tensors that a detector is restored from."""
    if not type(detector).__module__.startswith("skmkd."):
        raise ValueError(
            f"save stores skmkd's own classes, since load knows no others; got a "
            f"{type(detector).__name__}. Pickle it instead."
        )
    parameters = detector.get_params(deep=False)
    fitted = {name: value for name, value in vars(detector).items() if name not in parameters}
    values = {
        "detector": type(detector).__name__,
        "parameters": {n: value for n, value in parameters.items() if not _is_left_out(n, value)},
        "attributes": fitted,
    }
    if "named_detectors_" in fitted:
        members = fitted.pop("named_detectors_")
        described = [(name, *_described(each, include_source)) for name, each in members.items()]
        values["detectors"] = [(name, member) for name, member, _ in described]
        return values, {
            f"{number}.{name}": tensor
            for number, (_, _, tensors) in enumerate(described)
            for name, tensor in tensors.items()
        }
    source, cloner = source_state(fitted.pop("source_")), fitted.pop("cloner_")
    tensors = {f"cloner_.{name}": tensor for name, tensor in _cloner_state(cloner).items()}
    if (usual := fitted.pop("_usual")) is not None:  # large images' would not fit into the header
        tensors |= {f"usual_.{name}": tensor for name, tensor in usual._asdict().items()}
    if include_source and fitted["_origin"].weights != "module":
        tensors |= {f"source_.{name}": tensor for name, tensor in source.items()}
    own = CLONERS.get(type(cloner).__name__) is type(cloner)
    description = {
        "class": type(cloner).__name__,
        "architecture": cloner.architecture if own else None,
    }
    networks = {"source_sha256": fingerprint(source), "networks": {"cloner_": description}}
    return values | networks, tensors


def load_detector(
    path: str | os.PathLike[str],
    detectors: Mapping[str, type[BaseEstimator]],
    source: Sources,
    cloner: Modules,
    device: str | None,
) -> Any:
    """Return the detector in a file, of one of the named classes; see `load`."""
    values, tensors, version = read_archive(path)
    file = repr(os.fspath(path))
    known = partial(_known_class, file, detectors)
    detector_class = known(values)
    values = upgrade(values, version)
    if "detectors" not in values:
        return _restored(file, detector_class, values, tensors, source, cloner, device)
    _check_names(file, values, detector_class)
    names = [name for name, _ in values["detectors"]]
    sources = _of_each(file, "source", source, names)
    cloners = _of_each(file, "cloner", cloner, names)
    members = {}
    for number, (name, each) in enumerate(values["detectors"]):
        own = _with_prefix(tensors, f"{number}.")
        given = sources.get(name), cloners.get(name), device
        members[name] = _restored(file, known(each), each, own, *given)
    learned = {"detectors": [(name, clone(member)) for name, member in members.items()]}
    ensemble = detector_class(**values["parameters"] | learned)
    vars(ensemble).update(values["attributes"], named_detectors_=members)
    return ensemble


def _known_class(
    file: str, detectors: Mapping[str, type[BaseEstimator]], values: Mapping[str, Any]
) -> type[BaseEstimator]:
    """Return the class of the detector that values are of."""
    if (name := values["detector"]) not in detectors:
        raise ValueError(f"{file} holds a {name}; this skmkd knows {', '.join(detectors)}.")
    return detectors[name]


def _of_each(file: str, name: str, given: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """Return what an argument of load gives to each detector of an ensemble, by its name."""
    given = {} if given is None else given
    if not isinstance(given, Mapping) or not set(given) <= set(names):
        got = list(given) if isinstance(given, Mapping) else given
        raise ValueError(
            f"{name} must be a dict with keys among {names}, the detectors of the ensemble in "
            f"{file}; got {got!r}."
        )
    return given


def _restored(
    file: str,
    detector_class: type[BaseEstimator],
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    source: Any,
    cloner: Any,
    device: str | None,
) -> Any:
    """Return a detector with networks of its own from its values and tensors."""
    _check_names(file, values, detector_class)
    if "cloner_" not in values["networks"]:
        raise ValueError(f"{file} holds no cloner_.")
    parameters, fitted = values["parameters"], values["attributes"]
    if device is None:
        target = restored_device(fitted["device_"], parameters.get("device", "auto"))
    else:
        target = resolve_device(device)
    fitted["device_"] = target
    with plain_arithmetic(True, target):
        saved = _with_prefix(tensors, "source_.")
        weights = _source_weights(file, fitted["_origin"], source, saved)
        fitted["source_"] = _source(file, weights, fitted, values["source_sha256"])
        network = _cloner(file, values["networks"]["cloner_"], cloner)
        _load_cloner_state(file, network, _with_prefix(tensors, "cloner_."))
        fitted["cloner_"] = to_device(network, target).eval()
    usual = _with_prefix(tensors, "usual_.")
    fitted["_usual"] = Usual(**usual) if usual else None
    if fitted["_origin"].weights == "module":
        parameters.setdefault("source", source)
    elif "source_weights" not in parameters:
        state = source_state(fitted["source_"])
        parameters["source_weights"] = {n: tensor.cpu() for n, tensor in state.items()}
    if cloner is not None:
        parameters.setdefault("cloner", cloner)
    detector = detector_class(**parameters)
    vars(detector).update(fitted)
    return detector


def _check_names(file: str, values: Mapping[str, Any], detector_class: type[BaseEstimator]) -> None:
    """Check that a file replaces no method and no property, and names no feature store."""
    parameters = set(detector_class._get_param_names())
    attributes = {n for n in values["attributes"] if hasattr(detector_class, n) or n in parameters}
    forbidden = attributes | FEATURE_STORES & set(values["parameters"])
    forbidden |= set(values.get("networks", ())) - {"cloner_"}
    if forbidden:
        raise ValueError(f"{file} sets {min(forbidden)}, which no file may.")


def _is_left_out(name: str, value: Any) -> bool:
    """Return whether a parameter is one that files do not hold, so that load sets another value."""
    return (
        name in (*FEATURE_STORES, "detectors")
        or isinstance(value, (nn.Module, np.random.RandomState))
        or (name == "source_weights" and isinstance(value, Mapping))
    )


def _cloner_state(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    if other := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"save stores tensors only; {other[0]!r} in the state of cloner_ is none.")
    return state


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _source_weights(
    file: str, origin: Origin, source: nn.Module | Weights | None, saved: dict[str, Tensor]
) -> nn.Module | Weights:
    """Return what to build the source from: the argument of load, else the file or the bundle."""
    if origin.weights == "module" and not isinstance(source, nn.Module):
        raise ValueError(
            f"source must be the module that {file} was saved with, a {origin.name}: only its "
            f"hash is in the file; got {source!r}."
        )
    if source is not None:
        return source
    if saved:
        return saved
    if origin.weights == "bundled":
        return "bundled"
    raise ValueError(
        f"source must be the weights of {origin.name!r}, or a module that has them: {file} was "
        "saved without; got None."
    )


def _source(
    file: str, weights: nn.Module | Weights, fitted: Mapping[str, Any], sha256: str
) -> nn.Module:
    """Build the source and check that its weights are those that the detector was fitted with."""
    try:
        network = rebuild_source(
            fitted["_origin"], weights, fitted["critical_layers_"], fitted["device_"],
            fitted["precision_"],
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"source must fit what {file} was saved with: {error}") from error
    if (got := fingerprint(source_state(network))) != sha256:
        raise ValueError(
            f"source must have the weights that {file} was saved with, of SHA-256 {sha256}; got "
            f"{got}."
        )
    return network


def _cloner(file: str, description: Mapping[str, Any], cloner: nn.Module | None) -> nn.Module:
    """Return the cloner, its weights still to be loaded."""
    name, architecture = description["class"], description["architecture"]
    if architecture is not None:
        if cloner is not None:
            raise ValueError(f"cloner must be None, since {file} holds its own; got {cloner!r}.")
        with torch.device("meta"):
            network = CLONERS[name](*architecture)
        return network.to_empty(device="cpu")
    if not isinstance(cloner, nn.Module):
        raise ValueError(
            f"cloner must be a module like that which {file} was saved with, a {name}: only its "
            f"weights are in the file; got {cloner!r}."
        )
    return copy.deepcopy(cloner)


def _load_cloner_state(file: str, network: nn.Module, state: dict[str, Tensor]) -> None:
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
