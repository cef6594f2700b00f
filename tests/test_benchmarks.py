"""The benchmarks: that the baseline computes what skmkd does, and that the scripts run."""

from __future__ import annotations

import json
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from numpy.testing import assert_allclose
from skimage.data import lfw_subset

from skmkd import MKDDetector

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


def test_plain_loop_scores_and_localizes_as_skmkd_does(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from plain_loop import PlainLoop

    images = (255 * lfw_subset()[:10]).astype(np.uint8)
    detector = MKDDetector.paper(
        image_size=32, batch_size=8, max_iter=2, tol=None, direction_weight=1.0, random_state=0,
        precision="float32", localization_params={"through_source": True}, normalization="source",
    ).fit(images)  # fmt: skip
    loop = PlainLoop()
    fitted = detector.cloner_.state_dict().values()
    names = list(loop.cloner.state_dict())  # the same modules in the same order
    loop.cloner.load_state_dict(dict(zip(names, fitted, strict=True)))
    prepared = detector._prepare(list(images[..., None])).contiguous()
    assert_allclose(-loop.score(prepared), detector.score_samples(images), rtol=1e-5)
    dataset = detector._dataset(detector._check_images(images))
    (batch,) = dataset.batches([range(len(images))])
    _, expected = detector._judge(batch, scores=False, maps=True, method=None)
    for parameters in (False, True):
        got = loop.gradients(prepared, parameters)
        assert_allclose(got, expected, rtol=1e-3, atol=1e-6)
    loop.epoch(prepared)


SCRIPTS = {
    "aupro": ("--maps 3 --side 32 --runs 1", {"AUPRO", "s", "ratio"}),
    "calibrate": ("--only brick --splits 1 --epochs 2", {"99 % to"}),
    "fit": ("--only texture --images 4 --epochs 1", {"ratio"}),
    "grid": ("--images 15 --side 32 --folds 2 --candidates 2", {"ratio"}),
    "large_images": (
        f"--runs 1 --images 2 --size 160 120 --side 32 --before {ROOT}",
        {"ratio", "this ms/image", "decode ms (1 thread)", "networks ms (1 thread)"},
    ),
    "localize": ("--runs 1 --images 2 --side 32", {"ratio"}),
    "memories": ("--runs 1 --images 4 --side 32 --epochs 1", {"ratio"}),
    "memory": ("--only aupro --maps 2", {"peak MB"}),
    "path": (f"--before {ROOT}", {"functions", "changes"}),
    "scaling": ("--numbers --sides 32 64", {"fit s"}),
    "score": ("--runs 1 --images 4 --side 32", {"ratio", "source of peak", "whole of peak"}),
    "step": ("--runs 1 --sides 32", {"step / floor"}),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_prints_a_table_and_writes_json(script, tmp_path, monkeypatch, capsys):
    arguments, columns = SCRIPTS[script]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the processes that a script starts
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments.split()])
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    written = json.loads((tmp_path / f"{script}.json").read_text())
    assert {"processor", "threads", "torch"} <= set(written["machine"])
    for row in written["rows"]:
        assert columns <= set(row)
        assert all(row[name] > 0 for name in columns)
    header, *lines = capsys.readouterr().out.splitlines()
    assert all(column in header for column in columns)
    assert len(lines) == len(written["rows"])


@pytest.mark.parametrize(
    ("case", "arguments"),
    [("score", (3, "features.4")), ("paths", (3, "features.4")), ("fit", (2, 0)), ("aupro", (2,))],
)
def test_memory_of_each_case_is_watched(case, arguments, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import memory

    result = getattr(memory, case)(*arguments)
    assert result["peak MB"] >= result["before MB"] > 0


def test_the_way_through_the_library_is_short(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import path

    for (method, calls), (functions, changes) in zip(
        path.paths().items(), [(100, 40), (35, 12)], strict=True
    ):
        modules = [module for module, _ in calls]
        assert len(calls) == len(set(calls)) <= functions, method
        assert sum(one != other for one, other in pairwise(modules)) <= changes, method


def test_functions_of_other_threads_are_counted_once(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import path

    source = (
        "def outer():\n    inner()\n    inner()\ndef inner():\n    return [i for i in range(3)]"
    )
    functions: dict = {}
    exec(compile(source, str(path.PACKAGE / "made.py"), "exec"), functions)

    def work():
        thread = Thread(target=functions["outer"])
        thread.start()
        thread.join()

    assert path.first_calls(work) == [("made.py", "outer"), ("made.py", "inner")]
