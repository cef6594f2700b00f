from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model

from skmkd._networks.fusion import ConvReLU, fuse
from skmkd._networks.tracing import extract_features


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def cut(name, layers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return extract_features(get_model(name, weights=None).eval(), layers).requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "layers", "n_fused", "n_left"),
    [
        ("vgg16", ["features.9", "features.30"], 13, 0),
        ("vgg16", ["features.5", "features.6", "features.8"], 3, 1),  # one output is a layer
        ("squeezenet1_1", ["features.12"], 25, 0),
        ("resnet18", ["layer2"], 0, 9),  # batch norms are in between
    ],
)
def test_features_parameters_and_pickles_stay(pixels, name, layers, n_fused, n_left):
    network = cut(name, layers)
    expected, state = network(pixels), network.state_dict()
    fuse(network)
    fused = [m for m in network.modules() if isinstance(m, ConvReLU)]
    assert len(fused) == n_fused
    kept = [n for n in network.graph.nodes if n.op == "call_module"]
    kept = [n for n in kept if isinstance(network.get_submodule(n.target), nn.ReLU)]
    assert len(kept) == n_left
    assert list(network.state_dict()) == list(state)
    for one in (network, pickle.loads(pickle.dumps(network))):
        for layer, activations in one(pixels).items():
            assert torch.equal(activations, expected[layer])


class Branching(nn.Module):
    """Convolutions that must stay as they are: used twice, called twice, or padded otherwise."""

    def __init__(self):
        super().__init__()
        self.twice, self.shared = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.same = nn.Conv2d(3, 3, 3, padding="same")
        self.mirrored = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.plain = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images):
        images = self.twice(images)
        images = images + F.relu(images)
        images = self.shared(F.relu(self.shared(images)))
        images = F.relu(self.mirrored(F.relu(self.same(images))))
        return torch.relu(self.plain(images)) + 1


def test_only_a_convolution_that_the_relu_alone_uses_is_fused(pixels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = extract_features(Branching().eval(), ["add_1"]).requires_grad_(False)
    expected = network(pixels)["add_1"]
    fuse(network)
    assert [n for n, m in network.named_modules() if isinstance(m, ConvReLU)] == ["plain"]
    assert torch.equal(network(pixels)["add_1"], expected)


def test_a_fused_convolution_has_a_gradient(pixels):
    network = cut("vgg16", ["features.9"])
    gradients = []
    for _ in range(2):
        image = pixels.clone().requires_grad_()
        gradients += torch.autograd.grad(network(image)["features.9"].sum(), image)
        fuse(network)
    assert torch.equal(*gradients)
