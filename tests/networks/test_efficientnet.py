from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load

from skmkd._networks.efficientnet import (
    Block,
    EfficientNetLite0,
    in_stages,
    same_convolution,
    same_padding,
)
from skmkd._networks.layers import REDUCTIONS, LayerIndex
from skmkd._networks.sources import BUNDLES

BLOCKS = [  # channels in and out, expansion, kernel, stride: from the published description
    (32, 16, 1, 3, 1),
    (16, 24, 6, 3, 2), (24, 24, 6, 3, 1),
    (24, 40, 6, 5, 2), (40, 40, 6, 5, 1),
    (40, 80, 6, 3, 2), (80, 80, 6, 3, 1), (80, 80, 6, 3, 1),
    (80, 112, 6, 5, 1), (112, 112, 6, 5, 1), (112, 112, 6, 5, 1),
    (112, 192, 6, 5, 2), (192, 192, 6, 5, 1), (192, 192, 6, 5, 1), (192, 192, 6, 5, 1),
    (192, 320, 6, 3, 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    content = resources.files("skmkd") / "weights" / BUNDLES["efficientnet_lite0"].file
    return {name: tensor.float() for name, tensor in load(content.read_bytes()).items()}


@pytest.fixture(scope="module")
def network(weights):
    network = EfficientNetLite0().eval()
    network.load_state_dict({in_stages(name): tensor for name, tensor in weights.items()})
    return network


def same(image, kernel, stride):  # (H, W), (k, k)
    """Compute TensorFlow's "SAME" convolution, one output after the other.

    There are ceil(side / stride) of them; the pixels that they need outside the image are zeros,
    half of them before it and half behind it, and the odd one behind it.
    """
    k = len(kernel)
    grid = [-(-side // stride) for side in image.shape]
    needed = [
        max((n - 1) * stride + k - side, 0) for n, side in zip(grid, image.shape, strict=True)
    ]
    padded = np.pad(image, [(n // 2, n - n // 2) for n in needed])
    out = np.empty(grid)
    for i, j in np.ndindex(*grid):
        top, left = i * stride, j * stride
        out[i, j] = (padded[top : top + k, left : left + k] * kernel).sum()
    return out


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (7, 8), (10, 5), (1, 2)])
def test_same_padding(size, kernel, stride):
    rng = np.random.default_rng(0)
    image, weight = rng.normal(size=size), rng.normal(size=(kernel, kernel))
    convolution = same_convolution(1, 1, kernel, stride).double()
    x = torch.from_numpy(image)[None, None]
    with torch.no_grad():
        convolution.weight.copy_(torch.from_numpy(weight))
        convolution.bias.fill_(2)
        got = convolution(same_padding(x) if stride == 2 else x)[0, 0]
    np.testing.assert_allclose(got, same(image, weight, stride) + 2, atol=1e-12)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 6, 1), (4, 4, 2)])
@pytest.mark.parametrize("expansion", [1, 3])
def test_block_is_linear_at_its_end_and_residual_where_shapes_agree(
    inputs, outputs, stride, expansion
):
    block = Block(inputs, outputs, expansion, 3, stride)
    x = torch.randn(2, inputs, 5, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inner = F.relu6(block.expand(x)) if expansion > 1 else x
        inner = same_padding(inner) if stride == 2 else inner
        expected = block.project(F.relu6(block.depthwise(inner)))
        if stride == 1 and inputs == outputs:
            expected = expected + x
        torch.testing.assert_close(block(x), expected)
    assert hasattr(block, "expand") == (expansion > 1)


def test_tensors_are_those_of_the_published_description(weights):
    shapes = {"stem.weight": (32, 3, 3, 3), "stem.bias": (32,)}
    for k, (inputs, outputs, expansion, kernel, _) in enumerate(BLOCKS):
        inner = inputs * expansion
        layers = {"depthwise": (inner, 1, kernel, kernel), "project": (outputs, inner, 1, 1)}
        if expansion > 1:
            layers["expand"] = (inner, inputs, 1, 1)
        for layer, shape in layers.items():
            shapes[f"blocks.{k}.{layer}.weight"] = shape
            shapes[f"blocks.{k}.{layer}.bias"] = shape[:1]
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == shapes


def test_every_tensor_has_its_place_in_the_stages(weights):
    with torch.device("meta"):
        state = EfficientNetLite0().state_dict()
    assert {in_stages(n): t.shape for n, t in weights.items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    assert in_stages("blocks.10.project.bias") == "stages.4.2.project.bias"


@pytest.mark.parametrize("size", [(64, 64), (61, 90)])
def test_trunk_computes_the_published_layers(network, weights, size):
    """Against plain functions, with padding by hand."""
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))

    def convolve(x, name, kernel=1, stride=1, groups=1):
        grid = [-(-side // stride) for side in x.shape[2:]]
        needed = [
            max((n - 1) * stride + kernel - side, 0)
            for n, side in zip(grid, x.shape[2:], strict=True)
        ]
        top, left = (n // 2 for n in needed)
        x = F.pad(x, (left, needed[1] - left, top, needed[0] - top))
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride, groups=groups)

    with torch.no_grad():
        x = convolve(images, "stem", 3, 2).clamp(0, 6)
        for k, (inputs, outputs, expansion, kernel, stride) in enumerate(BLOCKS):
            inner = convolve(x, f"blocks.{k}.expand").clamp(0, 6) if expansion > 1 else x
            inner = convolve(inner, f"blocks.{k}.depthwise", kernel, stride, inputs * expansion)
            projected = convolve(inner.clamp(0, 6), f"blocks.{k}.project")
            x = projected + x if stride == 1 and inputs == outputs else projected
        torch.testing.assert_close(network(images), x, rtol=1e-4, atol=1e-4)


def test_reductions_are_at_strides_4_8_16_and_32(network):
    index = LayerIndex(network)
    layers = index.choose("auto", REDUCTIONS)
    stages = index.stages(layers, (128, 96))
    assert [(stage.channels, stage.grid) for stage in stages if stage.critical] == [
        (24, (32, 24)), (40, (16, 12)), (80, (8, 6)), (192, (4, 3)),
    ]  # fmt: skip
