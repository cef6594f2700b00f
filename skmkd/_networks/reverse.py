"""Reverse distillation: from an embedding of the source's layers back to these (RD, MemKD)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from skmkd._maps.discrepancy import Features
from skmkd._networks.layers import Stage
from skmkd._networks.recall import MemoryCloner, MemoryPlan
from skmkd._networks.residual import Style, halvings, plain_stage, residual_stage

EMBEDDING = "the embedding"  # beside the critical layers; no layer can have this name


class ReverseCloner(MemoryCloner):
    """Map the source's activations to a dict of critical layer -> activations, the last one first.

    A one-class bottleneck embeds all critical layers together. The embedding is so small that it
    loses most of what is not normal. A decoder of the source's stages in reverse order
    reconstructs the layers, and a memory before a stage appends what it recalls to the stage's
    input. It is asked with the source's features of the same layer: thus the decoder learns normal
    details that the embedding lost, but of other images it hears normal ones, too. For a
    WideResNet-50 at 256 x 256 pixels the embedding is (2048, 8, 8), and the stages return
    (1024, 16, 16), (512, 32, 32) and (256, 64, 64).

    `architecture` holds the arguments of the constructor.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        image_size: tuple[int, int],
        style: Style,
        signed: tuple[str, ...],
        plan: MemoryPlan,
    ) -> None:
        embedding = embedding_stage(stages[-1])
        before = (*stages[1:], embedding)  # each of the decoder's stages, the finest grid's first
        inputs = {
            level: (stage.layer, stage.channels) for level, stage in enumerate(before, start=1)
        }
        super().__init__(plan, inputs, plan.of_source)
        self.architecture = (stages, image_size, style, signed, plan)
        self.bottleneck = Bottleneck(stages, embedding, style)
        self.decoder = nn.ModuleList(
            residual_stage(
                plan.output_channels(level, previous.channels),
                previous.grid,
                stage,
                style.depth(halvings(image_size, stage.grid)),
                style,
                stage.layer in signed,
            )
            for level, (previous, stage) in enumerate(zip(before, stages, strict=True), start=1)
        )

    def reader(self, level: int) -> nn.Sequential:
        """Return the decoder's stage that reads what the memory of a level recalls."""
        return cast(nn.Sequential, self.decoder[level - 1])

    def forward(self, target: Features) -> Features:
        """Compute the embedding and the activations of every critical layer."""
        stages = self.architecture[0]
        features = self.bottleneck(target)
        output = {EMBEDDING: features}
        for level in range(len(stages), 0, -1):
            features = self.decoder[level - 1](self.append_recall(level, features, target))
            output[stages[level - 1].layer] = features
        return output


def embedding_stage(last: Stage) -> Stage:
    """Describe the embedding: half the grid and twice the channels of the last critical layer."""
    height, width = last.grid
    return Stage(EMBEDDING, 2 * last.channels, ((height + 1) // 2, (width + 1) // 2), False)


class Bottleneck(nn.Module):
    """One-class bottleneck embedding of all critical layers (RD)."""

    def __init__(self, stages: tuple[Stage, ...], embedding: Stage, style: Style) -> None:
        super().__init__()
        self.layers = [stage.layer for stage in stages]
        self.ways = nn.ModuleList(
            nn.Sequential(
                *(plain_stage(one.channels, one.grid, next_) for one, next_ in pairwise(stages[i:]))
            )
            for i in range(len(stages))
        )
        last = stages[-1]
        inputs = len(stages) * last.channels
        self.fuse = residual_stage(inputs, last.grid, embedding, style.depths[-1], style)

    def forward(self, target: Features) -> Tensor:  # -> (n, 2C, h/2, w/2)
        """Bring all layers to the last one's grid and channels, concatenate and embed them."""
        aligned = [
            way(target[layer].float()) for layer, way in zip(self.layers, self.ways, strict=True)
        ]
        return self.fuse(torch.cat(aligned, dim=1))
