"""Residual stages that halve or double the grid, of which MemKD's cloners are built."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import log2
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from skmkd._networks.layers import Stage
from skmkd._networks.precision import Network, materialize
from skmkd._networks.recall import NormalityRecall

EXPANSION = 4  # output channels of a bottleneck block by its width, as in ResNets
STEM_WIDTH = 64  # channels, as in ResNets
STEM_HALVINGS = 2  # of the grid before a ResNet's first stage


class Style(NamedTuple):
    """Kind and number of the blocks in residual stages."""

    bottleneck: bool  # blocks of 1x1, 3x3, 1x1 convolutions instead of two of 3x3
    width: int  # of the 3x3 convolution of a bottleneck, in quarters of the output channels
    depths: tuple[int, ...]  # blocks per stage, the finest grid's first

    def depth(self, halvings: int) -> int:
        """Return the number of blocks of the stage whose grid was halved this many times."""
        return self.depths[min(max(halvings - STEM_HALVINGS, 0), len(self.depths) - 1)]


OTHER_STYLE = Style(True, 1, (3,))  # for sources other than ResNets


def style_of(network: nn.Module) -> Style:
    """Return the style of a source's stages, if it is one of torchvision's ResNets."""
    if not isinstance(network, ResNet):
        return OTHER_STYLE
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    width = network.base_width * network.groups // STEM_WIDTH
    return Style(isinstance(network.layer1[0], Bottleneck), width, tuple(map(len, stages)))


def halvings(before: tuple[int, int], after: tuple[int, int]) -> int:
    """Return how many times a grid is halved to become another; negative if it is doubled."""
    return round(log2(before[0] / after[0]))


def residual_stage(
    inputs: int, grid: tuple[int, int], to: Stage, depth: int, style: Style, signed: bool = False
) -> nn.Sequential:
    """Build residual blocks from one grid to the grid and the channels of a source's stage.

    The first blocks halve or double the grid, as many times as necessary. If `signed`, the last
    block does not end with a ReLU.
    """
    n = halvings(grid, to.grid)
    scales = ["down" if n > 0 else "up"] * abs(n)
    scales += ["same"] * (depth - len(scales))
    widths = [inputs, *(to.channels for _ in scales)]
    blocks = [
        ResidualBlock(*pair, scale, style)
        for pair, scale in zip(pairwise(widths), scales, strict=True)
    ]
    blocks[-1].signed = signed
    return nn.Sequential(*blocks, Grid(to.grid))


def plain_stage(inputs: int, grid: tuple[int, int], to: Stage) -> nn.Sequential:
    """Build convolutions from one grid down to another, one per halving."""
    scales = ["down"] * halvings(grid, to.grid) or ["same"]
    widths = [inputs, *(to.channels for _ in scales)]
    layers = []
    for pair, scale in zip(pairwise(widths), scales, strict=True):
        layers += [_unit(*pair, 3, scale), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, Grid(to.grid))


def stem(image_size: tuple[int, int], grid: tuple[int, int]) -> nn.Sequential:
    """Build a ResNet's stem, from images to the first grid: a convolution, then max-pools."""
    n = halvings(image_size, grid)
    layers = [_unit(3, STEM_WIDTH, 7, "down" if n > 0 else "same"), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(3, stride=2, padding=1) for _ in range(n - 1)]
    return nn.Sequential(*layers, Grid(grid))


class ResidualBlock(nn.Module):
    """Convolutions with a shortcut (He et al., 2016), from a grid to the same, half or twice of it.

    A grid is halved by a stride, and doubled by a transposed 2x2 convolution (RD, CVPR 2022). If
    `signed` is set, the block does not end with a ReLU.
    """

    signed = False

    def __init__(self, inputs: int, outputs: int, scale: str, style: Style) -> None:
        super().__init__()
        if style.bottleneck:
            width = max(1, style.width * outputs // EXPANSION)
            units = [
                _unit(inputs, width, 1),
                _unit(width, width, 3, scale),
                _unit(width, outputs, 1),
            ]
        else:
            units = [_unit(inputs, outputs, 3, scale), _unit(outputs, outputs, 3)]
        rectified = [layer for unit in units for layer in (unit, nn.ReLU(inplace=True))]
        self.body = nn.Sequential(*rectified[:-1])
        identity = scale == "same" and inputs == outputs
        self.shortcut = nn.Identity() if identity else _unit(inputs, outputs, 1, scale)

    def forward(self, features: Tensor) -> Tensor:
        """Add the outputs of convolutions and shortcut."""
        total = self.body(features) + self.shortcut(features)
        return total if self.signed else torch.relu_(total)


class Grid(nn.Module):
    """Interpolate features bilinearly to a grid, if they are not on it already."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, features: Tensor) -> Tensor:
        """Resize."""
        if tuple(features.shape[2:]) == self.grid:
            return features
        return F.interpolate(features, self.grid, mode="bilinear", align_corners=False)


def _unit(inputs: int, outputs: int, size: int, scale: str = "same") -> nn.Sequential:
    """Build a convolution, which doubles the grid for "up" or halves it for "down", and a norm.

    A 1x1 convolution has its stride in a pool before it, which gives the same numbers: for few
    channels, the gradient of a strided one writes out of bounds in oneDNN 3 (its issue 6035).
    """
    norm = nn.BatchNorm2d(outputs)
    if scale == "up":
        return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False), norm)
    if scale == "down" and size == 1:
        return nn.Sequential(nn.MaxPool2d(1, stride=2), *_unit(inputs, outputs, 1))
    stride = 2 if scale == "down" else 1
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, norm)


def build_residual(make: Callable[[], Network], generator: torch.Generator) -> Network:
    """Build a network of residual stages with weights drawn as in ResNets (He et al., 2015)."""
    network = materialize(make)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    for module in network.modules():  # last, so that other weights do not depend on them
        if isinstance(module, NormalityRecall):
            module.draw(generator)
    return network
