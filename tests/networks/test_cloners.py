from __future__ import annotations

import pytest
import torch
from conftest import layers_and_style
from torch import nn

from skmkd._networks import cloners
from skmkd._networks.cloners import Block, Cloner, build_cloner, cloner_blocks
from skmkd._networks.layers import REDUCTIONS, Stage

VGG_POOLS = ["features.9", "features.16", "features.23", "features.30"]


def stages(name, size, layers="auto"):
    index, _ = layers_and_style(name)
    return index.stages(index.choose(layers, REDUCTIONS), size)


def widths(name, kind, size=(128, 128), layers="auto"):
    return [block.widths for block in cloner_blocks(stages(name, size, layers), size, kind)]


@pytest.mark.parametrize("size", [(32, 32), (100, 100), (128, 128), (96, 224)])
def test_vgg16_gets_exactly_the_paper_s_cloners(size):
    assert widths("vgg16", "compact", size) == [
        (16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512),
    ]  # fmt: skip
    assert widths("vgg16", "equal", size) == [
        (64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3,
    ]  # fmt: skip


def test_fewer_critical_layers_keep_the_depth():
    compact = widths("vgg16", "compact", layers=1)
    assert compact == [(16, 16), (16, 16), (16, 16, 16), (16, 16, 16), (16, 16, 512)]
    assert widths("vgg16", "equal", layers=1) == widths("vgg16", "equal")


def test_units_of_a_block():
    cloner = Cloner(cloner_blocks(stages("vgg16", (32, 32)), (32, 32), "compact"), (32, 32))
    names = [
        [type(unit).__name__ for unit in block.modules() if not list(unit.children())]
        for block in cloner.blocks
    ]
    shallow = ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "MaxPool2d", "ReLU"]
    assert names == [shallow] * 2 + [["Conv2d", "BatchNorm2d", "ReLU", *shallow]] * 3
    for module in cloner.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            assert module.kernel_size == (3, 3)


@pytest.mark.parametrize("kind", ["compact", "equal"])
@pytest.mark.parametrize("size", [(64, 64), (75, 101), (96, 128)])
@pytest.mark.parametrize(
    "name",
    ["vgg16", "resnet18", "convnext_tiny", "efficientnet_b0", "squeezenet1_1", "inception_v3"],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_cloner_output_has_the_shapes_of_any_source(name, size, kind):
    if name == "inception_v3" and min(size) < 75:
        size = (75, 75)  # the smallest that it takes
    expected = stages(name, size)
    with torch.device("meta"):
        cloner = Cloner(cloner_blocks(expected, size, kind), size)
        got = cloner(torch.zeros(1, 3, *size))
    assert {layer: tuple(a.shape[1:]) for layer, a in got.items()} == {
        s.layer: (s.channels, *s.grid) for s in expected if s.critical
    }


def test_grid_that_gets_finer_again():
    plan = [Stage("a", 8, (4, 4), True), Stage("b", 8, (8, 8), True)]
    cloner = Cloner(cloner_blocks(plan, (16, 16), "compact"), (16, 16))
    assert cloner(torch.zeros(2, 3, 16, 16))["b"].shape == (2, 8, 8, 8)


def test_signed_layers_end_without_a_relu():
    plan = [Stage("a", 8, (8, 8), True), Stage("b", 8, (4, 4), True)]
    blocks = cloner_blocks(plan, (16, 16), "compact", signed={"b"})
    cloner = build_cloner(blocks, (16, 16), torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = cloner(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert features["a"].min() >= 0
    assert features["b"].min() < 0


def test_pool_before_relu_is_relu_before_pool():
    blocks = [Block((4, 8), (4, 4), "a")]
    cloner = build_cloner(blocks, (8, 8), torch.Generator().manual_seed(0)).eval()
    first, norm, relu, (second, pool, _) = cloner.blocks[0]
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def gradients(output):
        return torch.autograd.grad(output.square().sum(), [first.weight, second.weight])

    got, expected = cloner(images)["a"], pool(torch.relu(second(relu(norm(first(images))))))
    assert torch.equal(got, expected)
    assert (expected == 0).any()
    for a, b in zip(gradients(got), gradients(expected), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("in_training", [True, False])
def test_a_large_batch_in_chunks_computes_the_same(monkeypatch, in_training):
    blocks = cloner_blocks(stages("vgg16", (32, 32)), (32, 32), "compact")
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for size in (2**24, 2 * 16 * 32 * 32 * 8, 1):  # all at once, two images, one image
        monkeypatch.setattr(cloners, "CHUNK_BYTES", size)
        cloner = build_cloner(blocks, (32, 32), torch.Generator().manual_seed(1)).double()
        features = cloner.train(in_training)(images.double())
        sum(a.square().sum() for a in features.values()).backward()
        gradients = [p.grad for p in cloner.parameters()]
        results.append([*features.values(), *gradients, *cloner.buffers()])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_weights_are_xavier_uniform_from_the_private_generator():
    blocks = cloner_blocks(stages("vgg16", (32, 32)), (32, 32), "compact")
    before = torch.random.get_rng_state()
    cloner, again, other = (
        build_cloner(blocks, (32, 32), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, tensor in cloner.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    last = cloner.blocks[-1][6][0].weight  # 512 x 16 x 3 x 3
    assert not torch.equal(last, other.blocks[-1][6][0].weight)
    bound = (6 / ((16 + 512) * 9)) ** 0.5
    assert 0.99 * bound < last.abs().max() <= bound
    assert abs(last.mean()) < 0.02 * bound


def test_architecture_builds_the_cloner_again():
    blocks = [Block((4, 8), (4, 4), None), Block((4, 6), (2, 2), "late", signed=True)]
    cloner = Cloner(blocks, (8, 8))
    again = Cloner(*cloner.architecture)
    assert str(again) == str(cloner)
    assert list(again(torch.zeros(1, 3, 8, 8))) == ["late"]
