"""Residual stages from one grid to another, down or up: what MemKD's cloners are built of."""

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

SQUEEZE = 4  # channels of a bottleneck block for each of its width, as in ResNets
STEM_WIDTH = 64  # channels, ResNets' own
FINEST = 2  # halvings of the grid before a ResNet's first stage


class Style(NamedTuple):
    """How residual stages look."""

    bottleneck: bool  # blocks of 1x1, 3x3, 1x1 convolutions instead of two of 3x3
    width: int  # of the 3x3 convolution of a bottleneck, in quarters of the block's channels
    depths: tuple[int, ...]  # blocks a stage, the finest grid's first

    def depth(self, halvings: int) -> int:
        """Return the number of blocks of the stage on a grid that was halved so often."""
        return self.depths[min(max(halvings - FINEST, 0), len(self.depths) - 1)]


OTHER_STYLE = Style(True, 1, (3,))  # for sources that are no ResNet


def style_of(network: nn.Module) -> Style:
    """Return how the stages of a source look, if it is one of torchvision's ResNets."""
    if not isinstance(network, ResNet):
        return OTHER_STYLE
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    width = network.base_width * network.groups // STEM_WIDTH
    return Style(isinstance(network.layer1[0], Bottleneck), width, tuple(map(len, stages)))


def halvings(before: tuple[int, int], after: tuple[int, int]) -> int:
    """Return how often a grid was halved to become another; below 0 if it was doubled."""
    return round(log2(before[0] / after[0]))


def residual_stage(
    inputs: int, grid: tuple[int, int], to: Stage, depth: int, style: Style, signed: bool = False
) -> nn.Sequential:
    """Build residual blocks from a grid to what a stage of the source looks like.

    The first ones halve or double the grid, as often as it takes; where `signed`, no ReLU ends
    the last one.
    """
    n = halvings(grid, to.grid)
    ways = ["down" if n > 0 else "up"] * abs(n)
    ways += ["same"] * (depth - len(ways))
    widths = [inputs, *(to.channels for _ in ways)]
    blocks = [
        ResidualBlock(*pair, way, style) for pair, way in zip(pairwise(widths), ways, strict=True)
    ]
    blocks[-1].signed = signed
    return nn.Sequential(*blocks, Grid(to.grid))


def plain_stage(inputs: int, grid: tuple[int, int], to: Stage) -> nn.Sequential:
    """Build convolutions from a grid down to another, one for each time that it is halved."""
    ways = ["down"] * halvings(grid, to.grid) or ["same"]
    widths = [inputs, *(to.channels for _ in ways)]
    layers = []
    for pair, way in zip(pairwise(widths), ways, strict=True):
        layers += [_unit(*pair, 3, way), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, Grid(to.grid))


def stem(image_size: tuple[int, int], grid: tuple[int, int]) -> nn.Sequential:
    """Build what leads a ResNet from images to its first grid: a convolution, then max-pools."""
    n = halvings(image_size, grid)
    layers = [_unit(3, STEM_WIDTH, 7, "down" if n > 0 else "same"), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(3, stride=2, padding=1) for _ in range(n - 1)]
    return nn.Sequential(*layers, Grid(grid))


class ResidualBlock(nn.Module):
    """Convolutions beside a shortcut (He et al., 2016), on the same grid, half or twice of it.

    A grid is halved by a stride, and doubled by a transposed 2x2 convolution (RD, CVPR 2022).
    Where it is made `signed`, no ReLU ends it.
    """

    signed = False

    def __init__(self, inputs: int, outputs: int, way: str, style: Style) -> None:
        super().__init__()
        if style.bottleneck:
            width = max(1, style.width * outputs // SQUEEZE)
            units = [_unit(inputs, width, 1), _unit(width, width, 3, way), _unit(width, outputs, 1)]
        else:
            units = [_unit(inputs, outputs, 3, way), _unit(outputs, outputs, 3)]
        rectified = [layer for unit in units for layer in (unit, nn.ReLU(inplace=True))]
        self.body = nn.Sequential(*rectified[:-1])
        plain = way == "same" and inputs == outputs
        self.shortcut = nn.Identity() if plain else _unit(inputs, outputs, 1, way)

    def forward(self, features: Tensor) -> Tensor:
        """Add both ways."""
        total = self.body(features) + self.shortcut(features)
        return total if self.signed else torch.relu_(total)


class Grid(nn.Module):
    """Bring features to a grid, bilinearly, if halving and doubling has not led there."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, features: Tensor) -> Tensor:
        """Resize."""
        if tuple(features.shape[2:]) == self.grid:
            return features
        return F.interpolate(features, self.grid, mode="bilinear", align_corners=False)


def _unit(inputs: int, outputs: int, size: int, way: str = "same") -> nn.Sequential:
    """Build a convolution, "same", "down" by a stride of 2 or "up" by a 2x2, and a batch norm.

    A 1x1 takes its stride before: its gradient with few channels writes past its memory in oneDNN
    3 (issue 6035 there), and the numbers are the same.
    """
    norm = nn.BatchNorm2d(outputs)
    if way == "up":
        return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False), norm)
    if way == "down" and size == 1:
        return nn.Sequential(nn.MaxPool2d(1, stride=2), *_unit(inputs, outputs, 1))
    stride = 2 if way == "down" else 1
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, norm)


def build_residual(make: Callable[[], Network], generator: torch.Generator) -> Network:
    """Build a network of residual stages and draw its weights, as ResNets do (He et al., 2015)."""
    network = materialize(make)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    for module in network.modules():  # last, so that the rest is the same without them
        if isinstance(module, NormalityRecall):
            module.draw(generator)
    return network
