"""Cloner networks: architecture as data, derived from what the source's stages look like."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import log2
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from skmkd._maps.discrepancy import Features
from skmkd._networks.layers import Stage
from skmkd._networks.precision import materialize

COMPACT_WIDTH = 16  # channels of every convolution that no critical layer has to match
PIECE_BYTES = 2**24  # of a convolution's output, computed at once on a CPU
SHALLOW_DEPTH, DEEP_DEPTH = 2, 3  # convolutions a block: VGG-16's, up to a stride of 4 and past it


class Block(NamedTuple):
    """Convolutions of given widths, then a pool down to a grid."""

    widths: tuple[int, ...]
    grid: tuple[int, int]
    layer: str | None  # the critical layer that this block's output answers to
    signed: bool = False  # whether that layer goes below zero, so that no ReLU may end the block


def cloner_blocks(
    stages: Sequence[Stage],
    image_size: tuple[int, int],
    kind: str,
    signed: Collection[str] = (),
) -> list[Block]:
    """Describe a VGG-like cloner of a source, one block a stage.

    For VGG-16 these are the paper's (Fig. 2): compact 16,16 | 16,128 | 16,16,256 | 16,16,512 |
    16,16,512, and equal VGG-16's own widths.
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
    """Images (n, 3, H, W) to a dict of critical layer -> activations, as the source gives.

    No convolution has a bias, since a constant output would need no input (section 3.2).
    `architecture` holds what the cloner was built from.
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
    """Build a cloner and draw its weights, Xavier-uniform, from a private generator."""
    cloner = materialize(partial(Cloner, blocks, image_size))
    for module in cloner.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return cloner


def check_cloner_output(answer: Any, target: Features) -> None:
    """Check that a cloner gives every critical layer in the source's shape."""
    if not isinstance(answer, Mapping):
        raise ValueError(
            "cloner must return a dict of critical layer -> activations; got "
            f"{type(answer).__name__}."
        )
    for layer, activations in target.items():
        got = tuple(answer[layer].shape[1:]) if layer in answer else None
        if got != (expected := tuple(activations.shape[1:])):
            raise ValueError(
                f"cloner must give activations of shape (C, h, w) = {expected} at critical layer "
                f"{layer!r}; got {got}."
            )


def _block(channels: int, grid: tuple[int, int], block: Block) -> nn.Sequential:
    """Build conv-norm-ReLU units; the last has no norm, to match the source's plain ReLU.

    The last ReLU follows the pool instead of preceding it: the same numbers and gradients from
    a quarter of the work.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((channels, *block.widths)):
        layers += [_convolution(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    tail = [layers[-3], _pool(grid, block.grid), *([] if block.signed else [layers[-1]])]
    return nn.Sequential(*layers[:-3], _Piecewise(*tail))


class _Piecewise(nn.Sequential):
    """A convolution and what follows, run on pieces of a batch: images are apart here.

    A batch's activations before the pool are the largest of all. The C library of Linux maps
    fresh memory for each tensor past 32 MiB and returns it at once, which takes longer than to
    compute its numbers.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Compute the whole batch."""
        run, convolution = super().forward, cast(nn.Conv2d, self[0])
        size = convolution.out_channels * images[0, 0].numel() * images.element_size()
        n = max(1, PIECE_BYTES // size)
        if len(images) <= n or images.device.type != "cpu":
            return run(images)
        return torch.cat([run(piece) for piece in images.split(n)])


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)


def _pool(before: tuple[int, int], after: tuple[int, int]) -> nn.Module:
    """Return the max-pool to another grid: plain where the sides divide, else adaptive."""
    step = max(1, round(before[0] / after[0]))
    if step == 1 and before == after:
        return nn.Identity()
    for ceil_mode in (False, True):
        sides = tuple(-(-side // step) if ceil_mode else side // step for side in before)
        if sides == after:
            return nn.MaxPool2d(step, ceil_mode=ceil_mode)
    return nn.AdaptiveMaxPool2d(after)
