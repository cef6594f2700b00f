"""Quicker forms of convolutions and pools that nothing is learned from any more."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.utils import _pair
from torch.nn.utils import fuse_conv_bn_eval

from skmkd._maps.attribution import RECTIFIERS
from skmkd._networks.precision import is_native
from skmkd._runtime import CPU

POINTWISE: dict[str | None, tuple[Any, ...]] = {  # oneDNN's names, and limits
    None: ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
}
TENSOR_CORES = 8  # channels that NVIDIA's take at once; images of 3 are left to slower units
PACKED: MutableMapping[nn.Module, tuple[tuple[int, ...], Tensor]] = WeakKeyDictionary()


class FusedConv(nn.Conv2d):
    """A convolution with the activation behind it, in one pass over memory if nothing is learned.

    On a CPU, oneDNN computes with weights in a layout of its own, which depends on the size of the
    images. They are brought to it once for a size: by itself it would do so at every call, which
    may take a hundred times as long as to compute, and choose how to compute by the batch's size.
    """

    activation: str | None = None  # "relu" or "relu6"

    def forward(self, images: Tensor) -> Tensor:  # (n, C, H, W)
        """Compute the convolution and its activation."""
        settings: Any = self.stride, self.padding, self.dilation, self.groups
        dtype = self.weight.dtype
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._in_steps(images, self.weight)
        if images.device.type == "cpu" and torch.backends.mkldnn.is_available():
            stride, padding, *others = settings
            packed, bias = _packed(self, images.shape[1:])
            return torch.ops.mkldnn._convolution_pointwise(
                images.to(dtype).to(packed.dtype), packed, bias, padding, stride, *others,
                *POINTWISE[self.activation],
            ).to(dtype)  # fmt: skip
        nvidia = images.device.type == "cuda" and torch.version.cuda is not None
        if not (nvidia and dtype == torch.bfloat16 and is_native(images.device)):
            return self._in_steps(images, self.weight)
        rows, weight = images.to(dtype), self.weight
        if self.groups == 1 and (missing := TENSOR_CORES - rows.shape[1]) > 0:
            rows, weight = (F.pad(each, (0, 0, 0, 0, 0, missing)) for each in (rows, weight))
        if self.activation == "relu":
            return torch.cudnn_convolution_relu(rows, weight, self.bias, *settings)
        return self._in_steps(rows, weight)

    def _in_steps(self, images: Tensor, weight: Tensor) -> Tensor:
        output = self._conv_forward(images, weight, self.bias)
        if self.activation == "relu":
            return F.relu(output, inplace=True)
        return F.relu6(output) if self.activation == "relu6" else output


class FastMaxPool(nn.MaxPool2d):
    """A max-pool of windows that do not overlap, without the indices that a gradient needs.

    On a GPU, torch computes these in any case.
    """

    def forward(self, images: Tensor) -> Tensor:  # (n, C, H, W)
        """Compute the maxima."""
        side, (n, channels, height, width) = _pair(self.stride)[0], images.shape
        whole = height % side == width % side == 0
        if torch.is_grad_enabled() or images.device.type != "cuda" or not whole:
            return super().forward(images)
        grid = height // side, width // side
        maxima = torch.empty(
            n, channels, *grid, dtype=images.dtype, device=images.device,
            memory_format=torch.channels_last,
        )  # fmt: skip
        windows = images.unflatten(2, (grid[0], side)).unflatten(4, (grid[1], side))
        return torch.amax(windows, (3, 5), out=maxima)


def version(tensor: Tensor) -> tuple[int, int]:
    """Return what is another once a tensor is another, or has changed other than by `.data`."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _packed(convolution: nn.Conv2d, size: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Return weights, in oneDNN's layout for images of a size (C, H, W), and biases.

    The layout of the last size is kept, as long as the weights do not change. Where the CPU
    computes in bfloat16 much slower than in float32, they are brought to float32.
    """
    weight, bias = convolution.weight, convolution.bias
    dtype = weight.dtype if is_native(CPU) else torch.float32
    state = *version(weight), *size
    if (known := PACKED.get(convolution)) is None or known[0] != state:
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight.to(dtype), convolution.padding, convolution.stride, convolution.dilation,
            convolution.groups, [1, *size],
        )  # fmt: skip
        known = PACKED[convolution] = state, packed
    return known[1], bias if bias is None else bias.to(dtype)


def fuse(network: fx.GraphModule) -> None:
    """Fuse the convolutions of a graph, each with an activation that alone uses it.

    Parameters keep their names.
    """
    for name, module in list(network.named_modules()):
        if (quicker := _quicker(module)) is not module:
            network.set_submodule(name, quicker)
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
            and not (before.transposed and before.groups > 1)  # torch cannot
        ):
            done[-1] = fuse_conv_bn_eval(before, layer, before.transposed)
        elif isinstance(layer, nn.ReLU) and isinstance(before, FusedConv):
            before.activation = "relu"
        else:
            done.append(_quicker(layer))
    return [part for layer in done for part in _parts(layer)]


def _parts(layer: nn.Module) -> list[nn.Module]:
    """Return a transposed convolution whose windows lie side by side as a plain one and a shuffle.

    oneDNN would choose how to compute it by the size of the batch. Others stay as they are.
    """
    if not (
        type(layer) is nn.ConvTranspose2d
        and layer.groups == 1
        and layer.output_padding == (0, 0)
        and _has_separate_windows(layer)
    ):
        return [layer]
    side, bias = _pair(layer.stride)[0], layer.bias
    inputs, outputs = layer.weight.shape[:2]
    with torch.device("meta"):
        plain = FusedConv(inputs, outputs * side**2, 1, bias=bias is not None)
    plain.weight = nn.Parameter(
        layer.weight.flatten(1)[..., None, None].transpose(0, 1).contiguous(), requires_grad=False
    )
    if bias is not None:
        plain.bias = nn.Parameter(bias.repeat_interleave(side**2), requires_grad=False)
    return [plain, nn.PixelShuffle(side)]


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is a convolution of the kind that can be fused."""
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and not _has_hooks(module)
    )


def _has_separate_windows(layer: nn.MaxPool2d | nn.ConvTranspose2d) -> bool:
    """Return whether the windows of a layer are squares, side by side, without padding."""
    sides = {*_pair(layer.kernel_size), *_pair(layer.stride)}
    plain = _pair(layer.padding) == (0, 0) and _pair(layer.dilation) == (1, 1)
    return len(sides) == 1 and plain and not _has_hooks(layer)


def _has_hooks(module: nn.Module) -> bool:
    """Return whether its user has a module do more than it does by itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _quicker(module: nn.Module) -> nn.Module:
    """Return the quicker form of a module that computes the same, or itself if there is none."""
    if _is_plain(module):
        kind: type[nn.Module] = FusedConv
    elif (
        type(module) is nn.MaxPool2d and not module.return_indices and _has_separate_windows(module)
    ):
        kind = FastMaxPool
    else:
        return module
    quicker: Any = copy.copy(module)
    quicker.__class__ = kind
    return quicker
