"""Convolutions that nothing is learned from any more, as one operation with what follows them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_eval

from skmkd._maps.attribution import RECTIFIERS
from skmkd._networks.precision import is_native
from skmkd._runtime import CPU

POINTWISE: dict[str | None, tuple[Any, ...]] = {  # oneDNN's names, and limits
    None: ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
}
PACKED: MutableMapping[nn.Module, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()


class FusedConv(nn.Conv2d):
    """A convolution with the activation behind it, in one pass over memory if nothing is learned.

    On a CPU, oneDNN computes with weights in a layout of its own. They are brought to it once: by
    itself it would do so at every call, and choose how to compute by the size of the batch.
    """

    activation: str | None = None  # "relu" or "relu6"

    def forward(self, images: Tensor) -> Tensor:  # (n, C, H, W)
        """Compute the convolution and its activation."""
        settings: Any = self.stride, self.padding, self.dilation, self.groups
        dtype = self.weight.dtype
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._in_steps(images)
        if images.device.type == "cpu" and _computes(dtype):
            stride, padding, *others = settings
            packed, rows = _packed(self), images.to(dtype)
            return torch.ops.mkldnn._convolution_pointwise(
                rows, packed, self.bias, padding, stride, *others, *POINTWISE[self.activation]
            )
        nvidia = images.device.type == "cuda" and torch.version.cuda is not None
        computes = nvidia and dtype == torch.bfloat16 and is_native(images.device)
        if computes and self.activation == "relu":
            rows = images.to(dtype)
            return torch.cudnn_convolution_relu(rows, self.weight, self.bias, *settings)
        return self._in_steps(images)

    def _in_steps(self, images: Tensor) -> Tensor:
        output = super().forward(images)
        if self.activation == "relu":
            return F.relu(output, inplace=True)
        return F.relu6(output) if self.activation == "relu6" else output


def _computes(dtype: torch.dtype) -> bool:
    """Return whether this build's oneDNN computes in a number format on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and is_native(CPU))


def version(tensor: Tensor) -> tuple[int, int]:
    """Return what is another once a tensor is another, or has changed other than by `.data`."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _packed(convolution: nn.Conv2d) -> Tensor:
    """Return the weights of a convolution in oneDNN's layout, as long as they do not change."""
    weight = convolution.weight
    state = version(weight)
    if (known := PACKED.get(convolution)) is None or known[0] != state:
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight, convolution.padding, convolution.stride, convolution.dilation,
            convolution.groups,
        )  # fmt: skip
        known = PACKED[convolution] = state, packed
    return known[1]


def fuse(network: fx.GraphModule) -> None:
    """Fuse the convolutions of a graph, each with an activation that alone uses it.

    Parameters keep their names.
    """
    for name, module in list(network.named_modules()):
        if _is_plain(module):
            network.set_submodule(name, _fused(module))
    modules = dict(network.named_modules())
    calls = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    for node in network.graph.nodes:
        if (activation := _activation(node, modules)) is None:
            continue
        before = node.all_input_nodes[0]
        convolution = modules.get(before.target) if before.op == "call_module" else None
        if isinstance(convolution, FusedConv) and calls[before.target] == len(before.users) == 1:
            convolution.activation = activation
            node.replace_all_uses_with(before)
            network.graph.erase_node(node)
    network.recompile()


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """Return the activation that a node of a graph computes, if it can be fused."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        kind = {nn.ReLU: "relu", nn.ReLU6: "relu6"}.get(type(module))
        return None if _has_hooks(module) else kind
    return "relu" if node.op == "call_function" and node.target in RECTIFIERS else None


def fold(network: nn.Module) -> None:
    """Fold batch norms of a network in eval mode into the convolutions before them, and fuse these.

    Layers count as following one another where they do in an `nn.Sequential`.
    """
    for child in network.children():
        fold(child)
    if isinstance(network, nn.Sequential):
        layers = _folded(network)
        del network[:]
        network.extend(layers)


def _folded(layers: Iterable[nn.Module]) -> list[nn.Module]:
    done: list[nn.Module] = []
    for layer in layers:
        before = done[-1] if done else None
        if type(layer) is nn.Sequential:
            done += layer
        elif (
            isinstance(layer, nn.BatchNorm2d)
            and isinstance(before, (nn.Conv2d, nn.ConvTranspose2d))
            and getattr(before, "activation", None) is None
        ):
            transposed = isinstance(before, nn.ConvTranspose2d)
            done[-1] = fuse_conv_bn_eval(before, layer, transposed)
        elif isinstance(layer, nn.ReLU) and isinstance(before, FusedConv):
            before.activation = "relu"
        elif _is_plain(layer):
            done.append(_fused(layer))
        else:
            done.append(layer)
    return done


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is a convolution of the kind that can be fused."""
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and not _has_hooks(module)
    )


def _has_hooks(module: nn.Module) -> bool:
    """Return whether its user has a module do more than it does by itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fused(convolution: nn.Module) -> FusedConv:
    fused: Any = copy.copy(convolution)
    fused.__class__ = FusedConv
    return fused
