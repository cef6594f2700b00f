from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import TinySource
from torch import nn
from torchvision.models import get_model

from skmkd._networks.layers import REDUCTIONS, STAGE_ENDS, LayerIndex
from skmkd._networks.sources import build_source


def build(source, weights="auto", layers="auto", size=(32, 32)):
    return build_source(
        source, weights, layers, REDUCTIONS, size, torch.device("cpu"), "float32", 0
    )


def critical(source):
    return [stage.layer for stage in source.stages if stage.critical]


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["maxpool", "layer2", "layer3", "layer4"]),
        ("wide_resnet50_2", ["maxpool", "layer2", "layer3", "layer4"]),
        ("efficientnet_b0", ["features.2", "features.3", "features.4", "features.6"]),
        ("densenet121", ["features.pool0", *(f"features.transition{i}" for i in (1, 2, 3))]),
        ("mobilenet_v3_small", ["features.1", "features.2", "features.4", "features.9"]),
        ("vgg16", ["features.9", "features.16", "features.23", "features.30"]),
        ("mobilenet_v2", ["features.2", "features.4", "features.7", "features.14"]),
        ("convnext_tiny", ["features.0", "features.2", "features.4", "features.6"]),
        ("googlenet", ["maxpool1", "maxpool2", "maxpool3", "maxpool4"]),
    ],
)
def test_auto_layers_are_the_last_four_grid_reductions(name, layers):
    with torch.device("meta"):
        index = LayerIndex(get_model(name, weights=None, init_weights=False).eval()
                                  if name == "googlenet" else get_model(name).eval())  # fmt: skip
    assert list(index.choose("auto", REDUCTIONS)) == layers


class Same(nn.Conv2d):
    """Padding in a module or a function, before a convolution that has none."""

    def __init__(self, inputs, outputs, kernel, stride, *, module):
        super().__init__(inputs, outputs, kernel, stride)
        sides = ((kernel - stride) // 2, kernel - stride - (kernel - stride) // 2) * 2
        self.pad = nn.ZeroPad2d(sides) if module else lambda x: F.pad(x, sides)

    def forward(self, x):
        return super().forward(self.pad(x))


@pytest.mark.parametrize("module", [True, False])
def test_padding_is_neither_a_reduction_nor_the_end_of_a_stage(module):
    """At the stride of 32 the maps are small: a padding of 4 pixels adds half as many again."""
    same = partial(Same, module=module)
    network = nn.Sequential(
        *(same(3, 3, kernel, 2) for kernel in (3, 5, 7, 3, 5)),
        same(3, 3, 5, 1), nn.ReLU(), same(3, 3, 5, 1),
    )  # fmt: skip
    index = LayerIndex(network)
    assert index.reductions == ["0", "1", "2", "3", "4"]
    assert index.stage_ends == ["0", "1", "2", "3"]


def test_stage_before_a_padding_module():
    network = nn.Sequential(
        nn.ZeroPad2d(3), nn.Conv2d(3, 4, 7, 2), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3),
        nn.ReLU(), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    index = LayerIndex(network)
    assert index.reductions == ["1", "4", "10"]
    assert index.stage_ends == ["2", "8"]
    assert index.choose("auto", STAGE_ENDS._replace(n=2)) == ("2", "8")


def test_upsampling_is_not_taken_for_padding():
    network = nn.Sequential(
        nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.MaxPool2d(2)
    )
    assert LayerIndex(network).reductions == ["0", "1", "3"]


def test_pools_called_as_functions_and_inplace_functions():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            x = self.convolution(x)
            x = F.max_pool2d(F.relu(x, inplace=True), 2)
            x += 1
            return F.max_pool2d(x.relu_(), 2)

    module = Functional()
    assert critical(build(module, layers=2)) == ["max_pool2d", "max_pool2d_1"]
    # each layer is copied before an in-place operation overwrites it
    names = ["convolution", "max_pool2d", "max_pool2d_1"]
    got = build(module, layers=names).network(images())
    with torch.no_grad():
        convolved = module.convolution(images())
        pooled = F.max_pool2d(convolved.relu(), 2)
    torch.testing.assert_close(got["convolution"], convolved)
    torch.testing.assert_close(got["max_pool2d"], pooled)
    torch.testing.assert_close(got["max_pool2d_1"], F.max_pool2d((pooled + 1).relu(), 2))


def test_inplace_relu_does_not_overwrite_a_critical_convolution():
    module = TinySource()
    got = build(module, layers=["features.0", "features.3"]).network(images())
    with torch.no_grad():
        expected = module.features[0](images())
    assert (expected < 0).any()
    torch.testing.assert_close(got["features.0"], expected)


def test_named_module_gives_the_output_of_its_last_node():
    with pytest.warns(UserWarning, match="random weights"):
        source = build("resnet18", None, layers=["layer1", "layer3"], size=(64, 64))
    assert [(s.layer, s.channels, s.grid, s.critical) for s in source.stages] == [
        ("conv1", 64, (32, 32), False),
        ("layer1", 64, (16, 16), True),
        ("layer2", 128, (8, 8), False),
        ("layer3", 256, (4, 4), True),
    ]


BAD_LAYERS = {
    "unknown": (["features.9", "pool5"], r"got 'pool5'. Available are features.0, .*features.30"),
    "head": (["features.9", "classifier.0"], "got 'classifier.0'. Available"),
    "order": (["features.16", "features.9"], "in the order in which the source computes them"),
    "twice": (["features.9", "features.9"], "each once"),
    "none": ([], "one or more layers"),
    "too many": (6, "be at most 5, since the reductions of .*'features.30'.*; got 6"),
}


@pytest.mark.parametrize(("layers", "message"), BAD_LAYERS.values(), ids=BAD_LAYERS)
def test_bad_layers(layers, message):
    with pytest.raises(ValueError, match=message):
        build("vgg16", layers=layers)


def test_head_of_a_fixed_size_does_not_matter():
    module = nn.Sequential(TinySource().features, nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
    source = build(module, layers=2, size=(16, 16))
    assert critical(source) == ["0.2", "0.5"]
    assert [s.grid for s in source.stages] == [(8, 8), (4, 4)]
    assert critical(build(module, layers=2, size=(40, 24))) == ["0.2", "0.5"]


def test_input_is_no_layer():
    with pytest.raises(ValueError, match="got 'images'. Available are features.0"):
        build(TinySource(), layers=["images", "features.5"])


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_networks_without_feature_maps_are_refused(name):
    with torch.device("meta"):
        network = get_model(name).eval()
    with pytest.raises(ValueError, match="critical_layers must name"):
        LayerIndex(network).choose("auto", REDUCTIONS)


def test_image_too_small_for_the_source():
    with pytest.raises(
        ValueError, match=r"at \(16, 16\) it fails before critical layer 'features.30'"
    ):
        build("vgg16", size=(16, 16))


def test_untraceable_source():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="torch.fx can trace; Branching is not"):
        build(Branching())


def test_what_lies_past_the_last_critical_layer_may_be_too_small():
    source = build("vgg16", layers=["features.9"], size=(16, 16))
    assert [(s.layer, s.grid) for s in source.stages] == [
        ("features.4", (8, 8)),
        ("features.9", (4, 4)),
    ]
