"""OpenVINO's results against torch's, and what the engine must leave alone."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from skmkd._networks import cloners, openvino
from skmkd._networks.cloners import build_cloner, cloner_blocks
from skmkd._networks.forward import ForwardCloner
from skmkd._networks.layers import REDUCTIONS, Stage
from skmkd._networks.openvino import compile_openvino
from skmkd._networks.precision import BFloat16
from skmkd._networks.recall import MemoryPlan
from skmkd._networks.residual import OTHER_STYLE, build_residual
from skmkd._networks.reverse import ReverseCloner
from skmkd._networks.sources import build_source

if find_spec("openvino") is None:  # to import it here would send telemetry
    pytest.skip("needs OpenVINO", allow_module_level=True)

CPU = torch.device("cpu")
POOLS = ["features.4", "features.9", "features.16", "features.23"]
SIDE = 32
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03}  # relative distance; of bfloat16's last bit 0.004


def vgg16(precision):
    return build_source("vgg16", "auto", POOLS, REDUCTIONS, (SIDE, SIDE), CPU, precision, 0)


def images(n=4, side=SIDE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, side, side, generator=generator).to(memory_format=torch.channels_last)


def as_if_trained(cloner):
    """Give a cloner statistics and weights of batch norms as training might leave them."""
    generator = torch.Generator().manual_seed(1)
    for module in cloner.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                nn.init.uniform_(tensor, low, high, generator=generator)
    return cloner.eval().requires_grad_(False)


def mkd_cloner():
    blocks = cloner_blocks(vgg16("float32").stages, (SIDE, SIDE), "compact")
    return as_if_trained(build_cloner(blocks, (SIDE, SIDE), torch.Generator().manual_seed(0)))


STAGES = tuple(Stage(f"layer {c}", c, (g, g), True) for c, g in ((16, 8), (32, 4), (64, 2)))


def memory_cloner(kind, levels):
    plan = MemoryPlan(10, levels, 0.1)
    make = partial(kind, STAGES, (SIDE, SIDE), OTHER_STYLE, (), plan)
    return as_if_trained(build_residual(make, torch.Generator().manual_seed(0)))


def exact(network, inputs):
    """Compute a network in torch's float64, which oneDNN has not."""
    doubled = copy.deepcopy(getattr(network, "network", network)).double()
    return {name: a.float() for name, a in doubled(inputs.double()).items()}


def distance(got, expected):
    return ((got.float() - expected.float()).norm() / expected.float().norm()).item()


def least_cosine(got, expected):
    return torch.cosine_similarity(got.float(), expected.float(), dim=1).min().item()


def assert_close(got, expected, precision):
    assert list(got) == list(expected)
    for layer, activations in expected.items():
        assert got[layer].shape == activations.shape
        assert got[layer].dtype == getattr(torch, precision)
        assert distance(got[layer], activations) < TOLERANCE[precision]
        if precision == "bfloat16":
            assert least_cosine(got[layer], activations) > 0.998  # torch's bfloat16: 0.999


# Results


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("side", [SIDE, 48])
def test_source_computes_what_torch_does(precision, side):
    source = vgg16(precision).network
    x = images(side=side)
    assert_close(compile_openvino(source, precision)(x), exact(source, x), precision)


