from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TinySource

import skmkd
from skmkd._inference import BaseInference
from skmkd._loading import DETECTORS


def test_every_public_detector_can_be_loaded():
    public = [getattr(skmkd, name) for name in skmkd.__all__]
    detectors = [c for c in public if inspect.isclass(c) and issubclass(c, BaseInference)]
    assert {c.__name__: c for c in detectors} == DETECTORS


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
