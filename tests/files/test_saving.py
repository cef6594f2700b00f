"""Pickles, and the method `save`; what the file holds is tested with the module that writes it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinySource, paper_detector, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import skmkd
from skmkd._files.saving import SavingMixin

BUILDS = pytest.mark.parametrize("build", [tiny_detector, paper_detector])


@BUILDS
def test_pickle_in_a_fresh_process(images, tmp_path, build):
    detector = build().fit(images)
    (tmp_path / "detector.pkl").write_bytes(pickle.dumps(detector))
    np.save(tmp_path / "images.npy", images)
    program = (
        "import pickle, numpy as np\n"
        "detector = pickle.load(open('detector.pkl', 'rb'))\n"
        "images = np.load('images.npy')\n"
        "np.save('scores.npy', detector.score_samples(images))\n"
        "np.save('maps.npy', detector.localize(images))\n"
    )
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent)]
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path += {paths}\n{program}"],
        cwd=tmp_path,
        check=True,
    )
    assert_allclose(np.load(tmp_path / "scores.npy"), detector.score_samples(images), rtol=1e-6)
    assert_allclose(np.load(tmp_path / "maps.npy"), detector.localize(images), rtol=1e-4)


def test_pickle_keeps_the_fit_and_everything_that_can_be_called(detector, images):
    restored = pickle.loads(pickle.dumps(detector))
    for method in ("score_samples", "predict", "localize", "predict_mask"):
        assert_array_equal(getattr(restored, method)(images), getattr(detector, method)(images))
    assert (restored.offset_, restored.map_offset_) == (detector.offset_, detector.map_offset_)
    assert (
        restored.calibrate(images, fpr=0.2).offset_ == detector.calibrate(images, fpr=0.2).offset_
    )
    assert_array_equal(
        restored.fit(images).score_samples(images), detector.fit(images).score_samples(images)
    )


def test_unfitted_detector_is_pickled_and_not_saved(images, tmp_path):
    restored = pickle.loads(pickle.dumps(tiny_detector()))
    expected = tiny_detector().fit(images).score_samples(images)
    assert_array_equal(restored.fit(images).score_samples(images), expected)
    with pytest.raises(NotFittedError):
        clone(restored).save(tmp_path / "model.skmkd")
    assert list(tmp_path.iterdir()) == []


def test_moved_state_keeps_the_device(detector, images):
    state = detector.__getstate__()
    state["device_"] = torch.device("cuda", torch.cuda.device_count())  # one that is not here
    moved = object.__new__(type(detector))
    moved.__setstate__(state)
    assert_array_equal(moved.score_samples(images), detector.score_samples(images))
    assert moved.device_ != state["device_"]
    for network in (moved.source_, moved.cloner_):
        assert {p.device.type for p in network.parameters()} == {moved.device_.type}


def test_a_pickle_of_another_version_warns_at_the_caller(detector):
    state = detector.__getstate__() | {"_skmkd_version": "0.0.1"}
    other = object.__new__(type(detector))
    with pytest.warns(UserWarning, match=rf"by skmkd 0.0.1 .* by {skmkd.__version__}") as caught:
        other.__setstate__(state)
    assert [w.filename for w in caught] == [__file__]
    assert "_skmkd_version" not in vars(other)


@BUILDS
@pytest.mark.parametrize("include_source", [True, False])
def test_save_and_load(images, tmp_path, build, include_source):
    detector, path = build().fit(images), tmp_path / "model.skmkd"
    assert detector.save(path, include_source=include_source) is detector
    loaded = skmkd.load(path, source=TinySource())
    for method in ("score_samples", "predict", "localize", "predict_mask"):
        assert_array_equal(getattr(loaded, method)(images), getattr(detector, method)(images))


def test_both_detectors_save_and_pickle_by_the_mixin():
    for detector in (skmkd.MKDDetector, skmkd.MemKDDetector):
        for method in ("save", "__getstate__", "__setstate__"):
            assert getattr(detector, method) is getattr(SavingMixin, method)
