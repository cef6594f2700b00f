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
        self.stem = SameConv2d(3, STEM, kernel_size=3, stride=2)
        self.activation = nn.ReLU6(inplace=True)
        blocks, inputs = [], STEM
        for n_blocks, outputs, expansion, kernel, stride in STAGES:
            for i in range(n_blocks):
                blocks.append(Block(inputs, outputs, expansion, kernel, stride if i == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the trunk."""
        return self.blocks(self.activation(self.stem(images)))


class Block(nn.Module):
    """An inverted bottleneck: its output is a linear projection, plus the input where that fits."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        if expansion > 1:
            self.expand = nn.Conv2d(inputs, inner, kernel_size=1)
        self.depthwise = SameConv2d(inner, inner, kernel_size=kernel, stride=stride, groups=inner)
        self.project = nn.Conv2d(inner, outputs, kernel_size=1)
        self.activation = nn.ReLU6(inplace=True)
        self._expands, self._is_residual = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        inner = self.activation(self.expand(x)) if self._expands else x
        projected = self.project(self.activation(self.depthwise(inner)))
        return projected + x if self._is_residual else projected


class SameConv2d(nn.Conv2d):
    """A convolution of an odd kernel, with stride 1 or 2, padded as TensorFlow's "SAME".

    With stride 2 an even side needs one pixel less than an odd one, and goes without the first.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel_size // 2 - (stride == 2)
        super().__init__(inputs, outputs, kernel_size, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images of any size."""
        if self.stride == (2, 2):
            height, width = x.shape[2], x.shape[3]
            x = F.pad(x, (width % 2, 1, height % 2, 1))
        return super().forward(x)
