"""What computes networks that no longer learn: torch or OpenVINO."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from skmkd._maps.discrepancy import Features
from skmkd._networks.cloners import Cloner
from skmkd._networks.fusion import fold, version
from skmkd._networks.openvino import compile_openvino
from skmkd._networks.precision import BFloat16, products_in
from skmkd._networks.recall import MemoryCloner

Run = Callable[[Any], Features]

OWN = (Cloner, MemoryCloner)  # cloners whose structure is known
PREPARED: MutableMapping[nn.Module, dict[Any, tuple[Any, Run]]] = WeakKeyDictionary()


def resolve_engine(engine: str, device: torch.device) -> str:
    """Return the engine that a name stands for.

    Raises
    ------
    ValueError
        If it does not compute on the device.
    """
    if engine == "openvino" and device.type != "cpu":
        raise ValueError(
            f"engine must be 'auto' or 'torch' on {device}; got 'openvino', which computes on the "
            "CPU. For that, fit or load with device='cpu'."
        )
    return "torch" if engine == "auto" else engine


def source_engine(source: nn.Module, precision: str, engine: str) -> Run:
    """Return what computes the features of a frozen source."""
    if engine == "torch":
        return source
    make = partial(compile_openvino, source, precision)
    return _prepared(source, ("openvino", precision), None, make)


def cloner_output(
    cloner: nn.Module, inputs: Any, precision: str, device: torch.device, engine: str, folded: bool
) -> Features:
    """Compute a cloner's output.

    Without gradients, OpenVINO may compute it, and batch norms are folded into convolutions if
    `folded`. A cloner of the user's is computed as it is.
    """
    engine = resolve_engine(engine, device)
    learns = torch.is_grad_enabled() or any(module.training for module in cloner.modules())
    if learns or not isinstance(cloner, OWN) or (engine == "torch" and not folded):
        with products_in(precision, device):
            return cloner(inputs)
    make = partial(compile_openvino if engine == "openvino" else _folded, cloner, precision)
    state = [version(tensor) for tensor in chain(cloner.parameters(), cloner.buffers())]
    return _prepared(cloner, (engine, precision), state, make)(inputs)


def _folded(cloner: nn.Module, precision: str) -> Run:
    """Return a copy of a cloner in a number format, its batch norms folded."""
    network = copy.deepcopy(cloner).requires_grad_(False)
    fold(network)
    return BFloat16(network) if precision == "bfloat16" else network


def _prepared(network: nn.Module, how: tuple[str, str], state: Any, make: Callable[[], Run]) -> Run:
    """Return what `make` makes of a network, made once for each state that it is in."""
    known = PREPARED.setdefault(network, {})
    if how not in known or known[how][0] != state:
        known[how] = state, make()
    return known[how][1]
