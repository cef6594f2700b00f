from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TinySource, tiny_detector
from numpy.testing import assert_allclose
from torch import nn

from skmkd._maps.attribution import (
    gradient,
    guided_backprop,
    input_gradient,
    smooth_grad,
)


def squared_distance(source, cloner):  # -> (n,)
    return (source["a"] - cloner["a"]).square().flatten(1).sum(1)


class Network(nn.Module):
    """Features of one layer, made by any function of the image."""

    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, images):
        return {"a": self.compute(images)}


def images(n=3, size=4, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_gradient_goes_through_the_cloner_only_unless_through_source():
    # L = sum (s x - c x)^2: dL/dx is -2 c (s - c) x through the cloner, 2 (s - c)^2 x through both
    source, cloner, x = Network(lambda x: 5 * x), Network(lambda x: 2 * x), images()
    got = input_gradient(source, cloner, squared_distance, x, through_source=False)
    assert_allclose(got, -2 * 2 * 3 * x, rtol=1e-5)
    got = input_gradient(source, cloner, squared_distance, x, through_source=True)
    assert_allclose(got, 2 * 9 * x, rtol=1e-5)
    expected = (12 * x).abs().sum(1)
    assert_allclose(gradient(source, cloner, squared_distance, x), expected, rtol=1e-5)


def test_gradient_agrees_with_finite_differences():
    torch_generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, 3, 3, generator=torch_generator, dtype=torch.float64)
    source = Network(lambda x: torch.zeros(len(x), 2, 4, 4, dtype=torch.float64))
    cloner = Network(lambda x: torch.tanh(torch.nn.functional.conv2d(x, weight, padding=1)))
    x = images(1).double()
    analytic = input_gradient(source, cloner, squared_distance, x, through_source=False)
    step = 1e-6
    for index in np.ndindex(*x.shape[1:]):
        nudge = torch.zeros_like(x)
        nudge[0][index] = step
        high, low = (squared_distance(source(x + d), cloner(x + d)).item() for d in (nudge, -nudge))
        assert_allclose(analytic[0][index].item(), (high - low) / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("through_source", [False, True])
@pytest.mark.parametrize("method", [gradient, guided_backprop])
def test_batch_equals_single_images(images, method, through_source):
    detector = tiny_detector().fit(images)
    batch = detector._prepare(list(images))
    networks = detector.source_, detector.cloner_, detector._loss
    together = method(*networks, batch, through_source)
    for i in range(len(batch)):
        pixels = batch[i : i + 1].clone()
        alone = method(*networks, pixels, through_source)
        assert_allclose(together[i], alone[0], rtol=1e-4, atol=1e-8)
    if method is gradient:  # the oracle: plain autograd, one image at a time
        pixels = batch[:1].clone().requires_grad_()
        target = detector.source_(pixels if through_source else batch[:1])
        detector._loss(target, detector.cloner_(pixels)).backward()
        assert_allclose(together[0], pixels.grad.abs().sum(1)[0], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("inplace", [False, True])
def test_guided_backprop_equals_a_hand_computation(inplace):
    # cloner: relu(W2 relu(W1 x)), 1 x 1 convolutions; constant source, so dL/da = 2 (a - 0.7)
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(4, c, generator=generator) for c in (3, 4))
    layers = [nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(inplace), nn.Conv2d(4, 4, 1, bias=False)]
    cloner = nn.Sequential(*layers, nn.ReLU(inplace)).requires_grad_(False)
    layers[0].weight.copy_(first.view(4, 3, 1, 1))
    layers[2].weight.copy_(second.view(4, 4, 1, 1))
    x = images(1, 2)
    source = Network(lambda x: torch.full((len(x), 4, 2, 2), 0.7))
    got = guided_backprop(source, Network(cloner), squared_distance, x)
    for r, c in np.ndindex(2, 2):
        pixel = x[0, :, r, c].numpy()
        hidden = first.numpy() @ pixel
        output = second.numpy() @ np.maximum(hidden, 0)
        back = 2 * (np.maximum(output, 0) - 0.7)
        back = np.maximum(back, 0) * (output > 0)
        back = np.maximum(second.numpy().T @ back, 0) * (hidden > 0)
        assert_allclose(got[0, r, c], np.abs(first.numpy().T @ back).sum(), rtol=1e-4, atol=1e-6)
    assert got.any()


@pytest.mark.parametrize(
    "rectify",
    [
        nn.ReLU(),
        torch.relu,
        torch.Tensor.relu,
        lambda x: torch.relu_(x * 1),
        lambda x: (x * 1).relu_(),
        nn.ReLU6(),
        F.relu6,
    ],
)
def test_guided_backprop_handles_every_kind_of_relu(rectify):
    # the gradient -2 (source - cloner) is negative where the source is larger, and set to 0 there
    source = Network(lambda x: x.new_tensor([9.0, -9.0, -9.0]).view(1, 3, 1, 1).expand_as(x))
    x = torch.ones(1, 3, 2, 2)
    got = guided_backprop(source, Network(rectify), squared_distance, x)
    assert_allclose(got, np.full((1, 2, 2), 40.0))


def test_guided_backprop_leaves_no_hook_behind(images):
    detector = tiny_detector().fit(images)
    detector.localize(images, method="guided_backprop")
    for network in (detector.source_, detector.cloner_):
        for module in network.modules():
            assert not module._forward_hooks
            assert not module._backward_hooks
    before = detector.localize(images, method="gradient")
    detector.localize(images, method="guided_backprop")
    assert (detector.localize(images, method="gradient") == before).all()


def test_smooth_grad_of_a_linear_gradient_is_the_gradient_at_the_mean_noise():
    source, cloner, x = Network(lambda x: 5 * x), Network(lambda x: 2 * x), images()
    networks = source, cloner, squared_distance
    noiseless = smooth_grad(*networks, x, n_samples=3, noise=0.0, seed=0)
    assert_allclose(noiseless, gradient(*networks, x), rtol=1e-5)
    generator = torch.Generator().manual_seed(7)
    draws = torch.stack([torch.randn(x.shape[1:], generator=generator) for _ in range(4)])
    spread = (x.amax((1, 2, 3)) - x.amin((1, 2, 3))).view(-1, 1, 1, 1)
    noisy = smooth_grad(*networks, x, n_samples=4, noise=0.3, seed=7)
    assert_allclose(noisy, (12 * (x + 0.3 * spread * draws.mean(0))).abs().sum(1), rtol=1e-4)


def test_smooth_grad_does_not_depend_on_other_images_in_the_batch(images):
    detector = tiny_detector(localization="smooth_grad").fit(images)
    assert_allclose(detector.localize(images)[3], detector.localize(images[3:4])[0], rtol=1e-4)


def test_source_is_not_differentiated_unless_needed():
    source = TinySource()
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(x.requires_grad)
            return {"a": source.features(x)}

    gradient(Watched(), Network(source.features), squared_distance, images(2, 8))
    assert seen == [False]
