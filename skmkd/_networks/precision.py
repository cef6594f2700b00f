"""Where and in which number format a network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from skmkd._maps.discrepancy import Features
from skmkd._runtime import computes_bfloat16

Network = TypeVar("Network", bound=nn.Module)

PRODUCTS = (
    torch.conv1d, torch.conv2d, torch.conv3d, F.linear, torch.matmul,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
)  # fmt: skip
is_native = cache(computes_bfloat16)


def to_device(network: Network, device: torch.device) -> Network:
    """Move a network to a device, in float32 and in the channels-last layout."""
    return network.to(device, torch.float32).to(memory_format=torch.channels_last)


def materialize(make: Callable[[], Network]) -> Network:
    """Build a network on the CPU with uninitialized float32 weights.

    The usual constructors would draw from torch's global generator, in the global default dtype.
    """
    with torch.device("meta"):
        network = make()
    return network.to(torch.float32).to_empty(device="cpu")


def run_in_batches(
    network: Callable[[torch.Tensor], Features], images: torch.Tensor, size: int
) -> Features:
    """Compute the features of any number of images (n, 3, H, W), in batches of a size at most."""
    parts = [network(part) for part in images.split(size)]
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@contextmanager
def products_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute matrix products and convolutions in a number format, "float32" or "bfloat16".

    In bfloat16 other operations follow the rules of autocast. Its cache is off: it would keep the
    bfloat16 copies of the weights until the outermost autocast ends, and with them those of the
    first training step.
    """
    if precision == "float32":
        yield
        return
    products = nullcontext() if is_native(device) else _RoundedProducts(device.type)
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False), products:
        yield


class BFloat16(nn.Module):
    """A frozen network whose products are computed in bfloat16, and their weights stored in it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for module in network.modules():
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                module.to(torch.bfloat16)
        self.network = network

    def forward(self, inputs: Any) -> Any:
        """Run the network."""
        with products_in("bfloat16", next(self.parameters()).device):
            return self.network(inputs)


class _RoundedProducts(TorchFunctionMode):
    """Emulate bfloat16 products in float32 on hardware where bfloat16 would be much slower.

    Factors and results are rounded to bfloat16; sums are in float32, as in the native products.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one of torch's functions."""
        kwargs = kwargs or {}
        if function not in PRODUCTS:
            return function(*args, **kwargs)
        with torch.autocast(self.device_type, enabled=False):
            args, kwargs = tree_map_only(
                torch.Tensor, lambda factor: factor.to(torch.bfloat16).float(), (args, kwargs)
            )
            return function(*args, **kwargs).to(torch.bfloat16)