def test_padding_that_depends_on_the_size():
    height, width = 33, 32
    given = "efficientnet_lite0", "auto", 4, REDUCTIONS, (height, width), CPU, "float32", 0
    source = build_source(*given).network
    x = images(side=height)[..., :width]
    assert_close(compile_openvino(source, "float32")(x), exact(source, x), "float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "make", [mkd_cloner, partial(memory_cloner, ForwardCloner, (1, 2))], ids=["MKD", "MemMKD"]
)
def test_cloner_computes_what_torch_does(make, precision):
    cloner, x = make(), images()
    assert_close(compile_openvino(cloner, precision)(x), exact(cloner, x), precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_reverse_cloner_takes_features_in_any_order(precision):
    cloner, generator = memory_cloner(ReverseCloner, (1, 2, 3)), torch.Generator().manual_seed(2)
    target = {s.layer: torch.randn(4, s.channels, *s.grid, generator=generator) for s in STAGES}
    run, expected = compile_openvino(cloner, precision), cloner(target)
    assert_close(run(target), expected, precision)
    features = {layer: target[layer].to(torch.bfloat16) for layer in reversed(target)}
    assert_close(run(features), cloner({n: a.float() for n, a in features.items()}), precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [lambda p: vgg16(p).network, lambda _: mkd_cloner()])
def test_each_image_has_the_same_result_in_any_batch(make, precision):
    run, x = compile_openvino(make(precision), precision), images(9)
    alone = [run(each[None]) for each in x]
    for n in (2, 3, 9):
        for layer, activations in run(x[:n]).items():
            assert torch.equal(activations, torch.cat([each[layer] for each in alone[:n]]))


def test_later_calls_leave_results_alone():
    run = compile_openvino(mkd_cloner(), "float32")
    first = run(images(seed=1))
    before = {layer: a.clone() for layer, a in first.items()}
    run(images(seed=2))
    assert all(torch.equal(first[layer], a) for layer, a in before.items())


def test_cloner_runs_without_chunks(monkeypatch):
    cloner, x = mkd_cloner(), images()
    monkeypatch.setattr(cloners, "CHUNK_BYTES", 1)  # of torch, that is of one image
    assert_close(compile_openvino(cloner, "float32")(x), cloner(x), "float32")


# Surroundings


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_network_and_images_stay_as_they_are(precision):
    source, x = vgg16(precision).network, images()
    before, pixels = copy.deepcopy(source.state_dict()), x.clone()
    run = compile_openvino(source, precision)
    expected = run(x)
    assert torch.equal(x, pixels)
    for name, tensor in source.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
        tensor.zero_()
    for layer, activations in run(images(side=48)[..., :SIDE, :SIDE].clone()).items():
        assert activations.shape == expected[layer].shape
        assert activations.any()  # of the copy


def test_without_bfloat16_products_are_float32(monkeypatch):
    monkeypatch.setattr(openvino, "is_native", lambda _: False)
    source, x = vgg16("bfloat16").network, images()
    got = compile_openvino(source, "bfloat16")(x)
    for layer, activations in exact(BFloat16(source.network.float()), x).items():
        assert got[layer].dtype == torch.bfloat16
        assert distance(got[layer], activations) < 2**-8  # rounded once


def test_threads_share_a_network():
    run = compile_openvino(mkd_cloner(), "float32")
    batches = [images(n, side, seed=n) for n in (1, 2, 5) for side in (SIDE, 48)] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, batches))
    for batch, got in zip(batches, found, strict=True):
        assert all(torch.equal(got[layer], a) for layer, a in run(batch).items())


def test_other_threads_compute_meanwhile():
    network, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval(), images()
    expected, done, wrong = network(x), threading.Event(), []

    def compute():
        while not done.is_set():
            wrong.append(not torch.equal(network(x), expected))

    with ThreadPoolExecutor(1) as pool:
        computing = pool.submit(compute)
        for _ in range(3):
            compile_openvino(mkd_cloner(), "float32")(images())
        done.set()
        computing.result()
    assert wrong
    assert not any(wrong)


@pytest.mark.skipif(sys.platform != "linux", reason="others do not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forked_child_ends():
    run = compile_openvino(mkd_cloner(), "float32")
    threads, expected = torch.get_num_threads(), run(images())
    torch.set_num_threads(2)
    several = compile_openvino(mkd_cloner(), "float32")
    several(images())
    torch.set_num_threads(1)
    alone, runs = run(images()), [run, several]
    del several

    def child():
        runs.pop()  # has threads that are not in the child
        x = images(2)
        assert all(torch.equal(a, alone[layer][:2]) for layer, a in runs.pop()(x).items())

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    process.kill()
    torch.set_num_threads(threads)
    assert process.exitcode == 0
    assert_close(alone, expected, "float32")


def test_nothing_is_sent_or_logged(capfd, caplog):
    compile_openvino(mkd_cloner(), "float32")(images())
    assert "openvino_telemetry" not in sys.modules
    assert capfd.readouterr() == ("", "")
    assert all(record.levelno == logging.DEBUG for record in caplog.records)  # torch's own


def test_number_of_threads_follows_torch(monkeypatch):
    run, x = compile_openvino(mkd_cloner(), "float32"), images()
    for n in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n: n)
        run(x)
    used = [c.get_property("INFERENCE_NUM_THREADS") for c, _ in run._known.values()]
    assert used == [0, 2]  # 0 is the caller's own


# Errors


def test_openvino_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"engine='openvino' needs .*skmkd\[openvino\]"):
        compile_openvino(mkd_cloner(), "float32")


class Bessel(nn.Module):
    def forward(self, x):
        return {"waves": torch.special.bessel_j0(x)}


def test_unknown_operations_are_named():
    run = compile_openvino(Bessel(), "float32")
    with pytest.raises(ValueError, match=r"(?s)engine='torch'.*bessel_j0"):
        run(images())


class OneByOne(nn.Module):
    def forward(self, x):
        return {"pixels": torch.cat([x[i : i + 1] for i in range(len(x))])}


def test_number_of_images_must_be_free():
    with pytest.raises(ValueError, match="one size for any number of images"):
        compile_openvino(OneByOne(), "float32")(images())
