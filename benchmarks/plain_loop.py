"""MKD as one writes it down: the baseline that the other benchmarks measure against.

The source is computed anew at each step, in float32 and in torch's default layout; gradients
come one image at a time, through both networks.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg16

from skmkd._networks.sources import IMAGENET, _read_bundled

WIDTHS = ((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512))  # Fig. 2, compact
POOLS = (9, 16, 23, 30)  # the last four of VGG-16


class Tapped(nn.Module):
    """VGG-16 up to its last pool, giving the last four of them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = vgg16(weights=None).features
        weights = _read_bundled("vgg16")
        weights = {name.removeprefix("features."): t for name, t in weights.items()}
        self.features.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the critical layers."""
        found = []
        for i, layer in enumerate(self.features):
            images = layer(images)
            if i in POOLS:
                found.append(images)
        return found


class Cloner(nn.Module):
    """The compact cloner, giving the same four layers."""

    def __init__(self) -> None:
        super().__init__()
        channels, blocks = 3, []
        for widths in WIDTHS:
            layers: list[nn.Module] = []
            for inputs, outputs in pairwise((channels, *widths)):
                convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
                nn.init.xavier_uniform_(convolution.weight)
                layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
            del layers[-2]
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
            channels = widths[-1]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the critical layers."""
        found = []
        for block in self.blocks:
            images = block(images)
            found.append(images)
        return found[1:]


def total_loss(taught: list[Tensor], learned: list[Tensor]) -> Tensor:  # -> (n,)
    """Sum both discrepancies over the layers, with a weight of one."""
    return sum(
        (t - c).square().flatten(1).mean(1) + 1 - F.cosine_similarity(t.flatten(1), c.flatten(1))
        for t, c in zip(taught, learned, strict=True)
    )


class PlainLoop:
    """Train, score and localize without any of skmkd's economies."""

    def __init__(self) -> None:
        self.source, self.cloner = Tapped(), Cloner()
        self.optimizer = torch.optim.Adam(self.cloner.parameters(), lr=1e-3)

    @staticmethod
    def prepare(images: Tensor, side: int) -> Tensor:  # (n, h, w) uint8 -> (n, 3, side, side)
        """Resize and normalise grey images, all at once."""
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
        resized = F.interpolate(images[:, None] / 255, (side, side), mode="bilinear")
        return (resized - mean) / std

    def epoch(self, images: Tensor, batch_size: int = 64) -> None:
        """Train on all images once."""
        self.cloner.train()
        for indices in torch.randperm(len(images)).split(batch_size):
            batch = images[indices]
            with torch.no_grad():
                taught = self.source(batch)
            self.optimizer.zero_grad()
            total_loss(taught, self.cloner(batch)).mean().backward()
            self.optimizer.step()

    def score(self, images: Tensor, batch_size: int = 64) -> Tensor:  # -> (n,)
        """Score all images."""
        self.cloner.eval()
        with torch.no_grad():
            return torch.cat(
                [
                    total_loss(self.source(batch), self.cloner(batch))
                    for batch in images.split(batch_size)
                ]
            )

    def gradients(self, images: Tensor, parameters: bool) -> Tensor:  # -> (n, side, side)
        """Differentiate one image at a time, through both networks; parameters too, if asked."""
        self.cloner.eval()
        self.source.requires_grad_(parameters)
        self.cloner.requires_grad_(parameters)
        maps = []
        for image in images:
            pixels = image[None].clone().requires_grad_()
            total_loss(self.source(pixels), self.cloner(pixels)).sum().backward()
            maps.append(pixels.grad.abs().sum(1))
        self.source.requires_grad_(False)
        self.cloner.requires_grad_(True)
        return torch.cat(maps)
