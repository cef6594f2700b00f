"""Tracing of one network at a time while other threads compute, and extraction of layers."""

from __future__ import annotations

import copy
import linecache
import os
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import pytest
import torch
from conftest import TinySource
from torch import fx, nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import get_graph_node_names

from skmkd._networks.tracing import TRACING, FeatureExtractor, Tracer, extract_features, trace

LAYERS = ["features.2", "features.5"]


def images(side=16):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def assert_alike(got, expected):
    assert got.keys() == expected.keys()
    for layer, activations in expected.items():
        assert torch.equal(got[layer], activations)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_nodes_have_torchvision_s_names_and_give_what_their_modules_do(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = get_model(name, weights=None).eval()
    names = get_graph_node_names(network, suppress_diff_warning=True)[1]
    assert list(trace(network)[1].values()) == names
    modules = dict(network.named_modules())
    unique = [layer for layer in names if layer in modules and f"{layer}_1" not in names]
    outputs = {}
    with torch.no_grad():
        got = extract_features(network, unique[:40:5])(images(64))
        for layer in got:
            modules[layer].register_forward_hook(
                lambda _, __, output, layer=layer: outputs.update({layer: output.clone()})
            )
        network(images(64))
    assert len(outputs) == 8
    assert_alike(got, outputs)


def test_what_follows_the_last_layer_is_cut_off():
    network = TinySource()
    extractor = extract_features(network, LAYERS[:1])
    assert set(extractor.state_dict()) == {
        name for name in network.state_dict() if name.startswith("features.0.")
    }


def test_unused_branches_are_left_out():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.early = nn.Parameter(torch.ones(5))
            self.stem, self.side, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            early = self.early
            x = self.stem(x)
            side = self.side(x).mean()
            return self.last(x), side, early

    extractor = extract_features(Branching().eval(), ["stem", "last"])
    assert {name.partition(".")[0] for name in extractor.state_dict()} == {"stem", "last"}


def test_images_of_the_caller_are_not_changed():
    class Overwriting(nn.Module):
        def forward(self, x):
            return torch.nn.functional.max_pool2d(x.sub_(1).relu_(), 2)

    given = images()
    got = extract_features(Overwriting(), ["max_pool2d"])(given)
    assert torch.equal(given, images())
    expected = torch.nn.functional.max_pool2d((images() - 1).relu(), 2)
    assert torch.equal(got["max_pool2d"], expected)


@contextmanager
def traced_meanwhile() -> Iterator[nn.Module]:
    """Keep a thread in the midst of tracing a network, and give that."""
    begun, over = Event(), Event()

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.ones(1))

        def forward(self, x):
            begun.set()
            assert over.wait(60)
            return x + self.shift

    slow = Slow()
    with ThreadPoolExecutor(1) as thread:
        tracing = thread.submit(trace, slow)
        try:
            assert begun.wait(60)
            yield slow
        finally:
            over.set()
        assert list(tracing.result()[1].values()) == ["x", "shift", "add"]


def test_other_threads_compute_while_one_traces():
    network, extractor = TinySource().eval(), extract_features(TinySource().eval(), LAYERS)
    with torch.no_grad():
        expected = network(images())
        parts = extractor(images())
        with traced_meanwhile() as traced:
            assert isinstance(traced.shift, nn.Parameter)
            assert torch.equal(network(images()), expected)
            assert_alike(extractor(images()), parts)


@pytest.mark.parametrize("kind", ["trace", "unpickle"])
def test_networks_are_traced_one_after_the_other(kind):
    call, attribute = nn.Module.__call__, nn.Module.__getattr__
    network = TinySource().eval()
    pickled = pickle.dumps(extract_features(network, LAYERS))
    work = {
        "trace": lambda: extract_features(network, LAYERS),
        "unpickle": lambda: pickle.loads(pickled),
    }
    with ThreadPoolExecutor(1) as thread:
        with traced_meanwhile():
            waiting = thread.submit(work[kind])
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        with torch.no_grad():
            assert_alike(waiting.result()(images()), extract_features(network, LAYERS)(images()))
    assert nn.Module.__call__ is call
    assert nn.Module.__getattr__ is attribute


def test_a_pickle_is_read_with_other_threads_in_mind():
    first = extract_features(TinySource().eval(), LAYERS)
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(first))))
    assert isinstance(again, FeatureExtractor)
    assert again.graph._tracer_cls is Tracer
    assert not again.training
    assert again.code == first.code
    assert_alike(again.state_dict(), first.state_dict())


def test_torch_keeps_no_code():
    def kept():
        return sum(name.startswith("<eval_with_key>") for name in linecache.cache)

    before = kept()
    extractor = extract_features(TinySource().eval(), LAYERS)
    copy.deepcopy(extractor).recompile()
    assert kept() == before


def test_threads_read_different_pickles_side_by_side():
    extractors = [
        extract_features(TinySource().eval(), layers) for layers in (LAYERS, LAYERS[:1], LAYERS[1:])
    ]
    pickles = [pickle.dumps(each) for each in extractors]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as threads:
            read = list(threads.map(pickle.loads, 20 * pickles))
    finally:
        sys.setswitchinterval(usual)
    assert [each.code for each in read] == 20 * [each.code for each in extractors]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_waits_until_a_network_is_traced():
    with ThreadPoolExecutor(2) as threads:
        with traced_meanwhile():
            forked = threads.submit(_free_in_a_fork)
            with pytest.raises(TimeoutError):
                forked.result(timeout=0.2)
        assert forked.result() == 0


def _free_in_a_fork() -> int:
    """Return the exit code of a fork, which is 0 if networks can be traced in it."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(0 if TRACING.acquire(timeout=10) else 1)


def test_an_error_ends_tracing():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(fx.proxy.TraceError):
        trace(Branching())
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(TRACING.acquire, timeout=10).result()
        thread.submit(TRACING.release).result()
