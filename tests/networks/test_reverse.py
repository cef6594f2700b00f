"""Reverse cloners: the shapes of the papers, for every kind of source."""

from __future__ import annotations

import pytest
import torch
from conftest import TinySource, layers_and_style

from skmkd._networks.layers import STAGE_ENDS, LayerIndex
from skmkd._networks.recall import MemoryPlan
from skmkd._networks.residual import OTHER_STYLE, build_residual
from skmkd._networks.reverse import EMBEDDING, ReverseCloner

PLAN = MemoryPlan(50, (1, 2, 3), 0.1)


def plan_of(name, side):
    """Return the stages that are critical in a network of torchvision, and its style."""
    index, style = layers_and_style(name)
    stages = index.stages(index.choose("auto", STAGE_ENDS), (side, side))
    return tuple(stage for stage in stages if stage.critical), style


SHAPES = {
    "wide_resnet50_2": [(256, 64), (512, 32), (1024, 16), (2048, 8)],
    "resnet50": [(256, 64), (512, 32), (1024, 16), (2048, 8)],
    "resnet34": [(64, 64), (128, 32), (256, 16), (512, 8)],
    "resnet18": [(64, 64), (128, 32), (256, 16), (512, 8)],
    "vgg16": [(256, 64), (512, 32), (512, 16), (1024, 8)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_at_256_pixels(name):
    stages, style = plan_of(name, 256)
    *expected, embedding = SHAPES[name]
    assert [(stage.channels, *stage.grid) for stage in stages] == [(c, g, g) for c, g in expected]
    with torch.device("meta"):
        cloner = ReverseCloner(stages, (256, 256), style, (), PLAN)
        target = {s.layer: torch.zeros(2, s.channels, *s.grid) for s in stages}
        output = cloner(target)
    assert output[EMBEDDING].shape == (2, embedding[0], embedding[1], embedding[1])
    assert list(output) == [EMBEDDING, *(stage.layer for stage in reversed(stages))]
    for stage in stages:
        assert output[stage.layer].shape == (2, stage.channels, *stage.grid)
    memories = {int(level): m.keys.shape[1] for level, m in cloner.memories.items()}
    assert memories == {1: SHAPES[name][1][0], 2: SHAPES[name][2][0], 3: embedding[0]}


def test_all_layers_are_concatenated_before_the_embedding():
    stages, style = plan_of("wide_resnet50_2", 256)
    with torch.device("meta"):
        cloner = ReverseCloner(stages, (256, 256), style, (), PLAN)
        shapes = []
        cloner.bottleneck.fuse.register_forward_pre_hook(
            lambda _, args: shapes.append(args[0].shape)
        )
        target = {s.layer: torch.zeros(2, s.channels, *s.grid) for s in stages}
        cloner(target)
    assert shapes == [(2, 3072, 16, 16)]
    assert [len(way) for way in cloner.bottleneck.ways] == [2, 1, 0]  # steps of half the grid


def tiny(levels=(1, 2), signed=()):
    index = LayerIndex(TinySource())
    stages = index.stages(index.choose(2, STAGE_ENDS), (16, 16))
    return stages, build_residual(
        lambda: ReverseCloner(stages, (16, 16), OTHER_STYLE, signed, MemoryPlan(5, levels, 0.5)),
        torch.Generator().manual_seed(0),
    )


def features(stages, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {s.layer: torch.rand(3, s.channels, *s.grid, generator=generator) for s in stages}


@pytest.mark.parametrize("levels", [(), (1,), (2,), (1, 2)])
def test_every_parameter_learns_from_the_output(levels):
    stages, cloner = tiny(levels)
    output = cloner(features(stages))
    sum(output[stage.layer].square().sum() for stage in stages).backward()
    for name, parameter in cloner.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert {name.split(".")[1] for name, _ in cloner.named_parameters() if "memories" in name} == {
        str(level) for level in levels
    }


def test_output_hardly_depends_on_precision():
    stages, cloner = tiny()
    cloner.eval()
    target = features(stages)
    rounded = {layer: tensor.bfloat16() for layer, tensor in target.items()}
    first, second = cloner(target), cloner(rounded)
    for layer in target:
        assert second[layer].dtype == torch.float32
        torch.testing.assert_close(first[layer], second[layer], rtol=0.1, atol=0.1)


def test_signed_layers_end_without_relu():
    layer = tiny()[0][0].layer
    for signed in ((), (layer,)):
        stages, cloner = tiny(signed=signed)
        output = cloner(features(stages))
        assert (output[layer].min() < 0) == bool(signed)
        assert output[stages[1].layer].min() >= 0


def test_layers_on_one_grid_and_of_odd_sizes():
    for layers, size in [(["features.0", "features.1"], (9, 7)), (["features.1"], (5, 3)),
                         (["features.0", "features.4"], (17, 13))]:  # fmt: skip
        index = LayerIndex(TinySource())
        stages = tuple(s for s in index.stages(index.choose(layers, STAGE_ENDS), size)
                       if s.critical)  # fmt: skip
        plan = MemoryPlan(3, tuple(range(1, len(stages) + 1)), 0.5)
        cloner = ReverseCloner(stages, size, OTHER_STYLE, (), plan)
        output = cloner(features(stages))
        for stage in stages:
            assert output[stage.layer].shape == (3, stage.channels, *stage.grid)


def test_memories_are_drawn_last():
    with_memories, without = (tiny(levels)[1].state_dict() for levels in ((1, 2), ()))
    shared = [n for n in without if with_memories[n].shape == without[n].shape and "weight" in n]
    same = [n for n in shared if n.startswith("bottleneck")]
    assert len(same) > 5
    for name in same:
        assert (with_memories[name] == without[name]).all(), name
