"""Reverse distillation: from what the source sees last back to what it saw before (RD, MemKD)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from skmkd._maps.discrepancy import Features
from skmkd._networks.layers import Stage
from skmkd._networks.recall import MemoryCloner, MemoryPlan
from skmkd._networks.residual import Style, halvings, plain_stage, residual_stage

EMBEDDING = "the embedding"  # beside the critical layers; no layer can have this name


class ReverseCloner(MemoryCloner):
    """The source's activations to a dict of critical layer -> activations, the last one first.

    A bottleneck makes one embedding of all critical layers, so small that little beyond the
    normal fits through; a decoder of the source's stages in reverse gives the layers back. A
    memory before a stage lays what it recalls beside the stage's input. For a WideResNet-50 at
    256 x 256 pixels the embedding is (2048, 8, 8), and the stages give (1024, 16, 16),
    (512, 32, 32) and (256, 64, 64).

    `architecture` holds what the cloner was built from.
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
        inputs = (*stages[1:], embedding)  # of the decoder's stages, the finest grid's first
        places = {
            level: (before.layer, before.channels) for level, before in enumerate(inputs, start=1)
        }
        super().__init__(plan, places)
        self.architecture = (stages, image_size, style, signed, plan)
        self.bottleneck = Bottleneck(stages, embedding, style)
        self.decoder = nn.ModuleList(
            residual_stage(
                plan.widened(level, before.channels),
                before.grid,
                stage,
                style.depth(halvings(image_size, stage.grid)),
                style,
                stage.layer in signed,
            )
            for level, (before, stage) in enumerate(zip(inputs, stages, strict=True), start=1)
        )

    def forward(self, target: Features) -> Features:
        """Compute the activations of every critical layer, and the embedding, from the source's."""
        stages = self.architecture[0]
        features = self.bottleneck(target)
        answer = {EMBEDDING: features}
        for level in range(len(stages), 0, -1):
            features = self.decoder[level - 1](self.append_recall(level, features))
            answer[stages[level - 1].layer] = features
        return answer


def embedding_stage(last: Stage) -> Stage:
    """Describe the embedding: half the last critical layer's grid and twice its channels."""
    height, width = last.grid
    return Stage(EMBEDDING, 2 * last.channels, ((height + 1) // 2, (width + 1) // 2), False)


class Bottleneck(nn.Module):
    """One-class bottleneck embedding of all layers, on half the last one's grid (RD)."""

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
        """Bring every layer to the last one's grid and channels, and embed them together."""
        brought = [
            way(target[layer].float()) for layer, way in zip(self.layers, self.ways, strict=True)
        ]
        return self.fuse(torch.cat(brought, dim=1))
