"""Forward distillation with memories: a ResNet beside the source, from the images on (MemMKD)."""

from __future__ import annotations

from torch import Tensor, nn

from skmkd._maps.discrepancy import Features
from skmkd._networks.layers import Stage
from skmkd._networks.recall import MemoryCloner, MemoryPlan
from skmkd._networks.residual import STEM_WIDTH, Style, halvings, residual_stage, stem


class ForwardCloner(MemoryCloner):
    """Images (n, 3, H, W) to a dict of critical layer -> activations, as the source gives.

    A memory after a stage, but the last, lays what it recalls beside the next stage's input.
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
        places = {
            level: (stage.layer, stage.channels) for level, stage in enumerate(stages[:-1], start=1)
        }
        super().__init__(plan, places)
        self.architecture = (stages, image_size, style, signed, plan)
        self.stem = stem(image_size, stages[0].grid)
        self.encoder = nn.ModuleList()
        width, grid = STEM_WIDTH, stages[0].grid
        for level, stage in enumerate(stages, start=1):
            depth = style.depth(halvings(image_size, stage.grid))
            made = residual_stage(width, grid, stage, depth, style, stage.layer in signed)
            self.encoder.append(made)
            width, grid = plan.widened(level, stage.channels), stage.grid

    def forward(self, images: Tensor) -> Features:
        """Compute the activations of every critical layer."""
        answer = {}
        features = self.stem(images)
        for level, stage in enumerate(self.architecture[0], start=1):
            answer[stage.layer] = self.encoder[level - 1](features)
            features = self.append_recall(level, answer[stage.layer])
        return answer
