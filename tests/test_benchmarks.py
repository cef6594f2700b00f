"""The benchmarks: that the baseline computes what skmkd does, and that the scripts run."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from numpy.testing import assert_allclose
from skimage.data import lfw_subset

from skmkd import MKDDetector

pytestmark = pytest.mark.benchmarks

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


def test_plain_loop_scores_and_localizes_as_skmkd_does(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from plain_loop import PlainLoop

    images = (255 * lfw_subset()[:10]).astype(np.uint8)
    detector = MKDDetector.paper(
        image_size=32, batch_size=8, max_iter=2, tol=None, direction_weight=1.0, random_state=0,
        contamination=0.05,
        precision="float32", localization_params={"through_source": True}, normalization="source",
    ).fit(images)  # fmt: skip
    loop = PlainLoop()
    fitted = detector.cloner_.state_dict().values()
    names = list(loop.cloner.state_dict())  # the same modules in the same order
    loop.cloner.load_state_dict(dict(zip(names, fitted, strict=True)))
    prepared = detector._prepare(list(images[..., None])).contiguous()
    assert_allclose(-loop.score(prepared), detector.score_samples(images), rtol=1e-5)
    dataset = detector._dataset(detector._tiles(detector._check_images(images)))
    (batch,) = dataset.batches([range(len(images))])
    _, expected = detector._judge(batch, scores=False, maps=True, method=None, inside=None)
    for parameters in (False, True):
        got = loop.gradients(prepared, parameters)
        alike = np.isclose(got, expected, rtol=1e-3, atol=1e-6).all(axis=(1, 2))
        assert alike.mean() >= 0.8  # a gradient jumps where rounding moves an activation across 0
        assert_allclose(got, expected, rtol=0.03, atol=1e-6)
    loop.epoch(prepared)


SCRIPTS = {
    "against": (
        f"{ROOT} fit.py --images 4 --epochs 1 --scored 2 --precision float32 --runs 1 --no-warm-up",
        {"before", "now", "ratio", "lowest", "highest"},
    ),
    "aupro": ("--maps 3 --side 32 --runs 1", {"AUPRO", "s", "ratio"}),
    "calibrate": ("--only brick --splits 1 --epochs 2", {"99 % to"}),
    "drift": (
        "--only brick --images 20 --streams 1 --calibration 20 --epochs 1",
        {"AUROC", "images until alarm"},
    ),
    "engines": ("--runs 1 --images 4 --side 32", {"one ms/image", "many ratio"}),
    "fit": ("--only texture --images 4 --epochs 1", {"ratio"}),
    "grid": ("--images 15 --side 32 --folds 2 --candidates 2", {"ratio"}),
    "large_images": (
        "--runs 1 --images 2 --size 160 120 --side 32",
        {"seconds an image", "decode ms (1 thread)", "networks ms (1 thread)"},
    ),
    "localize": ("--runs 1 --images 2 --side 32", {"ratio"}),
    "memories": ("--runs 1 --images 4 --side 32 --epochs 1", {"ratio"}),
    "memory": ("--only aupro --maps 2", {"peak MB"}),
    "path": ("", {"functions", "changes"}),
    "peers": ("--runs 1 --images 4 --side 32 --normal 20", {"pixels"}),  # some are not installed
    "scaling": ("--numbers --sides 32 64", {"fit s"}),
    "score": ("--runs 1 --images 4 --side 32", {"ratio", "source of peak", "whole of peak"}),
    "small_defects": (
        "--case strips --only auto --images 2 --epochs 1 --held-out 20",
        {"fit s", "s an image", "peak MB"},  # after one epoch, areas say nothing
    ),
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
    [
        ("score", (3, "features.4")),
        ("paths", (3, "features.4")),
        ("photographs", (1, "opened")),
        ("one", (256, 4)),
        ("fit", (2, 0)),
        ("aupro", (2,)),
    ],
)
def test_memory_of_each_case_is_watched(case, arguments, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import memory

    result = getattr(memory, case)(*arguments)
    assert result["peak MB"] >= result["before MB"] > 0


def test_nothing_grows(tmp_path):
    output = tmp_path / "soak.json"
    times = {"score": 20_000, "fit": 20, "save": 40, "kill": 4}
    options = [f"--{work}={n}" for work, n in times.items()]
    run = [sys.executable, FOLDER / "soak.py", *options, "--output", output]
    subprocess.run(run, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    rows = json.loads(output.read_text())["rows"]
    assert {row["work"]: row["times"] for row in rows} == times
    for row in rows:
        assert row["MB added"] < 10
        assert row["files added"] <= 0
        assert row["threads added"] <= 0
        assert row["tasks added"] <= 0
        assert row["left added"] <= 0
    assert rows[-1]["left"] == 0


def test_the_way_through_the_library_is_short(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import path

    for (method, calls), (functions, changes) in zip(
        path.paths().items(), [(199, 107), (89, 49)], strict=True
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


def test_peaks_of_maps_are_counted_on_small_defects_and_beside_them(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import small_defects

    case = small_defects.strips(0)
    assert case.y.tolist() == [1] * 24 + [-1] * 24
    for image, mask, y in zip(case.test, case.masks, case.y, strict=True):
        assert mask.sum() == (0 if y == 1 else 12 * 12)
        assert (image[mask] == 25).all()
        if y == -1:
            assert small_defects.peak_is_near(mask, mask)
            assert not small_defects.peak_is_near(np.roll(mask, (0, 1000), (0, 1)), mask)


def worktrees():
    return subprocess.check_output(["git", "worktree", "list"], cwd=ROOT, text=True)


def test_builds_are_measured_in_turn_after_a_call_that_does_not_count(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import against

    seconds = {"old": iter([90, 6, 8, 4]), "new": iter([1, 2, 1, 4])}
    calls = []

    class Build:
        def __init__(self, checkout, script):
            self.name = "new" if checkout == against.ROOT else "old"

        def measure(self, options):
            calls.append(self.name)
            return {"step": next(seconds[self.name]), **options}

        def close(self):
            calls.append("closed")

    monkeypatch.setattr(against, "Build", Build)
    step, option = against.compare("step", Path("old"), {"sides": 32}, 3)
    assert calls[:8:2] != calls[1:8:2]
    assert sorted(calls[:2]) == sorted(calls[2:4]) == sorted(calls[4:6]) == ["new", "old"]
    assert calls[8:] == ["closed"] * 2
    expected = {"before": 6, "now": 2, "ratio": 3, "lowest": 1, "highest": 8}
    assert step == {"figure": "step", **expected}
    assert option["before"] == option["now"] == 32
    seconds.update(old=iter([1]), new=iter([-1]))  # a difference of two times, in noise
    with pytest.raises(ValueError, match="Figures must be positive"):
        against.compare("step", Path("old"), {}, 1, warm_up=False)


def test_a_revision_is_checked_out_for_as_long_as_it_is_measured(monkeypatch, capfd):
    monkeypatch.syspath_prepend(FOLDER)
    import against

    if not (ROOT / ".git").exists():
        pytest.skip("git does not know this copy")
    known = worktrees()
    with against.checked_out("HEAD") as (commit, checkout):
        assert f"{checkout} " in worktrees()
        assert against.git("rev-parse", "HEAD").startswith(commit)
    assert worktrees() == known
    with (
        pytest.raises(RuntimeError, match="measure failed"),
        against.checked_out("HEAD") as (_, checkout),
        closing(against.Build(checkout, "path")) as build,
    ):
        build.measure({"unknown": 1})
    assert "unexpected keyword argument 'unknown'" in capfd.readouterr().err
    assert not checkout.exists()
    assert worktrees() == known


def test_a_revision_must_exist(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import against

    message = "REV must be a git revision or the folder of a checkout; got 'no such revision'"
    with pytest.raises(ValueError, match=message), against.checked_out("no such revision"):
        pass


@pytest.mark.parametrize("script", ["fit", "grid", "large_images", "path", "step"])
def test_an_earlier_build_can_import_what_is_compared(script):
    lines = (FOLDER / f"{script}.py").read_text().splitlines()
    assert not [line for line in lines if line.startswith(("from skmkd._", "from plain_loop"))]


def test_the_parameters_of_measure_are_options(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import against
    import fit
    import step

    got = vars(against.options(fit.measure).parse_args(["--only", "fashion", "--epochs", "2"]))
    assert (got["only"], got["epochs"], got["images"]) == ("fashion", 2, None)
    assert against.options(step.measure).parse_args(["--sides", "8", "16"]).sides == [8, 16]
    with pytest.raises(SystemExit):
        against.options(fit.measure).parse_args(["--only", "grass"])


def test_a_step_is_timed_without_the_rest_of_a_fit(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import step

    monkeypatch.setattr(step, "BATCH", 4)
    monkeypatch.setattr(step, "seconds", lambda work: 7 + 2 * work().n_iter_)
    assert list(step.measure(sides=(32,), steps=3).values()) == [2]


def test_grids_and_large_files_are_measured_too(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import grid
    import large_images

    figures = grid.measure(images=15, side=32, candidates=1, folds=2)
    figures |= large_images.measure(images=1, size=(160, 120), side=32)
    assert len(figures) == 4
    assert all(value > 0 for value in figures.values())


def test_the_paper_s_setting_is_measured_on_fashion_mnist(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import fit

    if not fit.DEBIAN.exists():
        pytest.skip("dataset-fashion-mnist is not installed")
    monkeypatch.setattr(fit, "seconds", lambda work: work())
    detector, scores = fit.measure("fashion", images=6, epochs=1, scored=3).values()
    assert (detector.image_size, detector.batch_size, detector.n_iter_) == (32, 64, 1)
    assert detector.direction == "vector"
    assert scores.shape == (3,)


@pytest.mark.parametrize(
    ("flags", "name"),
    [("avx2 avx512f avx512_bf16 amx_bf16", "AMX"), ("avx2 avx512f", "AVX512"), ("", "unknown")],
)
def test_the_fastest_instructions_are_named(flags, name, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import timing

    monkeypatch.setattr(timing, "_cpuinfo", {"flags": flags}.get)
    assert timing.instructions() == name
