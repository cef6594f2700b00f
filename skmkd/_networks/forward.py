"""Forward distillation with memories: the cloner is a ResNet that takes the images (MemMKD)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from skmkd._maps.discrepancy import Features
from skmkd._networks.layers import Stage
from skmkd._networks.recall import MemoryCloner, MemoryPlan
from skmkd._networks.residual import STEM_WIDTH, Style, halvings, residual_stage, stem


class ForwardCloner(MemoryCloner):
    """Map images (n, 3, H, W) to a dict of critical layer -> activations, as the source does.

    A memory after any stage but the last appends what it recalls to the next stage's input.
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
        inputs = {
            level: (stage.layer, stage.channels) for level, stage in enumerate(stages[:-1], start=1)
        }
        super().__init__(plan, inputs)
        self.architecture = (stages, image_size, style, signed, plan)
        self.stem = stem(image_size, stages[0].grid)
        self.encoder = nn.ModuleList()
        width, grid = STEM_WIDTH, stages[0].grid
        for level, stage in enumerate(stages, start=1):
            depth = style.depth(halvings(image_size, stage.grid))
            signed_stage = stage.layer in signed
            self.encoder.append(residual_stage(width, grid, stage, depth, style, signed_stage))
            width, grid = plan.output_channels(level, stage.channels), stage.grid

    def reader(self, level: int) -> nn.Sequential:
        """Return the stage that reads what the memory of a level recalls."""
        return cast(nn.Sequential, self.encoder[level])

    def forward(self, images: Tensor) -> Features:
        """Compute the activations of every critical layer."""
        output = {}
        features = self.stem(images)
        for level, stage in enumerate(self.architecture[0], start=1):
            output[stage.layer] = self.encoder[level - 1](features)
            features = self.append_recall(level, output[stage.layer], {})
        return output
