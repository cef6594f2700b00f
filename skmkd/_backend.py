"""Where and how tensors are computed, without touching the caller's global state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import nn

CPU = torch.device("cpu")


def resolve_device(device: str) -> torch.device:
    """Return the torch device that a name stands for, "auto" being the fastest here.

    Raises
    ------
    ValueError
        If torch does not know the device or cannot reach it.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        named = torch.device(device)
        torch.ones(1, device=named).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device must be 'auto' or a device that torch can use here; got {device!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return named


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """Draw one seed; ``None`` takes fresh entropy and leaves numpy's global generator alone."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    return int(check_random_state(random_state).randint(2**31 - 1))


def private_generator(seed: int) -> torch.Generator:
    """Return a generator of its own on the CPU: the same draws on every device."""
    return torch.Generator(CPU).manual_seed(seed)


@contextmanager
def forked_rng(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Let layers draw from torch's global generators, seeded, then put these back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def plain_arithmetic(gradients: bool, device: torch.device) -> Iterator[None]:
    """Compute the same whatever modes, autocast and default device the caller has set."""
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(gradients),
        torch.autocast("cpu", enabled=False),
        torch.autocast(device.type, enabled=False),
        torch.device("cpu"),
    ):
        yield


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Put a network on a device, in float32 and in the channels-last layout."""
    return network.to(device, torch.float32).to(memory_format=torch.channels_last)


def portable_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return an estimator's state with each network that is not on the CPU copied there."""

    def portable(value: Any) -> Any:
        if isinstance(value, nn.Module) and any(p.device.type != "cpu" for p in value.parameters()):
            return copy.deepcopy(value).cpu()
        return value

    return {name: portable(value) for name, value in state.items()}


def restored_device(device: torch.device) -> torch.device:
    """Return the device a fitted model was on, or the best one here if there is none such."""
    try:
        return resolve_device(str(device))
    except ValueError:
        return resolve_device("auto")
