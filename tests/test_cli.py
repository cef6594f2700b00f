"""The command line: its answers are the library's, its errors are told, its files are whole."""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from skimage.data import lfw_subset

import skmkd
from skmkd import MKDDetector, _cli
from skmkd._cli import literal, main, parameters
from skmkd.datasets import list_images
from skmkd.metrics import aupro_score
from skmkd.model_selection import anomaly_average_precision, anomaly_f1_max, anomaly_roc_auc

SETTINGS = "--image-size 32 --batch-size 8 --max-iter 2 --tol None --random-state 0 --device cpu"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of faces to learn from, a data set with masks, and a fitted model."""
    place = tmp_path_factory.mktemp("cli")
    images = (255 * lfw_subset()).astype(np.uint8)
    kinds = {
        "learn": images[:16], "held_out": images[16:36],
        "set/good": images[36:42], "set/other": images[100:106],
    }  # fmt: skip
    for kind, chosen in kinds.items():
        (place / kind).mkdir(parents=True)
        for i, image in enumerate(chosen):
            Image.fromarray(image).save(place / kind / f"{i}.png")
    (place / "set/ground_truth/other").mkdir(parents=True)
    for i in range(6):
        mask = np.zeros((25, 25), np.uint8)
        mask[5:15, 5 + i : 15 + i] = 255
        Image.fromarray(mask).save(place / f"set/ground_truth/other/{i}.png")
    words = f"fit {place / 'learn'} -o {place / 'model.skmkd'} --calibrate {place / 'held_out'}"
    assert main([*words.split(), *SETTINGS.split()]) == 0
    return place


@pytest.fixture
def detector(place):
    return skmkd.load(place / "model.skmkd")


def test_fit_does_what_the_library_does(place, detector):
    expected = MKDDetector(
        image_size=32, batch_size=8, max_iter=2, tol=None, random_state=0, device="cpu"
    ).fit(list_images(place / "learn"))
    expected.calibrate(list_images(place / "held_out"), fpr=0.05)
    assert detector.offset_ == expected.offset_
    assert detector.map_offset_ == expected.map_offset_
    assert detector.get_params() == expected.get_params()


def test_score_gives_the_library_s_numbers(place, detector, capsys):
    assert main(["score", str(place / "model.skmkd"), str(place / "set/good"),
                 str(place / "set/other/3.png")]) == 0  # fmt: skip
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    paths = [*list_images(place / "set/good"), place / "set/other/3.png"]
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for column, expected in [
        ("score", detector.score_samples(paths)),
        ("decision", detector.decision_function(paths)),
        ("threshold", np.full(7, detector.offset_)),
    ]:
        assert_allclose([float(row[column]) for row in rows], expected, rtol=1e-12, atol=1e-12)


def test_score_writes_json_lines_to_a_file(place, detector, tmp_path, capsys):
    output = tmp_path / "scores.jsonl"
    words = ["score", place / "model.skmkd", place / "set", "--format", "jsonl", "-o", output]
    assert main([str(word) for word in words]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 18  # masks are images, too
    assert_array_equal(
        [row["score"] for row in rows], detector.score_samples([row["path"] for row in rows])
    )
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""  # silent where there is no terminal


def test_localize_writes_maps_and_pictures(place, detector, tmp_path):
    words = ["localize", place / "model.skmkd", place / "set", place / "learn/0.png",
             "-o", tmp_path / "maps", "--report", tmp_path / "report.html"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    maps = detector.localize(list_images(place / "set/other"))
    for i, expected in enumerate(maps):
        assert_array_equal(np.load(tmp_path / f"maps/set/other/{i}.npy"), expected)
        with Image.open(tmp_path / f"maps/set/other/{i}.png") as picture:
            assert picture.size == (25, 25)
            assert (np.ptp(np.asarray(picture), axis=2) > 0).any() == (
                expected.max() > detector.map_offset_
            )
    assert (tmp_path / "maps/0.npy").is_file()
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 19
    assert page.count("5.png</th>") == 3


def test_score_writes_a_report(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_cli, "PICTURED", 3)
    words = ["score", place / "model.skmkd", place / "set", "--report", tmp_path / "report.html"]
    assert main([str(word) for word in words]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 3
    assert page.count('scope="row"') == 18


def test_commands_of_the_readme_run(place, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    commands = re.findall(r"^skmkd (.*)$", readme, re.M)
    assert [command.split()[0] for command in commands] == ["fit", "score", "localize"]
    monkeypatch.chdir(tmp_path)
    Path("good").symlink_to(place / "learn")
    Path("new").symlink_to(place / "held_out")
    for command in commands:
        settings = SETTINGS if command.startswith("fit") else ""
        assert main([*command.split(), *settings.split()]) == 0
    paths = list_images("new")
    detector = skmkd.load("model.skmkd")
    rows = list(csv.DictReader(Path("scores.csv").read_text().splitlines()))
    scores = [float(row["score"]) for row in rows]
    assert_allclose(scores, detector.score_samples(paths), rtol=1e-12)
    maps = [np.load(f"maps/{path.stem}.npy") for path in paths]
    assert_array_equal(maps, detector.localize(paths))
    assert Path("report.html").read_text().count("<img ") == len(paths)


def test_evaluate_prints_the_library_s_metrics(place, detector, capsys):
    assert main(["evaluate", str(place / "model.skmkd"), str(place / "set")]) == 0
    figures = json.loads(capsys.readouterr().out)
    data = skmkd.datasets.load_image_folder(place / "set")
    case = detector, data.paths, data.y
    assert figures["images"] == 12
    assert figures["image AUROC"] == pytest.approx(anomaly_roc_auc(*case))
    assert figures["image average precision"] == pytest.approx(anomaly_average_precision(*case))
    assert figures["image F1 max"] == pytest.approx(anomaly_f1_max(*case))
    labels = detector.predict(data.paths)
    assert figures["anomalies found"] == pytest.approx(np.mean(labels[data.y == -1] == -1))
    assert figures["false alarms"] == pytest.approx(np.mean(labels[data.y == 1] == -1))
    maps = detector.localize(data.paths)
    assert figures["AUPRO"] == pytest.approx(aupro_score(data.masks, maps))
    assert {"pixel AUROC", "pixel average precision", "pixel F1 max"} < set(figures)


def test_evaluate_takes_published_layouts(place, tmp_path, capsys):
    for folder, source in [("train/good", "learn"), ("test/good", "set/good"),
                           ("test/hole", "set/other")]:  # fmt: skip
        (tmp_path / "thing" / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "thing" / folder).symlink_to(place / source)
    (tmp_path / "thing/ground_truth/hole").mkdir(parents=True)
    for i in range(6):
        (tmp_path / f"thing/ground_truth/hole/{i}_mask.png").symlink_to(
            place / f"set/ground_truth/other/{i}.png"
        )
    words = ["evaluate", str(place / "model.skmkd"), str(tmp_path), "--layout", "mvtec_ad"]
    assert main([*words, "--category", "thing"]) == 0
    layout = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(place / "model.skmkd"), str(place / "set")]) == 0
    assert layout == pytest.approx(json.loads(capsys.readouterr().out))
    assert main(words) == 1
    assert "--category must be given for --layout mvtec_ad" in capsys.readouterr().err


def test_info_prints_what_a_model_is(place, detector, capsys):
    assert main(["info", str(place / "model.skmkd")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["class"] == "MKDDetector"
    assert facts["offset_"] == detector.offset_
    assert facts["parameters"]["image_size"] == 32
    assert set(facts["parameters"]) == set(detector.get_params())


def test_every_parameter_has_its_option_and_help(capsys):
    assert list(parameters()) == list(inspect.signature(MKDDetector).parameters)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name, (_, sentence) in parameters().items():
        assert f"--{name.replace('_', '-')} " in text
        assert len(sentence) > 10


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
            "nothing at {place}/nowhere.png",
        ),
        ("score {place}/model.skmkd {place}/model.skmkd", "model.skmkd cannot be read as an image"),
        ("score {place}/model.skmkd {place}/empty", "folder must hold images"),
        ("fit {place}/nothing -o {new}/model.skmkd", "there is nothing at {place}/nothing"),
        ("fit {place}/learn -o {new}/no/model.skmkd", "There is no folder: '{new}/no'"),
        ("fit {place}/learn -o {place}/set", "something that is not a file: '{place}/set'"),
        ("score {place}/model.skmkd {place}/learn --report {new}/no/r.html", "There is no folder"),
        ("evaluate {place}/model.skmkd {place}/one_kind", "one kind only"),
        ("localize {place}/model.skmkd {place}/learn -o {place}/learn", "would be replaced"),
        ("localize {place}/model.skmkd {place}/learn/0.png -o {place}/learn", "would be replaced"),
        ("fit {place}/learn -o {new}/model.skmkd --batch-size 0", "'batch_size' parameter"),
        (
            "localize {place}/model.skmkd {place}/learn/0.png {place}/held_out/0.png -o {new}",
            "images must have names of their own",
        ),
    ],
)
def test_errors_are_told_and_nothing_is_written(place, tmp_path, words, message, capsys):
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


@pytest.mark.parametrize("words", ["", "fit", "guess", "score model", "fit a -o b --no-such 3"])
def test_a_wrong_command_line_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    assert "usage: skmkd" in capsys.readouterr().err


def test_interruption_leaves_no_file(place, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(MKDDetector, "score_samples", interrupted)
    words = ["score", place / "model.skmkd", place / "learn", "-o", tmp_path / "scores.csv"]
    assert main([str(word) for word in words]) == 130
    assert capsys.readouterr().err == "skmkd: interrupted\n"
    monkeypatch.setattr(MKDDetector, "fit", interrupted)
    words = ["fit", place / "learn", "-o", tmp_path / "model.skmkd"]
    assert main([str(word) for word in words]) == 130
    assert list(tmp_path.iterdir()) == []


def test_results_are_no_images_the_second_time(place, tmp_path):
    (tmp_path / "0.png").symlink_to(place / "learn/0.png")
    for _ in range(2):
        words = ["localize", place / "model.skmkd", tmp_path, "-o", tmp_path / "maps"]
        assert main([str(word) for word in words]) == 0
        assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["0.npy", "0.png"]


def test_a_reader_that_has_had_enough_is_no_error(place, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["info", str(place / "model.skmkd")]) == 1
    assert capsys.readouterr().err == ""


def test_unreadable_files_are_skipped_if_wanted(place, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"")
    words = ["score", place / "model.skmkd", tmp_path / "bad.png", place / "learn/0.png",
             "--format", "jsonl", "--report", tmp_path / "report.html"]  # fmt: skip
    assert main([str(word) for word in words]) == 1
    assert "bad.png cannot be read as an image" in capsys.readouterr().err
    words += ["--on-error", "skip"]
    with pytest.warns(UserWarning, match="It is skipped"):
        assert main([str(word) for word in words]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["score"] is None
    assert second["score"] < 0
    assert (tmp_path / "report.html").read_text().count("<img ") == 1
