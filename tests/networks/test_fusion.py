from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import ACCELERATOR, needs_bfloat16, needs_cuda, needs_gpu
from torch import nn
from torchvision.models import get_model

from skmkd._networks import fusion, precision
from skmkd._networks.cloners import Cloner, cloner_blocks
from skmkd._networks.fusion import PACKED, FastMaxPool, FusedConv, fold, fuse
from skmkd._networks.layers import Stage
from skmkd._networks.precision import BFloat16
from skmkd._networks.tracing import extract_features


@pytest.fixture(scope="module")
def pixels():
    pixels = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return pixels.contiguous(memory_format=torch.channels_last)


def cut(name, layers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = extract_features(get_model(name, weights=None).eval(), layers)
        return network.requires_grad_(False).to(memory_format=torch.channels_last)


def fused_in(network):
    return [m for m in network.modules() if isinstance(m, FusedConv)]


@pytest.mark.parametrize(
    ("name", "layers", "n_activated", "n_plain", "n_left"),
    [
        ("vgg16", ["features.9", "features.30"], 13, 0, 0),
        ("vgg16", ["features.5", "features.6", "features.8"], 3, 1, 1),  # one output is a layer
        ("squeezenet1_1", ["features.12"], 25, 0, 0),
        ("resnet18", ["layer2"], 0, 10, 9),  # batch norms are in between
        ("mobilenet_v2", ["features.4"], 0, 12, 0),  # those within its blocks as well
    ],
)
def test_features_parameters_and_pickles_stay(pixels, name, layers, n_activated, n_plain, n_left):
    network = cut(name, layers)
    expected, state = network(pixels), network.state_dict()
    fuse(network)
    activations = [m.activation for m in fused_in(network)]
    assert activations.count("relu") == n_activated
    assert activations.count(None) == n_plain
    kept = [n for n in network.graph.nodes if n.op == "call_module"]
    kept = [n for n in kept if isinstance(network.get_submodule(n.target), (nn.ReLU, nn.ReLU6))]
    assert len(kept) == n_left
    assert list(network.state_dict()) == list(state)
    for one in (network, pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        with torch.no_grad():
            found = one(pixels)
        for layer, activations in one(pixels).items():  # in steps
            assert torch.equal(activations, expected[layer])
            scale = 1e-6 * activations.abs().max()
            torch.testing.assert_close(found[layer], activations, rtol=1e-5, atol=float(scale))


class Branching(nn.Module):
    """Convolutions that must stay as they are: used twice, called twice, or padded otherwise."""

    def __init__(self):
        super().__init__()
        self.twice, self.shared = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.same = nn.Conv2d(3, 3, 3, padding="same")
        self.mirrored = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.plain, self.limited = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.limit = nn.ReLU6()

    def forward(self, images):
        images = self.twice(images)
        images = images + F.relu(images)
        images = self.shared(F.relu(self.shared(images)))
        images = F.relu(self.mirrored(F.relu(self.same(images))))
        return self.limit(self.limited(torch.relu(self.plain(images)))) + 1


def test_only_an_activation_that_alone_uses_a_convolution_is_fused(pixels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = extract_features(Branching().eval(), ["add_1"]).requires_grad_(False)
    expected = network(1000 * pixels)["add_1"]
    assert expected.max() == 7  # limited
    fuse(network)
    assert {n: m.activation for n, m in network.named_modules() if isinstance(m, FusedConv)} == {
        "twice": None, "shared": None, "plain": "relu", "limited": "relu6",
    }  # fmt: skip
    assert torch.equal(network(1000 * pixels)["add_1"], expected)
    with torch.no_grad():
        torch.testing.assert_close(network(1000 * pixels)["add_1"], expected, rtol=1e-5, atol=1e-4)


def test_what_hooks_do_and_arguments_by_name_stay(pixels):
    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.relu, self.tripled = nn.ReLU(), nn.ReLU()

        def forward(self, images):
            images = self.tripled(self.second(self.relu(input=self.first(images))))
            return self.relu(self.third(images)) * 1

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Hooked().eval()
    module.third.register_forward_hook(lambda module, args, output: output * 2 - 1)
    module.tripled.register_forward_hook(lambda module, args, output: output * 3)
    network = extract_features(module, ["mul"]).requires_grad_(False)
    with torch.no_grad():
        expected = network(pixels)["mul"]
        fuse(network)
        torch.testing.assert_close(network(pixels)["mul"], expected, rtol=1e-5, atol=1e-5)
    assert [m.activation for m in fused_in(network)] == ["relu", None]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("dtype", "native"),
    [
        (torch.float32, True),
        (torch.bfloat16, False),
        pytest.param(torch.bfloat16, True, marks=needs_bfloat16),
    ],
)
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize("biased", [False, True])
def test_one_pass_computes_what_steps_do(monkeypatch, grouped, dtype, native, activation, biased):
    monkeypatch.setattr(fusion, "is_native", lambda _: native)
    generator = torch.Generator().manual_seed(0)
    groups = 8 if grouped else 1
    convolution = FusedConv(8, 16, 3, 2, 1, groups=groups, bias=biased).requires_grad_(False)
    convolution.activation = activation
    for parameter in convolution.parameters():
        parameter.normal_(generator=generator)
    convolution.to(dtype)
    images = 2 * torch.randn(3, 8, 15, 11, generator=generator)
    expected = F.conv2d(
        images.to(dtype).double(), convolution.weight.double(),
        convolution.bias.double() if biased else None, 2, 1, 1, groups,
    )  # fmt: skip
    limits = {None: (None, torch.inf), "relu": (0, None), "relu6": (0, 6)}[activation]
    with torch.no_grad():
        found = convolution(images)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(
        found.double(), expected.clamp(*limits), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_bfloat16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_s_features_do_not_depend_on_the_batch(monkeypatch, pixels, dtype, native):
    for module in (precision, fusion):
        monkeypatch.setattr(module, "is_native", lambda _: native)
    network = cut("vgg16", ["features.9", "features.30"])
    fuse(network)
    if dtype == torch.bfloat16:
        network = BFloat16(network)
    with torch.no_grad():
        together = network(pixels)
        for n in (1, 3):
            for layer, activations in network(pixels[-n:]).items():
                assert torch.equal(activations, together[layer][-n:])


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize("side", [2, 6, 16])
def test_weights_are_brought_into_a_layout_once_whatever_the_batch(side, capfd):
    network = FusedConv(128, 128, 3, padding=1).eval()
    batches = [torch.rand(n, 128, side, side) for n in (1, 3, 16)]
    with torch.inference_mode():
        network(batches[0])
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            for images in batches:
                network(images.to(memory_format=torch.channels_last))
    told = [line.split(",") for line in capfd.readouterr().out.splitlines() if ",exec," in line]
    assert sum("convolution" in line for line in told) == len(batches)
    assert not [line for line in told if "reorder" in line and "128x128x3x3" in line]


def test_packed_weights_follow_the_weights_and_are_not_pickled():
    network = FusedConv(3, 4, 3).requires_grad_(False)
    images = torch.ones(1, 3, 5, 5)
    with torch.no_grad():
        before = network(images)
        assert network in PACKED
        network.weight.mul_(2)
        network.bias.mul_(2)
        torch.testing.assert_close(network(images), 2 * before)
        network.weight = nn.Parameter(torch.zeros(4, 3, 3, 3), requires_grad=False)
        bias = network.bias.view(1, 4, 1, 1).expand(1, 4, 3, 3)
        torch.testing.assert_close(network(images), bias)
        assert network.to(torch.bfloat16)(images).dtype == torch.bfloat16
    n = len(PACKED)
    pickle.loads(pickle.dumps(network))
    assert len(PACKED) == n
    del network
    assert len(PACKED) == n - 1


@needs_bfloat16
def test_bfloat16_is_emulated_where_the_hardware_lacks_it(monkeypatch, pixels):
    network = cut("vgg16", ["features.9"])
    fuse(network)
    lowered, outputs = BFloat16(network), {}
    for native in (True, False):
        for module in (precision, fusion):
            monkeypatch.setattr(module, "is_native", lambda _, native=native: native)
        with torch.no_grad():
            outputs[native] = lowered(pixels[:2])["features.9"]
    assert (outputs[True] == outputs[False]).float().mean() > 0.98  # sums of another order


# Batch norms


@pytest.fixture
def cloner():
    """A cloner whose batch norms have learned something."""
    stages = [Stage("a", 8, (32, 32), True), Stage("b", 16, (16, 16), True)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cloner = Cloner(cloner_blocks(stages, (64, 64), "compact"), (64, 64)).eval()
        for module in cloner.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    nn.init.normal_(tensor)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return cloner.requires_grad_(False)


def test_folding_removes_norms_and_keeps_the_output(cloner, pixels):
    with torch.no_grad():
        expected = cloner(pixels)
        fold(cloner)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in cloner.modules())
        convolutions = fused_in(cloner)
        assert len(convolutions) == 4
        assert [c.activation for c in convolutions].count("relu") == 2  # the others precede a pool
        for layer, activations in cloner(pixels).items():
            torch.testing.assert_close(activations, expected[layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({"kernel_size": 2, "stride": 2}, True),
        ({"kernel_size": 3, "stride": 3}, True),
        ({"kernel_size": 3, "stride": 2}, False),  # windows overlap
        ({"kernel_size": 2, "stride": 2, "groups": 2}, False),
        ({"kernel_size": 2, "stride": 2, "padding": 1}, False),
        ({"kernel_size": (2, 4), "stride": (2, 4)}, False),
    ],
)
def test_folding_a_transposed_convolution(settings, plain, biased):
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(
        nn.Sequential(nn.ConvTranspose2d(4, 6, bias=biased, **settings), nn.BatchNorm2d(6)),
        nn.ReLU(),
    ).eval()
    for tensor in layers[0].parameters():
        nn.init.normal_(tensor, generator=generator)
    layers[0][1].running_var.fill_(4)
    layers[0][1].running_mean.fill_(0.5)
    images = torch.randn(5, 4, 4, 3, generator=generator)
    with torch.no_grad():
        expected = layers(images)
        fold(layers)
        kinds = [FusedConv, nn.PixelShuffle] if plain else [nn.ConvTranspose2d]
        norm = [nn.BatchNorm2d] if "groups" in settings else []
        assert [type(layer) for layer in layers] == [*kinds, *norm, nn.ReLU]
        found = layers(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert found.max() > 0
        if plain:
            assert torch.equal(layers(images[:1]), found[:1])


def test_a_fused_convolution_has_a_gradient(pixels):
    network = cut("vgg16", ["features.9"])
    gradients = []
    for _ in range(2):
        image = pixels.clone().requires_grad_()
        gradients += torch.autograd.grad(network(image)["features.9"].sum(), image)
        fuse(network)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("pool", "quicker"),
    [
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d((3, 3), 3, ceil_mode=True), True),
        (nn.MaxPool2d(3, stride=2), False),  # windows overlap
        (nn.MaxPool2d((2, 4)), False),
        (nn.MaxPool2d(2, padding=1), False),
        (nn.MaxPool2d(2, dilation=2), False),
    ],
)
def test_pools_of_separate_windows_are_quicker_and_the_same(pixels, pool, quicker):
    layers = nn.Sequential(pool)
    expected = layers(pixels)
    fold(layers)
    assert isinstance(layers[0], FastMaxPool) == quicker
    with torch.no_grad():
        assert torch.equal(layers(pixels), expected)


def test_a_hooked_pool_stays_as_it_is():
    layers = nn.Sequential(nn.MaxPool2d(2))
    layers[0].register_forward_hook(lambda *_: None)
    fold(layers)
    assert type(layers[0]) is nn.MaxPool2d


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("side", [60, 64])  # of windows of 4 and of 3: with a rest, and without
@pytest.mark.parametrize("window", [2, 3, 4])
def test_a_gpu_pools_alike(pixels, window, side):
    images = pixels[:, :, :side, :side].cuda().to(torch.bfloat16)
    layers = nn.Sequential(nn.MaxPool2d(window))
    expected = layers(images)
    fold(layers)
    with torch.no_grad():
        found = layers(images)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_a_gpu_convolves_three_channels_alike(pixels, activation):
    layers = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1)).to(ACCELERATOR, torch.bfloat16)
    images = pixels.to(ACCELERATOR, torch.bfloat16)
    with torch.no_grad():
        expected = layers(images)
        fold(layers)
        layers[0].activation = activation
        found = layers(images)
    limits = {None: (None, None), "relu": (0, None), "relu6": (0, 6)}[activation]
    if activation:
        expected = expected.clamp(*limits)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
