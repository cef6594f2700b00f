"""What computes networks that no longer learn: torch, a recording on a GPU, or OpenVINO."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from skmkd._locks import lock_that_forks
from skmkd._maps.discrepancy import Features
from skmkd._networks.cloners import Cloner
from skmkd._networks.fusion import fold, version
from skmkd._networks.openvino import compile_openvino
from skmkd._networks.precision import BFloat16, products_in
from skmkd._networks.recall import MemoryCloner
from skmkd._recording import Replayed, waits

Run = Callable[[Any], Features]

OWN = (Cloner, MemoryCloner)  # cloners whose structure is known
PREPARING = lock_that_forks()
PREPARED: MutableMapping[nn.Module, dict[Any, tuple[Any, Any]]] = WeakKeyDictionary()


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


def source_engine(source: nn.Module, precision: str, engine: str, replays: bool) -> Run:
    """Return what computes the features of a frozen source; a GPU may replay those of few images.

    What a source of the user's computes may not be the same each time.
    """
    if engine == "torch":
        return partial(_source_output, source) if replays else source
    make = partial(compile_openvino, source, precision)
    return _prepared(source, ("openvino", precision), None, make, frozen=True)


def _source_output(source: nn.Module, images: Tensor) -> Features:
    if not waits(images):
        return source(images)
    return _replayed(source, (), None, source, images, frozen=True)


def replayed(
    cloner: nn.Module,
    how: tuple[Any, ...],
    settings: Any,
    compute: Callable[[Any], Any],
    inputs: Any,
) -> Any:
    """Compute on a GPU, with a cloner, what is recorded the fourth time, and then replayed.

    There is a recording for each `how` and shape of the inputs. It is made anew when the settings
    or the tensors of the cloner have changed.
    """
    return _replayed(cloner, how, settings, compute, inputs)


def _replayed(
    network: nn.Module,
    how: tuple[Any, ...],
    settings: Any,
    compute: Callable[[Any], Any],
    inputs: Any,
    frozen: bool = False,
) -> Any:
    tensors = tree_leaves(inputs)
    stream = torch.cuda.current_stream(tensors[0].device).cuda_stream
    key = ("replayed", stream, *(tensor.shape for tensor in tensors), *how)
    return _prepared(network, key, settings, Replayed, frozen)(compute, inputs)


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
    make = partial(compile_openvino if engine == "openvino" else folded_copy, cloner, precision)
    return _prepared(cloner, (engine, precision), None, make)(inputs)


def folded_copy(cloner: nn.Module, precision: str) -> Run:
    """Return a copy of one of skmkd's cloners in a number format, its batch norms folded."""
    network = copy.deepcopy(cloner).requires_grad_(False)
    fold(network)
    return BFloat16(network) if precision == "bfloat16" else network


def _prepared(
    network: nn.Module,
    how: tuple[Any, ...],
    settings: Any,
    make: Callable[[], Any],
    frozen: bool = False,
) -> Any:
    """Return what `make` makes of a network, once for each state that it and settings are in.

    Of one that is frozen, the tensors are not looked at.
    """
    tensors = () if frozen else chain(network.parameters(), network.buffers())
    state = [settings, *[version(tensor) for tensor in tensors]]
    known = PREPARED.setdefault(network, {})
    if how not in known or known[how][0] != state:
        with PREPARING:  # another thread may have made it; what was recorded needs the same one
            if how not in known or known[how][0] != state:
                known[how] = state, make()
    return known[how][1]
