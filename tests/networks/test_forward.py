"""Forward cloners: ResNets with memories between their stages."""

from __future__ import annotations

import pytest
import torch
from conftest import TinySource
from test_residual import count
from test_reverse import SHAPES, plan_of
from torchvision.models import get_model

from skmkd._networks.forward import ForwardCloner
from skmkd._networks.layers import STAGE_ENDS, LayerIndex
from skmkd._networks.recall import MemoryPlan
from skmkd._networks.residual import OTHER_STYLE, build_residual


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_at_256_pixels(name):
    stages, style = plan_of(name, 256)
    with torch.device("meta"):
        style = style._replace(width=1)
        cloner = ForwardCloner(stages, (256, 256), style, (), MemoryPlan(50, (1, 2), 0.1))
        output = cloner(torch.zeros(2, 3, 256, 256))
    assert {layer: features.shape for layer, features in output.items()} == {
        stage.layer: (2, stage.channels, *stage.grid) for stage in stages
    }
    memories = {int(level): m.values.shape[1] for level, m in cloner.memories.items()}
    assert memories == {1: SHAPES[name][0][0], 2: SHAPES[name][1][0]}


def test_without_memories_it_is_torchvision_s_resnet50_as_far_as_stage_3():
    stages, style = plan_of("wide_resnet50_2", 256)
    style = style._replace(width=1)
    with torch.device("meta"):
        cloner = ForwardCloner(stages, (256, 256), style, (), MemoryPlan(50, (), 0.1))
        theirs = get_model("resnet50")
    parts = (theirs.conv1, theirs.bn1, theirs.layer1, theirs.layer2, theirs.layer3)
    assert count(cloner) == sum(map(count, parts))


def test_a_memory_feeds_the_next_stage_only():
    stages, style = plan_of("resnet18", 32)
    cloner = ForwardCloner(stages, (32, 32), style, (), MemoryPlan(4, (2,), 0.1)).eval()
    cloner.memories["2"].draw(torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = cloner(images)
    with torch.no_grad():
        cloner.memories["2"].values += 1
    after = cloner(images)
    changed = [bool((before[stage.layer] != after[stage.layer]).any()) for stage in stages]
    assert changed == [False, False, True]


@pytest.mark.parametrize("levels", [(), (1,)])
def test_every_parameter_learns_from_the_output(levels):
    index = LayerIndex(TinySource())
    stages = index.stages(index.choose(2, STAGE_ENDS), (64, 64))  # of few channels
    cloner = build_residual(
        lambda: ForwardCloner(stages, (64, 64), OTHER_STYLE, (), MemoryPlan(5, levels, 0.5)),
        torch.Generator().manual_seed(0),
    ).to(memory_format=torch.channels_last)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    output = cloner(images.to(memory_format=torch.channels_last))
    sum(output[stage.layer].square().sum() for stage in stages).backward()
    for name, parameter in cloner.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
