"""What many tests share: a tiny random source, synthetic images, a fitted detector."""

from __future__ import annotations

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # read when scipy is imported; some checks need it

import numpy as np
import pytest
import torch
from torch import nn

from skmkd import MKDDetector


class TinySource(nn.Module):
    """Two convolutions with in-place ReLUs and two max-pools: a source for unit tests."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        with torch.device("meta"):
            first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.features = nn.Sequential(
            first, nn.ReLU(inplace=True), nn.MaxPool2d(2),
            second, nn.ReLU(inplace=True), nn.MaxPool2d(2),
        ).to_empty(device="cpu")  # fmt: skip
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images).mean((2, 3))

    def __reduce__(self):
        """Pickle tensors as arrays: joblib's hash of a tensor differs from time to time."""
        arrays = {name: tensor.numpy() for name, tensor in self.state_dict().items()}
        return _restore, (arrays, self.training, [p.requires_grad for p in self.parameters()])


def _restore(arrays: dict[str, np.ndarray], training: bool, differentiable: list[bool]):
    source = TinySource().train(training)
    source.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in arrays.items()})
    for parameter, required in zip(source.parameters(), differentiable, strict=True):
        parameter.requires_grad_(required)
    return source


def tiny_detector(**parameters) -> MKDDetector:
    """Return a detector that fits in well under a second."""
    defaults = {
        "source": TinySource(),
        "critical_layers": 2,
        "image_size": 16,
        "max_iter": 2,
        "tol": None,
        "random_state": 0,
    }
    return MKDDetector(**(defaults | parameters))


@pytest.fixture
def images() -> np.ndarray:
    """Twelve synthetic colour images, uint8, of shape (12, 20, 24, 3)."""
    return np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)


@pytest.fixture
def detector(images: np.ndarray) -> MKDDetector:
    """A detector fitted to those images."""
    return tiny_detector().fit(images)
