"""EfficientNet-Lite0 (Google, 2020) up to its last block, its batch norms folded."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

STEM = 32  # channels
STAGES = (  # blocks, their output channels, expansion, kernel, stride of the first block
    (1, 16, 1, 3, 1),
    (2, 24, 6, 3, 2),
    (2, 40, 6, 5, 2),
    (3, 80, 6, 3, 2),
    (3, 112, 6, 5, 1),
    (4, 192, 6, 5, 2),
    (1, 320, 6, 3, 1),
)


class EfficientNetLite0(nn.Module):
    """Map images (n, 3, H, W), normalised to (pixel - 127) / 128, to the last block's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = same_convolution(3, STEM, kernel=3, stride=2)
        self.activation = nn.ReLU6(inplace=True)
        stages, inputs = [], STEM
        for n_blocks, outputs, expansion, kernel, stride in STAGES:
            blocks = [Block(inputs, outputs, expansion, kernel, stride)]
            blocks += (Block(outputs, outputs, expansion, kernel, 1) for _ in range(n_blocks - 1))
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the trunk."""
        return self.stages(self.activation(self.stem(same_padding(images))))


class Block(nn.Module):
    """An inverted bottleneck: its output is a linear projection, plus the input where that fits."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        if expansion > 1:
            self.expand = nn.Conv2d(inputs, inner, kernel_size=1)
        self.depthwise = same_convolution(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, outputs, kernel_size=1)
        self.activation = nn.ReLU6(inplace=True)
        self._expands, self._halves = expansion > 1, stride == 2
        self._is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        inner = self.activation(self.expand(x)) if self._expands else x
        inner = same_padding(inner) if self._halves else inner
        projected = self.project(self.activation(self.depthwise(inner)))
        return projected + x if self._is_residual else projected


def same_convolution(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution, padded as TensorFlow's "SAME"; with stride 2 after `same_padding`."""
    padding = kernel // 2 - (stride == 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)


def same_padding(x: Tensor) -> Tensor:  # (n, C, H, W)
    """Add what TensorFlow's "SAME" needs for stride 2 beyond `padding`, which is symmetric.

    An even length takes one zero less than an odd one, and goes without the first.
    """
    height, width = x.shape[2], x.shape[3]
    return F.pad(x, (width % 2, 1, height % 2, 1))


def in_stages(name: str) -> str:
    """Return the name of a tensor whose block is counted over all stages, as in published files."""
    module, *rest = name.split(".")
    if module != "blocks":
        return name
    stage, block = [(i, j) for i, (n, *_) in enumerate(STAGES) for j in range(n)][int(rest[0])]
    return ".".join(["stages", str(stage), str(block), *rest[1:]])
