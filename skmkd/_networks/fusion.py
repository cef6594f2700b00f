"""A convolution and the ReLU behind it, as one operation of a GPU."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from skmkd._maps.attribution import RECTIFIERS


class ConvReLU(nn.Conv2d):
    """A convolution with its ReLU: in one pass over the memory of a GPU, if nothing is learned."""

    def forward(self, images: Tensor) -> Tensor:  # (n, C, H, W)
        """Compute the rectified convolution."""
        if images.device.type != "cuda" or torch.is_grad_enabled():
            return F.relu(super().forward(images), inplace=True)
        settings: Any = self.stride, self.padding, self.dilation, self.groups
        rows = images.to(self.weight.dtype)
        return torch.cudnn_convolution_relu(rows, self.weight, self.bias, *settings)


def fuse(network: fx.GraphModule) -> None:
    """Put each convolution of a graph together with a ReLU that alone uses it.

    Parameters keep their names.
    """
    modules = dict(network.named_modules())
    calls = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    for node in network.graph.nodes:
        if not _is_relu(node, modules):
            continue
        (before, *_) = node.args
        convolution = modules.get(before.target) if before.op == "call_module" else None
        if (
            type(convolution) is nn.Conv2d
            and convolution.padding_mode == "zeros"
            and not isinstance(convolution.padding, str)
            and calls[before.target] == len(before.users) == 1
        ):
            fused = copy.copy(convolution)
            fused.__class__ = ConvReLU
            network.set_submodule(before.target, fused)
            node.replace_all_uses_with(before)
            network.graph.erase_node(node)
    network.recompile()


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return node.op == "call_function" and node.target in RECTIFIERS
