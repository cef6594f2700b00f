from __future__ import annotations

import hashlib
import io
from importlib import resources
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from conftest import TinySource
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from skmkd._networks import sources
from skmkd._networks.layers import REDUCTIONS
from skmkd._networks.sources import (
    IMAGENET,
    build_source,
    fingerprint,
    rebuild_source,
    source_state,
)

CPU = torch.device("cpu")
VGG_LAYERS = ["features.9", "features.16", "features.23", "features.30"]
LITE_LAYERS = ["stages.1", "stages.2", "stages.3", "stages.5"]


def build(source, weights="auto", layers="auto", size=(32, 32), seed=0):
    return build_source(source, weights, layers, REDUCTIONS, size, CPU, "float32", seed)


def critical(source):
    return [stage.layer for stage in source.stages if stage.critical]


def images(size=32, n=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


# The bundled networks


def test_bundled_vgg16_has_the_paper_s_layers():
    source = build("vgg16", size=(128, 128))
    assert critical(source) == VGG_LAYERS
    assert [(s.channels, s.grid) for s in source.stages] == [
        (64, (64, 64)), (128, (32, 32)), (256, (16, 16)), (512, (8, 8)), (512, (4, 4)),
    ]  # fmt: skip
    assert source.normalization == IMAGENET
    assert not any(p.requires_grad or p.is_meta for p in source.network.parameters())
    assert not source.network.training


def test_bundled_vgg16_computes_what_torchvision_s_network_does():
    content = (resources.files("skmkd") / "weights" / "vgg16_imagenet_fp16.pt").read_bytes()
    weights = torch.load(io.BytesIO(content), weights_only=True)
    features = torchvision.models.vgg16().features.eval()
    features.load_state_dict(weights)
    expected, x = {}, images()
    with torch.no_grad():
        for index, layer in enumerate(features):
            x = layer(x)
            expected[f"features.{index}"] = x.clone()
    got = build("vgg16").network(images())
    assert list(got) == VGG_LAYERS
    for layer, activations in got.items():
        torch.testing.assert_close(activations, expected[layer], rtol=1e-4, atol=1e-5)


def test_bundled_lite0_has_layers_at_the_same_strides():
    source = build("efficientnet_lite0", size=(128, 128))
    assert critical(source) == LITE_LAYERS
    grids = [s.grid for s in source.stages]
    assert grids == [s.grid for s in build("vgg16", size=(128, 128)).stages]
    assert source.origin == ("efficientnet_lite0", "bundled")
    assert not any(p.requires_grad or p.is_meta for p in source.network.parameters())


def test_bundled_lite0_takes_pixels_around_127():
    """(pixel - 127) / 128, for pixels from 0 to 255."""
    mean, std = build("efficientnet_lite0").normalization
    pixels = np.array([0.0, 127, 255])
    for m, s in zip(mean, std, strict=True):
        np.testing.assert_allclose((pixels / 255 - m) / s, (pixels - 127) / 128, atol=1e-12)


LICENCES = {"vgg16": "CC BY 4.0", "efficientnet_lite0": "Apache 2.0"}


@pytest.mark.parametrize("name", sources.BUNDLES)
def test_bundled_weights_are_documented_and_whole(name):
    folder, bundle = resources.files("skmkd") / "weights", sources.BUNDLES[name]
    content = (folder / bundle.file).read_bytes()
    assert hashlib.sha256(content).hexdigest() == bundle.sha256
    (part,) = (
        part for part in (folder / "PROVENANCE.md").read_text().split("\n# ")
        if bundle.file in part.partition("\n")[0]
    )  # fmt: skip
    assert bundle.sha256 in part
    assert LICENCES[name] in part


@pytest.mark.parametrize("name", sources.BUNDLES)
def test_damaged_bundled_weights_are_refused(monkeypatch, name):
    damaged = sources.BUNDLES[name]._replace(sha256="0" * 64)
    monkeypatch.setitem(sources.BUNDLES, name, damaged)
    with pytest.raises(OSError, match=f"{damaged.file} are damaged; reinstall"):
        build(name)


# Other weights


def test_random_weights_warn_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    with pytest.warns(UserWarning, match="source_weights=None gives 'resnet18' random weights"):
        first = build("resnet18", None)
    with pytest.warns(UserWarning, match="random weights"):
        again = build("resnet18", None)
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_from_a_file_or_a_dict(tmp_path, suffix):
    state = {k: v for k, v in get_model("resnet18").state_dict().items() if "num_batches" not in k}
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    for weights in (path, str(path), state):
        network = build("resnet18", weights).network
        assert torch.equal(
            network.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"]
        )
    with torch.no_grad():
        state["layer1.0.conv1.weight"].zero_()
    assert network.state_dict()["layer1.0.conv1.weight"].any()


def test_module_keeps_its_own_weights_and_is_left_alone():
    module = TinySource().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    source = build(module, layers=2)
    source.network(images())
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert all(m.inplace for m in module.modules() if isinstance(m, nn.ReLU))
    for name, tensor in source.network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(module.state_dict()[name], before[name])


def test_module_takes_weights_from_a_dict():
    other = TinySource(seed=1).state_dict()
    network = build(TinySource(), other, layers=2).network
    assert all(torch.equal(tensor, other[name]) for name, tensor in network.state_dict().items())


def test_download_that_fails_says_what_to_do(monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    before = torch.random.get_rng_state()
    with pytest.raises(
        ConnectionError,
        match=r"resnet18-.*\.pth.*no network.*pass its path.*or use 'vgg16' or 'eff",
    ):
        build("resnet18", "imagenet")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("weights", ["imagenet", TinySource(seed=1).state_dict()])
def test_torchvision_s_networks_have_their_own_normalization(monkeypatch, weights):
    monkeypatch.setattr(sources, "get_model", lambda name, **_: TinySource())
    source = build("efficientnet_v2_l", weights, layers=2)
    assert source.normalization == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert build("resnet18", weights, layers=2).normalization == IMAGENET


BAD_WEIGHTS = {
    "no bundle": (
        "resnet18",
        "auto",
        "only 'vgg16' and 'efficientnet_lite0' come with weights; got 'auto'",
    ),
    "no bundle, asked": ("resnet18", "bundled", "come with weights; got 'bundled'"),
    "not torchvision's": (
        "efficientnet_lite0",
        "imagenet",
        "must be 'bundled', .* for 'efficientnet_lite0', which torchvision does not have",
    ),
    "other network's": ("efficientnet_lite0", TinySource().state_dict(), "hold 'stem.weight'"),
    "typing error": ("vgg16", "imagnet", "got 'imagnet', where there is no file"),
    "module": (TinySource(), "imagenet", "module, which brings its own weights"),
    "missing": (TinySource(), {}, "must hold 'features.0.weight'"),
    "shape": (
        TinySource(),
        TinySource().state_dict() | {"features.0.bias": torch.zeros(5)},
        r"'features.0.bias' in shape \(4,\); got \(5,\)",
    ),
    "not tensors": (TinySource(), {"a": 1}, "must map the names of parameters to tensors"),
}


@pytest.mark.parametrize(("source", "weights", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_weights(source, weights, message):
    with pytest.raises(ValueError, match=message):
        build(source, weights, layers=2)


@pytest.mark.parametrize("name", ["code.pt", "empty.pt", "text.safetensors"])
def test_bad_files(tmp_path, name):
    path = tmp_path / name
    if name == "code.pt":
        torch.save(nn.ReLU(), path)
    else:
        path.write_bytes(b"" if name == "empty.pt" else b"not tensors")
    with pytest.raises(ValueError, match="must be a file of tensors, read without running code"):
        build("vgg16", path)


def test_unknown_source():
    with pytest.raises(
        ValueError, match="source must be 'vgg16', 'efficientnet_lite0', another .* got 'vgg61'"
    ):
        build("vgg61")


# Building a source again


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sources.BUNDLES)
def test_rebuilt_source_computes_the_same(name, precision):
    first = build_source(name, "bundled", 2, REDUCTIONS, (32, 32), CPU, precision, 0)
    assert first.origin == (name, "bundled")
    for given in (source_state(first.network), "bundled"):
        layers = critical(first)
        again = rebuild_source(first.origin, given, layers, CPU, precision)
        assert fingerprint(source_state(again)) == fingerprint(source_state(first.network))
        for layer, activations in again(images()).items():
            assert torch.equal(activations, first.network(images())[layer])


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_inception_treats_its_input_as_torchvision_s_weights_ask(monkeypatch):
    torchvision_s = get_model("inception_v3", init_weights=False, transform_input=True).eval()
    monkeypatch.setattr(sources, "_download", lambda *_: torchvision_s)
    first = build_source("inception_v3", "imagenet", 1, REDUCTIONS, (75, 75), CPU, "float32", 0)
    assert first.origin == ("inception_v3", "imagenet")
    state = source_state(first.network)
    given = build_source("inception_v3", state, 1, REDUCTIONS, (75, 75), CPU, "float32", 0)
    again = rebuild_source(first.origin, state, critical(first), CPU, "float32")
    assert given.network.code == again.code == first.network.code


def test_origins():
    tiny = TinySource()
    assert build(tiny, layers=2).origin == ("TinySource", "module")
    assert build("vgg16", source_state(build("vgg16").network)).origin == ("vgg16", "given")
    assert build(
        "efficientnet_lite0", source_state(build("efficientnet_lite0").network)
    ).origin == (
        "efficientnet_lite0",
        "given",
    )
    with pytest.warns(UserWarning, match="random weights"):
        assert build("efficientnet_lite0", None).origin == ("efficientnet_lite0", "random")
    with pytest.warns(UserWarning, match="random weights"):
        assert build("squeezenet1_1", None, layers=1).origin == ("squeezenet1_1", "random")


def test_fingerprint_is_of_names_shapes_types_and_numbers():
    state = {"a": torch.arange(4.0), "b": torch.tensor(1)}
    others = [
        {"a": torch.arange(4.0)},
        {"a": torch.arange(4.0), "c": torch.tensor(1)},
        {"a": torch.arange(4.0).reshape(2, 2), "b": torch.tensor(1)},
        {"a": torch.arange(4.0).double(), "b": torch.tensor(1)},
        {"a": torch.tensor([0.0, 1.0, 2.0, 3.0000002]), "b": torch.tensor(1)},
    ]
    hashes = {fingerprint(other) for other in others}
    assert len(hashes - {fingerprint(state)}) == len(others)
    assert fingerprint(dict(reversed(state.items()))) == fingerprint(state)
