"""MKD's cloner networks, built from a description that follows from the source's stages."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import log2
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from skmkd._maps.discrepancy import Features
from skmkd._networks.layers import Stage
from skmkd._networks.precision import BFloat16, materialize

COMPACT_WIDTH = 16  # channels of the convolutions whose output is not a critical layer's
CHUNK_BYTES = 2**24  # of the output of a convolution on a CPU
SHALLOW_DEPTH, DEEP_DEPTH = 2, 3  # convolutions per block up to stride 4, and beyond, as in VGG-16


class Block(NamedTuple):
    """Convolutions followed by a max-pool."""

    widths: tuple[int, ...]  # output channels of the convolutions
    grid: tuple[int, int]  # height and width of the output
    layer: str | None  # the critical layer that the output is compared with
    signed: bool = False  # whether that layer has negative values, so that no ReLU ends the block


def cloner_blocks(
    stages: Sequence[Stage],
    image_size: tuple[int, int],
    kind: str,
    signed: Collection[str] = (),
) -> list[Block]:
    """Describe a VGG-like cloner of a source, with one block per stage.

    For VGG-16 these are the paper's (Fig. 2): for "compact" 16,16 | 16,128 | 16,16,256 |
    16,16,512 | 16,16,512, and for "equal" the widths of VGG-16 itself.
    """
    blocks = []
    for stage in stages:
        halvings = round(log2(image_size[0] / stage.grid[0]))
        depth = SHALLOW_DEPTH if halvings <= 2 else DEEP_DEPTH
        width = COMPACT_WIDTH if kind == "compact" else stage.channels
        last = stage.channels if stage.critical else width
        widths = (width,) * (depth - 1) + (last,)
        layer = stage.layer if stage.critical else None
        blocks.append(Block(widths, stage.grid, layer, stage.layer in signed))
    return blocks


class Cloner(nn.Module):
    """Map images (n, 3, H, W) to a dict of critical layer -> activations, as the source does.

    No convolution has a bias, so that the output cannot be constant (section 3.2).
    `architecture` holds the arguments of the constructor.
    """

    def __init__(self, blocks: Sequence[Block], image_size: tuple[int, int]) -> None:
        super().__init__()
        self.architecture = (tuple(blocks), image_size)
        channels = [3, *(block.widths[-1] for block in blocks)]
        grids = [image_size, *(block.grid for block in blocks)]
        self.blocks = nn.ModuleList(
            _block(inputs, grid, block)
            for inputs, grid, block in zip(channels, grids, blocks, strict=False)
        )

    def forward(self, images: Tensor) -> Features:
        """Compute the activations of every critical layer."""
        features = {}
        for block, plan in zip(self.blocks, self.architecture[0], strict=True):
            images = block(images)
            if plan.layer is not None:
                features[plan.layer] = images
        return features


def build_cloner(
    blocks: Sequence[Block], image_size: tuple[int, int], generator: torch.Generator
) -> Cloner:
    """Build a cloner with Xavier-uniform weights, drawn from a generator."""
    cloner = materialize(partial(Cloner, blocks, image_size))
    for module in cloner.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return cloner


def make_cloner(
    kind: str | nn.Module,
    stages: Sequence[Stage],
    size: tuple[int, int],
    target: Features,
    generator: torch.Generator,
) -> nn.Module:
    """Copy the cloner of a user, or build one that gives activations like the target's.

    Raises
    ------
    ValueError
        If it has nothing to learn.
    """
    if isinstance(kind, nn.Module):
        cloner = copy.deepcopy(kind)
    else:
        signed = {layer for layer, activations in target.items() if activations.min() < 0}
        cloner = build_cloner(cloner_blocks(stages, size, kind, signed), size, generator)
    if not any(p.requires_grad for p in cloner.parameters()):
        raise ValueError("cloner must have a parameter that requires a gradient.")
    return cloner


def check_cloner_output(output: Any, target: Features) -> None:
    """Check that a cloner returns every critical layer in the shape that the source has."""
    if not isinstance(output, Mapping):
        raise ValueError(
            "cloner must return a dict of critical layer -> activations; got "
            f"{type(output).__name__}."
        )
    for layer, activations in target.items():
        got = tuple(output[layer].shape[1:]) if layer in output else None
        if got != (expected := tuple(activations.shape[1:])):
            raise ValueError(
                f"cloner must return activations of shape (C, h, w) = {expected} for critical "
                f"layer {layer!r}; got {got}."
            )


def _block(channels: int, grid: tuple[int, int], block: Block) -> nn.Sequential:
    """Build conv-norm-ReLU units and a pool; the last unit has no norm, as in the source.

    The last ReLU follows the pool instead of preceding it: outputs and gradients are the same,
    for a quarter of the work.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((channels, *block.widths)):
        convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    tail = [layers[-3], _pool(grid, block.grid), *([] if block.signed else [layers[-1]])]
    return nn.Sequential(*layers[:-3], ChunkedBlock(*tail))


class ChunkedBlock(nn.Sequential):
    """A convolution, a pool and a ReLU that run on chunks of the batch on a CPU.

    None of them mixes images. The output of the convolution is the largest tensor of a cloner,
    and glibc maps and unmaps memory for each tensor above 32 MiB, which takes longer than the
    computation.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Compute the whole batch."""
        run, convolution = super().forward, cast(nn.Conv2d, self[0])
        size = convolution.out_channels * images[0, 0].numel() * images.element_size()
        n = max(1, CHUNK_BYTES // size)
        if len(images) <= n or images.device.type != "cpu":
            return run(images)
        return torch.cat([run(chunk) for chunk in images.split(n)])


def plain_copy(network: nn.Module) -> nn.Module:
    """Copy a network that no longer learns, in float32, for engines that need no chunks.

    Weights that were rounded stay so.
    """
    inner = network.network if isinstance(network, BFloat16) else network
    copied = copy.deepcopy(inner).float().eval().requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, ChunkedBlock):
            module.__class__ = nn.Sequential  # type: ignore[assignment]
    return copied


def _pool(before: tuple[int, int], after: tuple[int, int]) -> nn.Module:
    """Return a max-pool from one grid to another, adaptive if no plain one gives that grid."""
    stride = max(1, round(before[0] / after[0]))
    if stride == 1 and before == after:
        return nn.Identity()
    for ceil_mode in (False, True):
        sides = tuple(-(-side // stride) if ceil_mode else side // stride for side in before)
        if sides == after:
            kernel = (min(stride, before[0]), min(stride, before[1]))
            return nn.MaxPool2d(kernel, stride, ceil_mode=ceil_mode)
    return nn.AdaptiveMaxPool2d(after)
