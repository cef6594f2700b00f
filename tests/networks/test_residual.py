"""Residual stages: their grids, and their parameters compared with torchvision's ResNets."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn
from torchvision.models import get_model

from skmkd._networks.layers import Stage
from skmkd._networks.residual import (
    OTHER_STYLE,
    Grid,
    ResidualBlock,
    Style,
    build_residual,
    halvings,
    plain_stage,
    residual_stage,
    stem,
    style_of,
)

BASIC = Style(False, 1, (2,))


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("before", "after", "n"),
    [(8, 8, 0), (8, 4, 1), (15, 7, 1), (7, 15, -1), (64, 8, 3), (2, 16, -3), (1, 1, 0)],
)
def test_halvings(before, after, n):
    assert halvings((before, 9), (after, 9)) == n


@pytest.mark.parametrize("style", [BASIC, OTHER_STYLE])
@pytest.mark.parametrize("before", [(8, 6), (7, 5), (4, 3), (2, 2), (1, 1)])
@pytest.mark.parametrize("after", [(16, 12), (15, 11), (8, 6), (4, 3), (1, 1)])
def test_stages_end_on_their_grid(style, before, after):
    stage = residual_stage(3, before, Stage("x", 8, after, True), 2, style)
    assert stage(images(2, 3, *before)).shape == (2, 8, *after)
    blocks = [layer for layer in stage if isinstance(layer, ResidualBlock)]
    assert len(blocks) == max(2, abs(halvings(before, after)))


def test_only_signed_stages_have_negative_outputs():
    for signed in (False, True):
        stage = residual_stage(3, (4, 4), Stage("x", 8, (4, 4), True), 2, BASIC, signed)
        assert (stage(images(4, 3, 4, 4)).min() < 0) == signed


def test_block_adds_the_shortcut():
    block = ResidualBlock(4, 4, "same", BASIC).eval()
    assert isinstance(block.shortcut, nn.Identity)
    x = images(2, 4, 3, 3)
    assert_array_equal(block(x).detach(), torch.relu(block.body(x) + x).detach())
    down = ResidualBlock(4, 6, "down", BASIC).eval()
    assert down(x).shape == (2, 6, 2, 2)
    assert down.shortcut(x).shape == (2, 6, 2, 2)


@pytest.mark.parametrize(("name", "stages"), [("resnet18", (64, 128, 256, 512)),
    ("resnet34", (64, 128, 256, 512)), ("resnet50", (256, 512, 1024, 2048)),
    ("wide_resnet50_2", (256, 512, 1024, 2048))])  # fmt: skip
def test_styles_are_those_of_torchvision(name, stages):
    with torch.device("meta"):
        theirs = get_model(name)
        style = style_of(theirs)
        width, grid = 64, (64, 64)
        made = nn.ModuleList()
        for i, channels in enumerate(stages):
            to = Stage(f"layer{i + 1}", channels, (64 >> i, 64 >> i), True)
            made.append(residual_stage(width, grid, to, style.depths[i], style))
            width, grid = channels, to.grid
        beginning = stem((256, 256), (64, 64))
    for i, stage in enumerate(made):
        expected = {p.shape for p in getattr(theirs, f"layer{i + 1}").parameters()}
        assert {p.shape for p in stage.parameters()} == expected
        assert count(stage) == count(getattr(theirs, f"layer{i + 1}"))
    assert count(beginning) == count(theirs.conv1) + count(theirs.bn1)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_depth_goes_by_the_grid():
    style = Style(True, 1, (3, 4, 6, 3))
    assert [style.depth(n) for n in (0, 2, 3, 4, 5, 9)] == [3, 3, 4, 6, 3, 3]
    assert OTHER_STYLE.depth(4) == 3


@pytest.mark.parametrize("grid", [(16, 12), (8, 6), (4, 3), (5, 4), (2, 1)])
def test_stem_and_plain_stage_end_on_their_grid(grid):
    assert stem((16, 12), grid)(images(2, 3, 16, 12)).shape == (2, 64, *grid)
    stage = plain_stage(3, (16, 12), Stage("x", 5, grid, True))
    assert stage(images(2, 3, 16, 12)).shape == (2, 5, *grid)


def test_grid_returns_matching_features_unchanged():
    x = images(1, 2, 4, 4)
    assert Grid((4, 4))(x) is x
    assert Grid((5, 3))(x).shape == (1, 2, 5, 3)


def test_built_from_a_private_generator():
    def build(seed):
        return build_residual(
            lambda: residual_stage(3, (4, 4), Stage("x", 8, (8, 8), True), 2, BASIC),
            torch.Generator().manual_seed(seed),
        )

    before = torch.get_rng_state()
    first, second, other = build(0), build(0), build(1)
    assert_array_equal(torch.get_rng_state(), before)
    for name, tensor in first.state_dict().items():
        assert tensor.isfinite().all()
        assert_array_equal(tensor, second.state_dict()[name])
    assert (first(images(2, 3, 4, 4)) != other(images(2, 3, 4, 4))).any()


def test_striding_before_a_1x1_convolution_is_striding_in_it():
    block = ResidualBlock(4, 6, "down", BASIC).eval()
    pool, convolution, norm = block.shortcut
    x = images(2, 4, 7, 6)
    strided = norm(nn.functional.conv2d(x, convolution.weight, stride=2))
    torch.testing.assert_close(norm(convolution(pool(x))), strided)


def test_gradients_of_few_channels_on_large_grids_are_finite():
    # a strided 1x1 convolution would write past its memory here (oneDNN's issue 6035)
    stage = residual_stage(4, (64, 64), Stage("x", 8, (32, 32), True), 2, BASIC)
    stage.to(memory_format=torch.channels_last)
    x = images(16, 4, 64, 64).to(memory_format=torch.channels_last)
    stage(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in stage.parameters())
