from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from conftest import TinySource, tiny_detector
from numpy.testing import assert_array_equal
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn
from torchvision.models import get_model

import skmkd
from skmkd import MKDDetector
from skmkd._files.archive import read_archive, write_archive
from skmkd._networks import sources
from skmkd._networks.sources import source_state

METHODS = ["gradient", "smooth_grad", "guided_backprop", "discrepancy"]


class OwnCloner(nn.Module):
    """A cloner for TinySource, with weights tied and a counter."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.mixing = nn.Conv2d(width, width, 1)
        self.same = self.mixing
        self.second = nn.Conv2d(width, 8, 3, 2, 1)

    def forward(self, images):
        first = self.same(self.mixing(self.first(images)))
        return {"features.2": first[:, :4], "features.5": self.second(first)}


def seeded(network_class, *arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network_class(*arguments)


def assert_same_results(loaded, detector, images, methods=("discrepancy",)):
    assert_array_equal(loaded.score_samples(images), detector.score_samples(images))
    assert_array_equal(loaded.predict(images), detector.predict(images))
    few = images[:2]
    assert_array_equal(loaded.predict_mask(few), detector.predict_mask(few))
    for method in methods:
        assert_array_equal(loaded.localize(few, method), detector.localize(few, method))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "detector.skmkd"


@pytest.fixture
def fitted(images):
    """A detector with a source from torchvision, as small as there are any."""
    network = seeded(get_model, "squeezenet1_1")
    return tiny_detector(
        source="squeezenet1_1", source_weights=network.state_dict(), image_size=32
    ).fit(images)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_results_are_identical(images, path, precision):
    detector = tiny_detector(precision=precision, image_score="map_max", cloner="equal")
    detector.fit(images).save(path)
    loaded = skmkd.load(path, source=TinySource())
    assert_same_results(loaded, detector, images, METHODS)
    loaded.calibrate(images, fpr=0.2)
    detector.calibrate(images, fpr=0.2)
    assert (loaded.offset_, loaded.map_offset_) == (detector.offset_, detector.map_offset_)
    assert_same_results(loaded, detector, images)


def test_parameters_and_attributes_round_trip(images, path):
    detector = tiny_detector(
        critical_layers=["features.2", "features.5"], score_layers=("features.5",),
        image_size=(16, 18), image_shape=(20, 24, 3), tol=None, contamination=np.float64(0.1),
        localization_params={"noise": np.float32(0.1)}, direction_weight=3, value_weight=1e-300,
        random_state=np.int64(3), precision=np.str_("float32"),
    )  # fmt: skip
    detector.fit(images).save(path)
    loaded = skmkd.load(path, source=detector.source)
    for name, value in detector.get_params().items():
        assert type(getattr(loaded, name)) is type(value), name
        assert getattr(loaded, name) == value, name
    assert set(vars(loaded)) == set(vars(detector))
    for name in set(vars(detector)) - set(detector.get_params()) - {"source_", "cloner_"}:
        got, expected = getattr(loaded, name), getattr(detector, name)
        assert type(got) is type(expected), name
        if name == "loss_curve_":
            assert list(got) == list(expected)
            for term in expected:
                assert got[term].dtype == expected[term].dtype
                assert_array_equal(got[term], expected[term])
        elif name == "layer_weights_":
            assert got.dtype == expected.dtype
            assert_array_equal(got, expected)
        else:
            assert got == expected, name


def test_loaded_detector_is_an_estimator_like_any_other(images, path):
    detector = tiny_detector().fit(images)
    loaded = skmkd.load(detector.save(path) and path, source=TinySource())
    again = clone(loaded)
    assert not hasattr(again, "offset_")
    for other in (again, loaded):
        other.fit(images)
        assert_same_results(other, detector, images)
    assert_same_results(pickle.loads(pickle.dumps(loaded)), detector, images)
    assert_same_results(copy.deepcopy(loaded), detector, images)
    loaded.save(path)
    assert_same_results(skmkd.load(path, source=TinySource()), detector, images)


def test_data_frame_columns_round_trip(path):
    pandas = pytest.importorskip("pandas")
    rows = np.random.default_rng(0).random((6, 256))
    X = pandas.DataFrame(rows, columns=[f"pixel{i}" for i in range(256)])
    detector = tiny_detector().fit(X).save(path)
    loaded = skmkd.load(path, source=detector.source)
    assert_array_equal(loaded.feature_names_in_, detector.feature_names_in_)
    assert loaded.feature_names_in_.dtype == object
    assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


def test_detector_of_bundled_vgg16(images, path):
    images = images[:4]
    detector = MKDDetector(image_size=32, max_iter=1, contamination=0.05, random_state=0).fit(
        images
    )
    detector.save(path)
    whole = path.stat().st_size
    assert_same_results(skmkd.load(path), detector, images)
    detector.save(path, include_source=False)
    assert path.stat().st_size < whole / 4
    loaded = skmkd.load(path)
    assert_same_results(loaded, detector, images)
    assert loaded.get_params() == detector.get_params()


def test_bundled_weights_are_compared_with_the_hash(images, path, monkeypatch):
    detector = MKDDetector(image_size=32, max_iter=1, contamination=0.05).fit(images[:4])
    detector.save(path, include_source=False)
    read = sources._read_bundled
    changed = lambda source: {name: t * 2 for name, t in read(source).items()}  # noqa: E731
    monkeypatch.setattr(sources, "_read_bundled", changed)
    with pytest.raises(ValueError, match="source must have the weights that .* SHA-256"):
        skmkd.load(path)


# Sources


def test_weights_of_a_named_source_are_in_the_file(images, fitted, path):
    fitted.save(path)
    loaded = skmkd.load(path)
    assert_same_results(loaded, fitted, images)
    assert all(
        torch.equal(tensor, fitted.source_weights[name])
        for name, tensor in loaded.source_weights.items()
    )
    loaded.fit(images)
    assert_same_results(loaded, fitted, images)


def test_weights_left_out_are_passed_to_load(images, fitted, path, tmp_path):
    fitted.save(path, include_source=False)
    with pytest.raises(ValueError, match="source must be the weights of 'squeezenet1_1'"):
        skmkd.load(path)
    state, file = fitted.source_weights, tmp_path / "weights.safetensors"
    save_file(state, file)
    network = get_model("squeezenet1_1")
    network.load_state_dict(state)
    for source in (state, file, str(file), network):
        assert_same_results(skmkd.load(path, source=source), fitted, images)
    other = {name: tensor * 1.001 for name, tensor in state.items()}
    with pytest.raises(ValueError, match="source must have the weights that .* SHA-256 .*; got"):
        skmkd.load(path, source=other)
    with pytest.raises(ValueError, match="source must fit what .*: source_weights must hold"):
        skmkd.load(path, source={"a": torch.ones(1)})
    with pytest.raises(ValueError, match="source must fit what .*: source_weights must be"):
        skmkd.load(path, source=tmp_path / "nothing.pt")


def test_source_of_the_user_is_passed_to_load(images, path):
    source = TinySource()
    detector = tiny_detector(source=source, source_weights=source.state_dict()).fit(images)
    detector.save(path)
    assert not any(name.startswith("source_") for name in read_archive(path)[1])
    before = copy.deepcopy(source.state_dict())
    loaded = skmkd.load(path, source=source)
    assert loaded.source is source
    assert loaded.source_weights == "auto"
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())
    assert_same_results(loaded, detector, images)
    with pytest.raises(ValueError, match="source must be the module .* a TinySource.*got None"):
        skmkd.load(path)
    with pytest.raises(ValueError, match="source must be the module .*got 'imagenet'"):
        skmkd.load(path, source="imagenet")
    with pytest.raises(ValueError, match="source must have the weights that"):
        skmkd.load(path, source=TinySource(seed=1))
    with pytest.raises(ValueError, match="source must fit what"):
        skmkd.load(path, source=nn.Conv2d(3, 4, 3))


def test_parameter_source_may_change_after_fit(images, fitted, path):
    fitted.set_params(source="vgg16", source_weights="auto", precision="auto").save(path)
    loaded = skmkd.load(path)
    assert (loaded.source, loaded.source_weights) == ("vgg16", "auto")
    assert_same_results(loaded, fitted, images)


# Cloners


def test_cloner_of_the_user_is_passed_to_load(images, path):
    detector = tiny_detector(cloner=seeded(OwnCloner)).fit(images)
    detector.save(path)
    source, cloner = TinySource(), OwnCloner()
    before = copy.deepcopy(cloner.state_dict())
    loaded = skmkd.load(path, source=source, cloner=cloner)
    assert loaded.cloner is cloner
    assert loaded.cloner_ is not cloner
    assert all(torch.equal(before[name], tensor) for name, tensor in cloner.state_dict().items())
    assert not loaded.cloner_.training
    assert_same_results(loaded, detector, images)
    with pytest.raises(ValueError, match="cloner must be a module .* a OwnCloner.*got None"):
        skmkd.load(path, source=source)
    with pytest.raises(ValueError, match=r"'first.0.bias' of shape \(4,\); got \(5,\)"):
        skmkd.load(path, source=source, cloner=OwnCloner(5))
    with pytest.raises(ValueError, match=r"of shape \(4,\); got None"):
        skmkd.load(path, source=source, cloner=nn.ReLU())


def test_superfluous_cloner(detector, path):
    detector.save(path)
    with pytest.raises(ValueError, match="cloner must be None, since"):
        skmkd.load(path, source=TinySource(), cloner=OwnCloner())


def test_cloner_with_a_state_that_is_no_tensor(images, path):
    class ExtraState(OwnCloner):
        def get_extra_state(self):
            return "hello"

        def set_extra_state(self, state):
            pass

    detector = tiny_detector(cloner=ExtraState()).fit(images)
    with pytest.raises(ValueError, match="'_extra_state' in the state of cloner_ is none"):
        detector.save(path)


# Parameters that no file holds


def test_generators_and_stores_are_none_after_loading(images, path, tmp_path):
    generator = np.random.RandomState(0)
    detector = tiny_detector(random_state=generator, feature_store=str(tmp_path / "store"))
    detector.fit(images).save(path)
    loaded = skmkd.load(path, source=detector.source)
    assert loaded.random_state is None
    assert loaded.feature_store is None
    assert_same_results(loaded, detector, images)


def test_what_cannot_be_stored_is_named(detector, path):
    detector.set_params(localization_params={"noise": 1j})
    with pytest.raises(ValueError, match=r"got parameters.localization_params.noise = 1j"):
        detector.save(path)
    detector.set_params(localization_params=None).note_ = object()
    with pytest.raises(ValueError, match=r"got attributes.note_ = <object"):
        detector.save(path)
    assert not path.exists()


def test_unfitted(path):
    with pytest.raises(NotFittedError):
        tiny_detector().save(path)


def test_class_of_the_user(images, path):
    class Own(MKDDetector):
        pass

    with pytest.raises(ValueError, match="save stores skmkd's own classes.*a Own"):
        Own(**tiny_detector().get_params()).fit(images).save(path)


# Files


def test_save_returns_the_detector(detector, path):
    assert detector.save(str(path)) is detector


def test_save_from_the_callback_of_fit(images, path):
    def keep(detector, epoch):
        if epoch == 1:
            detector.save(path)

    constant = {"schedule": "constant"}  # one cycle depends on the number of epochs
    detector = tiny_detector(max_iter=2, **constant).fit(images, callback=keep)
    kept = skmkd.load(path, source=detector.source)
    short = tiny_detector(max_iter=1, **constant).fit(images)
    assert_array_equal(kept.score_samples(images), short.score_samples(images))


def test_file_of_a_class_that_is_not_known(path):
    write_archive(path, {"detector": "os.system"}, {})
    with pytest.raises(ValueError, match=f"'{path}' holds a os.system; this skmkd knows MKDDet"):
        skmkd.load(path)


def test_loading_runs_no_code(images, fitted, path, monkeypatch):
    fitted.save(path)

    def forbidden(*_, **__):
        raise AssertionError("load must not read pickles")

    with monkeypatch.context() as patch:
        for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"),
                             (torch, "load"), (joblib, "load")]:  # fmt: skip
            patch.setattr(module, name, forbidden)
        loaded = skmkd.load(path)
    assert_same_results(loaded, fitted, images)


def test_load_leaves_the_callers_settings_alone(fitted, path):
    fitted.save(path)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    with torch.inference_mode(), torch.device("meta"):
        loaded = skmkd.load(path)
    assert torch.equal(torch.random.get_rng_state(), before)
    for network in (loaded.source_, loaded.cloner_):
        assert not any(t.is_meta or t.is_inference() for t in network.state_dict().values())


def test_load_in_a_fresh_process(images, fitted, path, tmp_path):
    fitted.save(path)
    np.save(tmp_path / "images.npy", images)
    program = (
        "import numpy as np, skmkd\n"
        "loaded = skmkd.load('detector.skmkd')\n"
        "np.save('scores.npy', loaded.score_samples(np.load('images.npy')))\n"
    )
    root = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    subprocess.run([sys.executable, "-c", root + program], cwd=tmp_path, check=True)
    assert_array_equal(np.load(tmp_path / "scores.npy"), fitted.score_samples(images))


# Devices


def test_saved_on_a_missing_device(images, fitted, path):
    expected = fitted.score_samples(images)
    elsewhere = torch.device("cuda", torch.cuda.device_count())
    fitted.device_ = elsewhere
    fitted.save(path)
    assert read_archive(path)[0]["attributes"]["device_"] == elsewhere
    assert_array_equal(skmkd.load(path, device="cpu").score_samples(images), expected)
    assert skmkd.load(path).device_ != elsewhere
    with pytest.raises(ValueError, match="device must be .* got 'nowhere'"):
        skmkd.load(path, device="nowhere")


# Pickles


def test_pickles_of_another_version_warn(detector, images, monkeypatch):
    scores = detector.score_samples(images)
    monkeypatch.setattr("skmkd._files.saving.__version__", "0.0.1")
    pickled = pickle.dumps(detector)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match=rf"by skmkd 0.0.1 .* by {skmkd.__version__}"):
        old = pickle.loads(pickled)
    assert_array_equal(old.score_samples(images), scores)
    state = detector.__getstate__()
    del state["_skmkd_version"]
    with pytest.warns(UserWarning, match="by skmkd unknown"):
        object.__new__(MKDDetector).__setstate__(state)


def test_version_of_a_pickle_is_not_an_attribute(detector, images, tmp_path):
    joblib.dump(detector, tmp_path / "detector.joblib")
    loaded = joblib.load(tmp_path / "detector.joblib")
    assert_same_results(loaded, detector, images)
    assert set(vars(loaded)) == set(vars(detector))
    assert set(vars(pickle.loads(pickle.dumps(tiny_detector())))) == set(vars(tiny_detector()))
    state = detector.__getstate__()
    assert state["_skmkd_version"] == skmkd.__version__
    object.__new__(MKDDetector).__setstate__(state)
    assert "_skmkd_version" in state  # the caller's is left alone


def test_source_state_is_what_the_file_holds(fitted, path):
    fitted.save(path)
    tensors = read_archive(path)[1]
    for name, tensor in source_state(fitted.source_).items():
        assert torch.equal(tensors[f"source_.{name}"], tensor)
    assert os.path.getsize(path) > sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("parameters", "memory"), ("parameters", "feature_store"), ("attributes", "memory"),
        ("attributes", "random_state"), ("attributes", "predict"), ("attributes", "__class__"),
        ("networks", "localize"), ("networks", "source_"), ("networks", "other_"),
    ],
)  # fmt: skip
def test_forged_file_cannot_replace_methods_or_name_a_store(detector, tmp_path, part, name):
    path = tmp_path / "model.skmkd"
    detector.save(path)
    values, tensors, _ = read_archive(path)
    values[part][name] = values["networks"]["cloner_"] if part == "networks" else str(tmp_path)
    tensors |= {n.replace("cloner_.", f"{name}."): t for n, t in tensors.items()}
    write_archive(path, values, tensors)
    with pytest.raises(ValueError, match=f"sets {name}, which no file may"):
        skmkd.load(path, source=TinySource())


def test_forged_file_without_a_cloner(detector, path):
    detector.save(path)
    values, tensors, _ = read_archive(path)
    write_archive(path, values | {"networks": {}}, tensors)
    with pytest.raises(ValueError, match="holds no cloner_"):
        skmkd.load(path, source=TinySource())
