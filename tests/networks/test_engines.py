from __future__ import annotations

import copy
import gc
import sys
import weakref
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import TINY, TinySource, needs_bfloat16, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

import skmkd
from skmkd import MemKDDetector, MKDDetector
from skmkd._networks.engines import PREPARED, cloner_output, resolve_engine
from skmkd._networks.precision import products_in

needs_openvino = pytest.mark.skipif(  # it is not imported here: it would tell its makers
    find_spec("openvino") is None, reason="OpenVINO is not installed"
)
CPU = torch.device("cpu")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.03}  # of scores, between engines


@pytest.fixture
def detector(images):
    """A detector in float32."""
    return tiny_detector(precision="float32").fit(images)


@pytest.fixture
def batch(detector, images):
    return detector._prepare(list(images))


def computed(cloner, inputs, precision="float32", folded=True):
    with torch.no_grad():
        return cloner_output(cloner, inputs, precision, CPU, "torch", folded)


@pytest.mark.parametrize(
    ("precision", "native"),
    [("float32", True), ("bfloat16", False), pytest.param("bfloat16", True, marks=needs_bfloat16)],
)
def test_a_folded_cloner_computes_what_the_trained_one_does(
    detector, batch, precision, native, monkeypatch
):
    for module in ("precision", "fusion"):
        monkeypatch.setattr(f"skmkd._networks.{module}.is_native", lambda _: native)
    tolerance = 1e-5 if precision == "float32" else 0.02
    with torch.no_grad(), products_in(precision, CPU):
        expected = detector.cloner_(batch)
    for layer, activations in computed(detector.cloner_, batch, precision).items():
        assert activations.dtype == getattr(torch, precision)
        distance = (activations.float() - expected[layer].float()).norm()
        assert distance < tolerance * expected[layer].float().norm()
    assert any(isinstance(m, nn.BatchNorm2d) for m in detector.cloner_.modules())  # unchanged


def test_a_cloner_is_folded_once_and_anew_when_it_changes(detector, batch):
    cloner = copy.deepcopy(detector.cloner_)
    assert cloner not in PREPARED
    before = computed(cloner, batch)
    (prepared,) = PREPARED[cloner].values()
    computed(cloner, batch)
    assert PREPARED[cloner]["torch", "float32"] is prepared
    with torch.no_grad():
        next(m for m in cloner.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.add_(1)
        expected = cloner(batch)
    after = computed(cloner, batch)
    assert PREPARED[cloner]["torch", "float32"] is not prepared
    for layer, activations in after.items():
        assert not torch.allclose(activations, before[layer])
        torch.testing.assert_close(activations, expected[layer], rtol=1e-4, atol=1e-5)
    gone = weakref.ref(cloner)
    del cloner
    gc.collect()
    assert gone() is None, "what is prepared of it keeps it"


def test_what_learns_or_is_the_user_s_or_of_an_earlier_file_is_computed_as_it_is(detector, batch):
    with torch.no_grad():
        expected = detector.cloner_(batch)
    for cloner, gradients, folded in (
        (copy.deepcopy(detector.cloner_), True, True),
        (copy.deepcopy(detector.cloner_), False, False),
        (nn.Sequential(copy.deepcopy(detector.cloner_)).eval(), False, True),
    ):
        with torch.set_grad_enabled(gradients):
            output = cloner_output(cloner, batch, "float32", CPU, "torch", folded)
        assert cloner not in PREPARED
        for layer, activations in output.items():
            assert torch.equal(activations, expected[layer])
            assert activations.requires_grad == gradients
    cloner = copy.deepcopy(detector.cloner_)
    next(m for m in cloner.modules() if isinstance(m, nn.BatchNorm2d)).train()  # it is settled
    computed(cloner, batch)
    assert cloner not in PREPARED


def test_scores_of_one_of_five_hundred_are_those_of_it_alone():
    images = np.random.default_rng(0).integers(0, 256, (500, 32, 32), dtype=np.uint8)
    detector = MKDDetector(image_size=32, max_iter=1, contamination=0.05, random_state=0)
    scores = detector.fit(images[:16]).score_samples(images)
    chosen = [0, 63, 64, 250, 499]
    alone = np.concatenate([detector.score_samples(images[[i]]) for i in chosen])
    assert_allclose(alone, scores[chosen], rtol=1e-6)


# OpenVINO


def test_an_engine_and_a_device_that_do_not_fit():
    assert resolve_engine("openvino", CPU) == "openvino"
    for engine in ("auto", "torch"):
        assert resolve_engine(engine, torch.device("cuda:1")) == "torch"
    with pytest.raises(ValueError, match="'auto' or 'torch' on cuda:1; got 'openvino'"):
        resolve_engine("openvino", torch.device("cuda:1"))


def test_an_engine_that_is_not_installed(detector, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    other = copy.deepcopy(detector).set_params(engine="openvino")
    with pytest.raises(ImportError, match=r'pip install "skmkd\[openvino\]"'):
        other.score_samples(images)


@needs_openvino
@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (MKDDetector, {"precision": "bfloat16", "image_size": 32, "max_iter": 2}),
        (tiny_detector, {"precision": "float32"}),
        (tiny_detector, {"precision": "float32", "image_size": (34, 4)}),  # a grid 1 pixel wide
        (
            MemKDDetector,  # grids that are not halved exactly
            {
                "precision": "float32",
                "memory_size": 4,
                "paradigm": "reverse",
                "image_size": (18, 30),
            },
        ),
        (MemKDDetector, {"precision": "bfloat16", "memory_size": 4, "paradigm": "forward"}),
    ],
)
def test_engines_agree_on_scores_maps_and_thresholds(images, build, parameters, tmp_path):
    network = TinySource()
    if build is MemKDDetector:
        parameters = {**TINY, **parameters, "source": network, "critical_layers": 2}
    elif build is tiny_detector:
        parameters = {**parameters, "source": network}
    given = network if "source" in parameters else None
    precision = parameters["precision"]
    detector = build(**parameters, contamination=0.05).fit(images)
    expected, maps = detector.score_samples(images), detector.localize(images)
    detector.save(tmp_path / "detector.skmkd")
    other = skmkd.load(tmp_path / "detector.skmkd", source=given).set_params(engine="openvino")
    tolerance = TOLERANCE[precision]
    assert_allclose(other.score_samples(images), expected, rtol=tolerance)
    assert_allclose(other.localize(images), maps, rtol=0, atol=tolerance * maps.max())
    assert_array_equal(other.predict(images), detector.predict(images))
    other.save(tmp_path / "other.skmkd")
    back = skmkd.load(tmp_path / "other.skmkd", source=given).set_params(engine="torch")
    assert_array_equal(back.score_samples(images), expected)


@needs_openvino
def test_a_fit_with_openvino_learns_from_its_features(images):
    shared = {"source": TinySource(), "precision": "float32"}
    fits = {
        engine: tiny_detector(engine=engine, **shared).fit(images)
        for engine in ("torch", "openvino")
    }
    assert_allclose(
        fits["openvino"].score_samples(images), fits["torch"].score_samples(images), rtol=0.02
    )


@needs_openvino
def test_engines_do_not_share_stored_features(images, tmp_path):
    shared = {"source": TinySource(), "feature_store": tmp_path}
    n = []
    for engine in ("torch", "auto", "openvino", "openvino"):
        tiny_detector(engine=engine, **shared).fit(images)
        n.append(len(list(tmp_path.rglob("*.npy"))))
    assert n[0] == n[1]
    assert n[2] == n[3] == 2 * n[0]
