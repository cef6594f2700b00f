from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TinySource
from numpy.testing import assert_allclose
from skimage.data import lfw_subset

import skmkd
from skmkd._loading import DETECTORS
from skmkd._scoring import ScoringMixin

FILES = Path(__file__).parent / "data"


def test_every_public_detector_can_be_loaded():
    public = [getattr(skmkd, name) for name in skmkd.__all__]
    detectors = [c for c in public if inspect.isclass(c) and issubclass(c, ScoringMixin)]
    assert {c.__name__: c for c in detectors} == DETECTORS


@pytest.mark.parametrize("name", ["mkd", "memkd"])
def test_files_of_format_1(name):
    """Such a file gives what the version that wrote it gave."""
    images = lfw_subset()[[3, 5, 50, 110, 170]]
    expected = json.loads((FILES / "format1.json").read_text())[name]
    detector = skmkd.load(FILES / f"{name}_format1.skmkd", device="cpu")
    assert_allclose(detector.score_samples(images), expected["scores"], rtol=1e-5)
    maps = detector.localize(images)
    assert_allclose(maps.max((1, 2)), expected["map_maxima"], rtol=1e-5)
    assert_allclose(maps.mean((1, 2)), expected["map_means"], rtol=1e-5)
    assert detector.offset_ == expected["offset"]
    assert detector.map_offset_ == expected["map_offset"]
    assert detector.predict(images).tolist() == expected["predictions"]
    assert detector.predict_mask(images).any((1, 2)).tolist() == [
        highest > expected["map_offset"] for highest in expected["map_maxima"]
    ]


def test_thresholds_of_format_1_hold_for_the_score_layers_of_fit():
    images = lfw_subset()[:2]
    detector = skmkd.load(FILES / "mkd_format1.skmkd", device="cpu")
    assert detector.score_layers_ == ("features.9",)
    detector.set_params(score_layers=["features.4", "features.9"])
    for method in (detector.predict, detector.predict_mask):
        with pytest.raises(ValueError, match="calibrate or\\s?fit again"):
            method(images)
    assert set(detector.set_params(score_layers=["features.9"]).predict(images)) <= {-1, 1}


def test_damaged_empty_foreign_and_missing_files(detector, tmp_path):
    path = tmp_path / "detector.skmkd"
    content = detector.save(path) and path.read_bytes()
    for position in np.linspace(0, len(content) - 1, 60).astype(int):
        damaged = bytearray(content)
        damaged[position] ^= 4
        for wrong in (damaged, content[:position]):
            path.write_bytes(wrong)
            with pytest.raises(ValueError, match=f"'{path}' cannot be loaded: "):
                skmkd.load(path, source=TinySource())
    with pytest.raises(FileNotFoundError, match="nothing.skmkd"):
        skmkd.load(tmp_path / "nothing.skmkd")


def test_being_killed_while_saving_leaves_the_old_detector(detector, images, tmp_path):
    path = tmp_path / "detector.skmkd"
    old = detector.save(path) and path.read_bytes()
    program = (
        "import os, pathlib, skmkd\n"
        "from conftest import TinySource\n"
        f"detector = skmkd.load({str(path)!r}, source=TinySource())\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        f"detector.set_params(verbose=1).save({str(path)!r})\n"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    run = [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}\n{program}"]
    assert subprocess.run(run, check=False).returncode not in (0, 1)
    assert path.read_bytes() == old
    assert skmkd.load(path, source=TinySource()).verbose == 0
