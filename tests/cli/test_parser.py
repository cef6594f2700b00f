"""The command line: options become parameters, and errors, warnings and Ctrl-C are reported."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import QUICK
from PIL import Image

import skmkd
from skmkd import MemKDDetector, MKDDetector
from skmkd._cli import commands
from skmkd._cli.parser import literal, main, parameters

DETECTORS = (MKDDetector, MemKDDetector)


def test_every_parameter_has_its_option_and_help(capsys):
    signatures = [inspect.signature(detector).parameters for detector in DETECTORS]
    expected = {
        name for each in signatures for name, p in each.items() if p.default != "deprecated"
    }
    assert set(parameters()) == expected
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, description in parameters().items():
        assert f"--{name.replace('_', '-')} VALUE {description[:20]}" in text
    assert parameters()["opening_size"].endswith("(mkd: default: 3; memkd: default: 1)")
    assert parameters()["memory_size"].endswith("(memkd: default: 50)")
    assert parameters()["tol"].endswith("(default: None)")


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("2e-2", 0.02), ("None", None), ("auto", "auto"), ("(64, 128)", (64, 128)),
     ("['features.9']", ["features.9"]), ("cuda:0", "cuda:0"), ("weights.pt", "weights.pt")],
)  # fmt: skip
def test_values_are_read_as_python_writes_them(text, value):
    assert literal(text) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("score {place}/nowhere.skmkd {place}/learn", "nowhere.skmkd"),
        ("score {place}/learn/0.png {place}/learn", "cannot be loaded"),
        (
            "score {place}/model.skmkd {place}/nowhere.png",
            "{place}/nowhere.png must be a folder or a file",
        ),
        ("score {place}/model.skmkd {place}/model.skmkd", "model.skmkd cannot be read as an image"),
        ("score {place}/model.skmkd {place}/empty", "folder must hold images"),
        ("fit {place}/nothing -o {new}/model.skmkd", "{place}/nothing must be a folder or a file"),
        ("fit {place}/learn -o {new}/no/model.skmkd", "There is no folder: '{new}/no'"),
        ("fit {place}/learn -o {new}/m.skmkd --hold-out 2", "'validation_fraction' parameter of"),
        (
            "fit {place}/learn -o {new}/m.skmkd --hold-out 0.5 --fpr 0.05",
            "--hold-out must hold at least 19 images for fpr=0.05; got 8.",
        ),
        (
            "fit {place}/learn -o {new}/m.skmkd --calibrate {place}/set/good",
            "--calibrate must hold at least 19 images for fpr=0.05; got 6.",
        ),
        ("fit {place}/learn/0.png -o {new}/m.skmkd", "Found 1 image(s) in X while a minimum of 2"),
        (
            "fit {place}/learn -o {new}/m.skmkd --hold-out 0.5 --random-state abc",
            "'random_state' parameter of MKDDetector must be",
        ),
        (
            "fit {place}/learn -o {new}/m.skmkd --fpr 0.1 --contamination 0.1",
            "--hold-out must hold at least 9 images for fpr=0.1; got 0.",
        ),
        ("fit {place}/learn -o {new}/m.skmkd --fpr 2", "fpr must be a float between 0 and 1"),
        ("fit {place}/learn -o {place}/set", "something that is not a file: '{place}/set'"),
        ("score {place}/model.skmkd {place}/learn --report {new}/no/r.html", "There is no folder"),
        ("evaluate {place}/model.skmkd {place}/one_kind", "one kind only"),
        ("export {place}/model.skmkd -o {new}/no/m.onnx", "There is no folder: '{new}/no'"),
        (
            "export {place}/model.skmkd -o {new}/m.onnx --tolerance 1",
            "tolerance must be at least 0, and images must be given as check",
        ),
        ("export {place}/model.skmkd -o {new}/m.onnx --check {place}/empty", "must hold images"),
        (
            "localize {place}/model.skmkd {place}/learn -o {place}/learn",
            "{place}/learn/0.jpg would be written beside, or over, {place}/learn/0.png",
        ),
        (
            "localize {place}/model.skmkd {place}/learn/0.png -o {place}/learn",
            "--output must not be the folder of the images",
        ),
        (
            "localize {place}/model.skmkd {place}/learn -o {new}/maps --low-threshold 1e9",
            "low_threshold must be at most threshold",
        ),
        (
            "localize {place}/model.skmkd {place}/learn -o {new}/maps --min-area 0",
            "'min_area' parameter of regions must be",
        ),
        ("fit {place}/learn -o {new}/model.skmkd --batch-size 0", "'batch_size' parameter"),
        (
            "localize {place}/model.skmkd {place}/learn/0.png {place}/held_out/0.png -o {new}",
            "images must have distinct names",
        ),
    ],
)
def test_errors_are_printed_and_nothing_is_written(place, tmp_path, words, message, capsys):
    (place / "empty").mkdir(exist_ok=True)
    (place / "one_kind").mkdir(exist_ok=True)
    if not (place / "one_kind/good").exists():
        (place / "one_kind/good").symlink_to(place / "learn")
    before = sorted(place.rglob("*"))
    assert main(words.format(place=place, new=tmp_path).split()) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("skmkd: error: ")
    assert message.format(place=place, new=tmp_path) in printed.err
    assert sorted(place.rglob("*")) == before
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def failing(error):
    """Return a function that raises an error, whatever its arguments."""

    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("words", ["--debug info {0}", "info --debug {0}", "info {0} --debug"])
def test_debug_shows_the_traceback(words, tmp_path, capsys):
    assert main(words.format(tmp_path / "nowhere.skmkd").split()) == 1
    traceback, _, message = capsys.readouterr().err.rpartition("skmkd: error: ")
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert "in info\n" in traceback
    assert "nowhere.skmkd" in message
    assert "This may be a bug" not in message


UNEXPECTED = [TypeError("no len"), RuntimeError("no kernel"), KeyError("x"), AssertionError("y")]


@pytest.mark.parametrize("error", UNEXPECTED)
def test_unexpected_errors_ask_for_a_report(error, monkeypatch, capsys):
    monkeypatch.setattr(commands, "load", failing(error))
    assert main(["info", "model.skmkd"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"skmkd: error: unexpected {type(error).__name__}: {error}"
    assert second.startswith("This may be a bug in skmkd.")
    assert "--debug" in second
    assert "report it" in second
    assert main(["--debug", "info", "model.skmkd"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2] == first
    assert "report it" in lines[-1]
    assert "--debug" not in lines[-1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "MemoryError"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (OSError("No space left"), "No space left"),
    ],
)
def test_a_lack_of_memory_or_disk_is_not_called_a_bug(error, message, monkeypatch, capsys):
    monkeypatch.setattr(commands, "load", failing(error))
    assert main(["info", "model.skmkd"]) == 1
    assert capsys.readouterr().err == f"skmkd: error: {message}\n"


@pytest.mark.filterwarnings("always")
def test_warnings_are_one_line_each_on_stderr(monkeypatch, capsys):
    def warn(*_, **__):
        warnings.warn("two\n  lines", UserWarning, stacklevel=1)
        warnings.warn("another", RuntimeWarning, stacklevel=1)
        raise OSError("end")

    monkeypatch.setattr(commands, "load", warn)
    shown, filters = warnings.showwarning, list(warnings.filters)
    assert main(["info", "model.skmkd"]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "skmkd: warning: two lines", "skmkd: warning: another", "skmkd: error: end",
    ]  # fmt: skip
    assert printed.out == ""
    assert warnings.showwarning is shown  # the caller's state is restored
    assert list(warnings.filters) == filters


class OldAndNew:
    """A detector with a renamed parameter.

    Parameters
    ----------
    new : str, default=None
        Where to `store` features. More text.
    old : str, default="deprecated"
        Alias of `new`.
    """

    _parameter_constraints: ClassVar = {"new": [str, None], "old": [str]}

    def __init__(self, *, new=None, old="deprecated"):
        self.new, self.old = new, old


def test_deprecated_parameters_have_no_option(monkeypatch, capsys):
    monkeypatch.setitem(commands.METHODS, "other", OldAndNew)
    assert parameters()["new"] == "other: Where to store features (other: default: None)"
    assert "old" not in parameters()
    with pytest.raises(SystemExit):
        main(["fit", "a", "-o", "b", "--method", "other", "--old", "x"])
    assert "unrecognized arguments: --old" in capsys.readouterr().err


INVALID = [
    "", "fit", "guess", "score model", "fit a -o b --no-such 3", "fit a -o b --method other",
    "fit a -o b --hold-out 0.2 --calibrate c", "fit a -o b --memory-size 3",
    "fit a -o b --method memkd --cloner equal", "fit a -o b --method memkd --memory 3",
]  # fmt: skip


@pytest.mark.parametrize("words", INVALID)
def test_an_invalid_command_line_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    assert "usage: skmkd" in capsys.readouterr().err


def test_ctrl_c_leaves_no_file(place, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(MKDDetector, "iter_results", interrupted)
    words = ["score", place / "model.skmkd", place / "learn", "-o", tmp_path / "scores.csv"]
    assert main([str(word) for word in words]) == 130
    assert capsys.readouterr().err == "skmkd: interrupted\n"
    monkeypatch.setattr(MKDDetector, "fit", interrupted)
    words = ["fit", place / "learn", "-o", tmp_path / "model.skmkd"]
    assert main([str(word) for word in words]) == 130
    assert list(tmp_path.iterdir()) == []


@contextmanager
def running(*words):
    """Run a command in another process."""
    command = [sys.executable, "-m", "skmkd", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_ctrl_c_while_training_saves_what_was_learned(place, tmp_path):
    settings = [*QUICK.split(), "--max-iter", "1000000", "--verbose", "1"]
    with running("fit", place / "learn", "-o", tmp_path / "model.skmkd", *settings) as process:
        printed = ""
        while "loss=" not in printed:  # of the first epoch
            printed += process.stderr.read(1)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "skmkd: warning: Training was interrupted" in printed
    assert "Traceback" not in printed
    assert 0 < skmkd.load(tmp_path / "model.skmkd").n_iter_ < 1000000


def test_ctrl_c_while_localizing_leaves_whole_files_only(place, tmp_path):
    (tmp_path / "new").mkdir()
    for i in range(2000):
        (tmp_path / f"new/{i}.png").symlink_to(place / "learn/0.png")
    words = ["localize", place / "model.skmkd", tmp_path / "new", "-o", tmp_path / "maps"]
    with running(*words, "--report", tmp_path / "report.html") as process:
        while not list(tmp_path.glob("maps/*.jpg")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed == "skmkd: interrupted\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps", "new"]
    (header, *rows) = (tmp_path / "maps/regions.csv").read_text().split("\n")
    assert rows.pop() == ""
    assert all(row.count(",") == header.count(",") for row in rows)
    (tmp_path / "maps/regions.csv").unlink()
    written = sorted((tmp_path / "maps").iterdir())
    assert 1 < len(written) < 4000
    for path in written:  # temporary files have another suffix
        whole = np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))
        assert whole.shape[:2] == (25, 25)


def test_ctrl_c_leaves_no_report(place, tmp_path, monkeypatch, capsys):
    def interrupted(stream, *_, **__):
        stream.write("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "write_report", interrupted)
    words = ["score", place / "model.skmkd", place / "learn/0.png", "--report", tmp_path / "r.html"]
    assert main([str(word) for word in words]) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_prints_no_error(place, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["info", str(place / "model.skmkd")]) == 1
    assert capsys.readouterr().err == ""


def test_a_program_whose_reader_has_gone_ends_without_a_word(place):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "skmkd", "info", place / "model.skmkd"]
    run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"")


@pytest.mark.filterwarnings("always")
def test_streams_may_be_closed_from_the_start(place, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    model = str(place / "model.skmkd")
    assert main(["info", model]) == 0
    assert main(["score", model, str(place / "learn/0.png")]) == 0
    assert main(["score", model, "none.png"]) == 1
    new = tmp_path / "model.skmkd"
    words = ["fit", str(place / "learn"), "-o", str(new), *QUICK.split()]
    assert main(words) == 0
    assert new.exists()
    assert sys.stdout is sys.stderr is None
