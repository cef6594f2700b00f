"""The commands print and write what the library computes; files are complete or absent."""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import shutil
import sys
from importlib.util import find_spec
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from skimage.data import lfw_subset

import skmkd
from skmkd import DetectorEnsemble, MemKDDetector, MKDDetector
from skmkd._cli import commands, main
from skmkd._export import exporting
from skmkd._networks.sources import source_state
from skmkd.datasets import _masks, list_images
from skmkd.metrics import (
    aupro_score,
    pixel_average_precision_score,
    pixel_f1_max_score,
    pixel_roc_auc_score,
)
from skmkd.model_selection import (
    anomaly_average_precision,
    anomaly_f1_max,
    anomaly_roc_auc,
    neg_anomaly_fpr95,
)


@pytest.fixture
def detector(place):
    return skmkd.load(place / "model.skmkd")


def quick_detector(**parameters):
    """Return the detector that the options of QUICK describe."""
    return MKDDetector(
        image_size=32, batch_size=8, max_iter=2, tol=None, random_state=0, device="cpu",
        **parameters,
    )  # fmt: skip


def test_fit_equals_the_library(place, detector):
    expected = quick_detector(validation_fraction=0).fit(list_images(place / "learn"))
    expected.calibrate(list_images(place / "held_out"), fpr=0.05)
    assert detector.offset_ == expected.offset_
    assert detector.map_offset_ == expected.map_offset_
    assert detector.get_params() == expected.get_params()


@pytest.mark.parametrize("option", ["--hold-out", "--validation-fraction"])
def test_fit_calibrates_on_held_out_images(place, option, tmp_path, capsys):
    words = ["fit", place / "learn", place / "held_out", option, "0.6", "--fpr", "0.1",
             "-o", tmp_path / "model.skmkd", *QUICK.split()]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    assert "Training on 14 images, calibrating on 22.\n" in capsys.readouterr().out
    detector = skmkd.load(tmp_path / "model.skmkd")
    paths = [*list_images(place / "learn"), *list_images(place / "held_out")]
    expected = quick_detector(validation_fraction=0.6).fit(paths).set_fpr(0.1)
    assert detector.get_params() == expected.get_params()
    assert_array_equal(detector.calibration_scores_, expected.calibration_scores_)
    assert (detector.offset_, detector.map_offset_) == (expected.offset_, expected.map_offset_)


@pytest.mark.filterwarnings("always")
def test_fit_of_few_images_has_the_lowest_rate_that_they_allow(place, tmp_path, capsys):
    words = ["fit", place / "learn", "--hold-out", "0.25", "-o", tmp_path / "model.skmkd"]
    assert main([*map(str, words), *QUICK.split()]) == 0
    printed = capsys.readouterr()
    assert "Training on 12 images, calibrating on 4.\n" in printed.out
    assert "4 held-out image(s) allow a false-positive rate of 20.0% at the lowest" in printed.err
    scores = skmkd.load(tmp_path / "model.skmkd").calibration_scores_
    assert len(scores) == 4
    assert skmkd.load(tmp_path / "model.skmkd").offset_ == scores[0]


@pytest.mark.filterwarnings("always")
def test_fit_is_not_lost_if_files_turn_out_to_be_too_few_for_the_rate(place, tmp_path, capsys):
    (tmp_path / "good").mkdir()
    for i, path in enumerate(list_images(place / "held_out")):
        shutil.copy(path, tmp_path / f"good/{i}.png")
    for i in range(4):
        (tmp_path / f"good/{i}.png").write_bytes(b"")
    words = ["fit", tmp_path / "good", "--hold-out", "0.5", "--fpr", "0.1", "--on-error", "skip",
             "-o", tmp_path / "model.skmkd"]  # fmt: skip
    assert main([*map(str, words), *QUICK.split()]) == 1
    assert "must hold at least 9 images or groups for fpr=0.1; got 8." in capsys.readouterr().err
    assert len(skmkd.load(tmp_path / "model.skmkd").calibration_scores_) == 8


@pytest.mark.parametrize("words", ["--hold-out 0", "--contamination 0.1"])
def test_fit_may_hold_nothing_out(place, words, tmp_path, capsys):
    model = str(tmp_path / "model.skmkd")
    assert main(["fit", str(place / "learn"), "-o", model, *words.split(), *QUICK.split()]) == 0
    assert "Training on 16 images.\n" in capsys.readouterr().out
    assert main(["info", model]) == 0
    assert json.loads(capsys.readouterr().out)["calibration images"] == 0
    assert main(["score", model, str(place / "learn/0.png")]) == 0
    assert main(["score", model, str(place / "learn/0.png"), "--format", "jsonl"]) == 0
    _, row, line = capsys.readouterr().out.splitlines()
    assert row.endswith(",nan")
    assert json.loads(line)["p_value"] is None
    assert main(["score", model, str(place / "learn/0.png"), "--drift"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "--drift must be given a model with calibration images" in printed.err


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_an_engine_may_be_chosen_for_a_model(place, engine, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    words = ["score", str(place / "model.skmkd"), str(place / "learn/0.png"), "--engine", engine]
    assert main(words) == (engine == "openvino")
    errors = capsys.readouterr().err
    assert "bug" not in errors
    needed = "engine='openvino' needs openvino: pip install \"skmkd[openvino]\""
    assert (needed in errors) == (engine == "openvino")


@pytest.mark.skipif(find_spec("onnxscript") is None, reason="needs onnxscript")
def test_export_writes_a_file_and_says_how_close_it_is(place, tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.onnx"
    paths = list_images(place / "learn")
    detector = tiny_detector().fit(paths)
    monkeypatch.setattr(commands, "load", lambda *_, **__: detector)
    words = ["export", place / "model.skmkd", "-o", path, "--check", place / "learn"]
    assert main(list(map(str, words))) == 0
    size, parity = capsys.readouterr().out.splitlines()
    assert size == f"{path}: {path.stat().st_size / 1e6:.1f} MB."
    said = (
        r"Checked on 16 images: scores differ by at most \S+ of the largest, their rank "
        r"correlation is (1\.0000|0\.99\d\d), and 0 labels change\."
    )
    assert re.fullmatch(said, parity)
    scores = skmkd.load_exported(path).score_samples(paths)
    assert_allclose(scores, detector.score_samples(paths), rtol=1e-5)
    before = path.read_bytes()
    monkeypatch.setattr(exporting, "exported_content", lambda _: before)
    assert main([*map(str, words), "--tolerance", "0"]) == 1
    assert "more than tolerance=0; 0 of 16 labels change" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_export_without_images_checks_none(place, tmp_path, monkeypatch, capsys):
    def write(detector, path, **given):
        assert given == {"check": None, "tolerance": None}
        path.write_bytes(bytes(10**6))

    monkeypatch.setattr(MKDDetector, "export", write)
    words = ["export", place / "model.skmkd", "-o", tmp_path / "model.onnx"]
    assert main(list(map(str, words))) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'model.onnx'}: 1.0 MB.\n"


def test_export_needs_its_packages(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    words = ["export", place / "model.skmkd", "-o", tmp_path / "model.onnx"]
    assert main(list(map(str, words))) == 1
    assert 'needs onnx: pip install "skmkd[onnx]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_ensemble_is_not_exported(place, tmp_path, monkeypatch, capsys):
    ensemble = DetectorEnsemble([])
    ensemble.named_detectors_ = {}
    monkeypatch.setattr(commands, "load", lambda *_, **__: ensemble)
    assert main(["export", str(place / "model.skmkd"), "-o", str(tmp_path / "model.onnx")]) == 1
    assert "fit and export its detectors one by one" in capsys.readouterr().err


def test_drift_is_said_after_the_rows(place, detector, capsys):
    for folder in ("held_out", "learn"):
        scores = detector.score_samples(list_images(place / folder))
        words = ["score", str(place / "model.skmkd"), str(place / folder), "--drift"]
        assert main(words) == 0
        printed = capsys.readouterr()
        assert printed.err == f"{skmkd.monitoring.drift_test(detector, scores)}\n"
        assert printed.out.count("\n") == len(scores) + 1


@pytest.mark.filterwarnings("always")
def test_drift_of_too_few_images_is_no_error(place, capsys):
    words = ["score", str(place / "model.skmkd"), str(place / "learn/0.png"), "--drift"]
    assert main(words) == 0
    assert "warning: Drift was not tested: scores must hold at" in capsys.readouterr().err


@pytest.mark.filterwarnings("always")
def test_fit_counts_only_readable_held_out_files(place, tmp_path, capsys):
    (tmp_path / "held_out").mkdir()
    for i, path in enumerate(list_images(place / "held_out")[:19]):
        shutil.copy(path, tmp_path / f"held_out/{i}.png")
    (tmp_path / "held_out/0.png").write_bytes(b"")
    words = ["fit", place / "learn", "--calibrate", tmp_path / "held_out", "--on-error", "skip",
             "-o", tmp_path / "model.skmkd"]  # fmt: skip
    assert main([str(word) for word in words]) == 1
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("skmkd: warning: ")
    assert warning.endswith("It is left out.")
    assert error.startswith("skmkd: error: --calibrate must hold at least 19 images")


@pytest.mark.filterwarnings("always")
def test_fit_with_the_other_method(place, tmp_path, capsys):
    settings = "--image-size 16 --max-iter 1 --tol None --random-state 0 --device cpu"
    words = ["fit", place / "learn", "-o", tmp_path / "model.skmkd", "--method", "memkd",
             "--hold-out", "0.5", "--memory-size", "3", *settings.split()]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    expected = MemKDDetector(
        memory_size=3, image_size=16, max_iter=1, tol=None, random_state=0, device="cpu",
        validation_fraction=0.5,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"8 held-out image\(s\) allow"):
        expected.fit(list_images(place / "learn"))
    detector = skmkd.load(tmp_path / "model.skmkd")
    assert detector.offset_ == expected.offset_
    assert detector.get_params() == expected.get_params()
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("skmkd: warning: 8 held-out image(s) allow a false-positive rate of")
    assert main(["info", str(tmp_path / "model.skmkd")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["class"] == "MemKDDetector"
    assert facts["memory_levels_"] == [1, 2, 3]
    assert set(facts["final loss"]) == {"total", "distillation", "exemplar", "orthogonality"}


def test_stale_thresholds_are_refused(place, detector, tmp_path, capsys):
    stale, images = str(tmp_path / "stale.skmkd"), str(place / "learn")
    detector.set_params(image_score="loss", localization="gradient").save(stale)
    folder = str(tmp_path / "maps")
    for words in (["score", stale, images], ["localize", stale, images, "-o", folder],
                  ["evaluate", stale, str(place / "set")]):  # fmt: skip
        assert main(words) == 1
        assert "offset_ was set for the parameters" in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()


def test_a_report_with_a_stale_threshold_is_refused_before_scoring(
    place, detector, tmp_path, capsys
):
    stale, report = str(tmp_path / "stale.skmkd"), tmp_path / "report.html"
    detector.set_params(opening_size=5).save(stale)
    assert main(["score", stale, str(place / "learn"), "--report", str(report)]) == 1
    printed = capsys.readouterr()
    assert "map_offset_ was set for the parameters" in printed.err
    assert printed.out == ""


def test_file_names_that_are_not_text_are_printed_byte_for_byte(place, tmp_path, monkeypatch):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    shutil.copy(place / "learn/0.png", path)
    printed = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(printed, encoding="utf-8"))
    assert main(["score", str(place / "model.skmkd"), os.fsdecode(path)]) == 0
    sys.stdout.flush()
    assert printed.getvalue().splitlines()[1].startswith(path)


def test_score_equals_the_library(place, detector, capsys):
    assert main(["score", str(place / "model.skmkd"), str(place / "set/good"),
                 str(place / "set/other/3.png")]) == 0  # fmt: skip
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    paths = [*list_images(place / "set/good"), place / "set/other/3.png"]
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for column, expected in [
        ("score", detector.score_samples(paths)),
        ("decision", detector.decision_function(paths)),
        ("threshold", np.full(7, detector.offset_)),
        ("p_value", detector.p_value(paths)),
    ]:
        assert_allclose([float(row[column]) for row in rows], expected, rtol=1e-12, atol=1e-12)


def test_score_writes_json_lines_to_a_file(place, detector, tmp_path, capsys):
    output = tmp_path / "scores.jsonl"
    words = ["score", place / "model.skmkd", place / "set/good", place / "set/other",
             "--format", "jsonl", "-o", output]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 12
    assert_array_equal(
        [row["score"] for row in rows], detector.score_samples([row["path"] for row in rows])
    )
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""  # no progress bar without a terminal


@pytest.fixture
def with_odd_files(place, tmp_path):
    """A folder of six images, two of which the model cannot judge: the second and the fourth."""
    (tmp_path / "new").mkdir()
    for i in range(6):
        shutil.copy(place / f"learn/{i}.png", tmp_path / f"new/{i}.png")
    (tmp_path / "new/1.png").write_bytes((place / "learn/1.png").read_bytes()[:100])
    Image.fromarray(np.full((25, 25), 300, np.uint16)).save(tmp_path / "new/3.png")
    return tmp_path / "new"


def check_odd_files_are_named(error, folder):
    assert error.startswith(f"skmkd: error: {folder}/1.png cannot be read as an image")
    assert error.endswith(f" 2 of 6 images have no result; the others are {folder}/3.png.\n")
    assert "X[" not in error
    assert "\\x" not in error


@pytest.mark.parametrize("to_file", [True, False])
def test_score_writes_all_rows_that_it_can(place, with_odd_files, to_file, tmp_path, capsys):
    words = ["score", place / "model.skmkd", with_odd_files]
    output = ["-o", tmp_path / "scores.csv"] if to_file else []
    assert main([str(word) for word in [*words, *output]]) == 1
    printed = capsys.readouterr()
    text = (tmp_path / "scores.csv").read_text() if to_file else printed.out
    rows = list(csv.DictReader(text.splitlines()))
    assert [Path(row["path"]).stem for row in rows] == ["0", "2", "4", "5"]
    expected = skmkd.load(place / "model.skmkd").score_samples([row["path"] for row in rows])
    assert_allclose([float(row["score"]) for row in rows], expected, rtol=1e-4)
    check_odd_files_are_named(printed.err, with_odd_files)


def test_rows_before_an_unexpected_error_are_kept(place, tmp_path, monkeypatch):
    computed = MKDDetector.iter_results

    def failing(*arguments, **options):
        results = computed(*arguments, **options)
        yield next(results)
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(MKDDetector, "iter_results", failing)
    words = ["score", place / "model.skmkd", place / "learn", "-o", tmp_path / "scores.csv"]
    assert main([str(word) for word in words]) == 1
    assert (tmp_path / "scores.csv").read_text().count("\n") == 2


def test_localize_writes_all_maps_that_it_can(place, with_odd_files, tmp_path, capsys):
    words = ["localize", place / "model.skmkd", with_odd_files, "-o", tmp_path / "maps",
             "--report", tmp_path / "report.html"]  # fmt: skip
    assert main([str(word) for word in words]) == 1
    assert sorted(path.stem for path in tmp_path.glob("maps/*.npy")) == ["0", "2", "4", "5"]
    assert (tmp_path / "report.html").read_text().count("<img ") == 4
    check_odd_files_are_named(capsys.readouterr().err, with_odd_files)


def test_evaluate_names_the_image_that_it_cannot_score(place, tmp_path, capsys):
    shutil.copytree(place / "set", tmp_path / "set")
    Image.fromarray(np.full((25, 25), 300, np.uint16)).save(tmp_path / "set/other/4.png")
    assert main(["evaluate", str(place / "model.skmkd"), str(tmp_path / "set")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"skmkd: error: {tmp_path}/set/other/4.png must hold uint8")


def test_fit_says_what_it_reads(place, tmp_path, capsys):
    words = ["fit", place / "learn", "--calibrate", place / "held_out", "-o", tmp_path / "m.skmkd"]
    assert main([*map(str, words), *QUICK.split()]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Found 16 images in {place}/learn.",
        f"Found 20 images in {place}/held_out.",
        "Training on 16 images, calibrating on 20.",
    ]


def test_fit_refuses_test_images_and_labels(place, tmp_path, capsys):
    words = ["fit", place / "set", "-o", tmp_path / "model.skmkd"]
    assert main([*map(str, words), *QUICK.split()]) == 1
    assert "0.png is a label image. Give the folders or files of" in capsys.readouterr().err
    for part in ("train", "test"):
        (tmp_path / "part" / part).mkdir(parents=True)
        (tmp_path / "part" / part / "good").symlink_to(place / "learn")
    words = ["fit", tmp_path / "part", "-o", tmp_path / "model.skmkd"]
    assert main([*map(str, words), *QUICK.split()]) == 1
    assert f"Give {tmp_path}/part/train/good.\n" in capsys.readouterr().err
    assert not (tmp_path / "model.skmkd").exists()


@pytest.mark.filterwarnings("ignore:.*label images")
def test_localize_writes_maps_and_pictures(place, detector, tmp_path):
    words = ["localize", place / "model.skmkd", place / "set", place / "learn/0.png",
             "-o", tmp_path / "maps", "--report", tmp_path / "report.html"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    maps = detector.localize(list_images(place / "set/other"))
    for i, expected in enumerate(maps):
        stored = np.load(tmp_path / f"maps/set/other/{i}.npy")
        assert stored.dtype == np.float16
        assert_array_equal(stored, expected.astype(np.float16))
        with Image.open(tmp_path / f"maps/set/other/{i}.jpg") as picture:
            assert picture.size == (25, 25)
            assert (np.ptp(np.asarray(picture), axis=2) > 0).any() == (
                expected.max() > detector.map_offset_
            )
    assert (tmp_path / "maps/0.npy").is_file()
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 19
    assert page.count("5.png</th>") == 3


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_localize_writes_the_regions_of_the_library(place, detector, form, tmp_path):
    words = ["localize", place / "model.skmkd", place / "set/other", "-o", tmp_path / "maps",
             "--format", form, "--min-area", "4", "--low-threshold", "0.5"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    text = (tmp_path / f"maps/regions.{form}").read_text()
    if form == "csv":
        read = list(csv.DictReader(text.splitlines()))
    else:
        read = [json.loads(line) for line in text.splitlines()]
    paths = list_images(place / "set/other")
    found = skmkd.regions(
        detector.localize(paths), detector.map_offset_, min_area=4, low_threshold=0.5
    )
    expected = [
        {
            "path": str(path), "region": number, **dict(zip(
                ("top", "left", "bottom", "right"), region.box, strict=True
            )),
            "area": region.area, "row": region.centroid[0], "column": region.centroid[1],
            "peak": region.peak, "mean": region.mean,
        }
        for path, each in zip(paths, found, strict=True)
        for number, region in enumerate(each, start=1)
    ]  # fmt: skip
    assert expected
    as_read = {"path": str, "row": float, "column": float, "peak": float, "mean": float}
    assert expected == [{n: as_read.get(n, int)(v) for n, v in row.items()} for row in read]


@pytest.mark.parametrize("kind", ["full", "none"])
def test_maps_of_localize_are_as_wanted(place, detector, kind, tmp_path):
    words = ["localize", place / "model.skmkd", place / "learn", "-o", tmp_path, "--maps", kind]
    assert main([str(word) for word in words]) == 0
    assert len(list(tmp_path.glob("*.jpg"))) == 16
    stored = [tmp_path / f"{path.stem}.npy" for path in list_images(place / "learn")]
    if kind == "none":
        assert not any(path.exists() for path in stored)
        return
    for path, expected in zip(stored, detector.localize(list_images(place / "learn")), strict=True):
        assert np.load(path).dtype == np.float32
        assert_array_equal(np.load(path), expected)


def test_small_maps_have_the_resolution_of_the_networks(place, tmp_path):
    Image.open(place / "learn/0.png").resize((300, 20)).save(tmp_path / "wide.png")
    words = ["localize", place / "model.skmkd", tmp_path / "wide.png", "-o", tmp_path / "maps"]
    assert main([str(word) for word in words]) == 0
    assert np.load(tmp_path / "maps/wide.npy").shape == (20, 32)
    with Image.open(tmp_path / "maps/wide.jpg") as picture:
        assert picture.size == (300, 20)


def test_errors_of_writing_reach_the_user(place, tmp_path, monkeypatch, capsys):
    write, calls = commands.write_files, []

    def fill_up(target, *arguments):
        calls.append(target)
        if target.name == "3":
            raise OSError("No space left on device")
        write(target, *arguments)

    monkeypatch.setattr(commands, "write_files", fill_up)
    (tmp_path / "new").mkdir()
    for i in range(200):
        (tmp_path / f"new/{i}.png").symlink_to(place / "learn/0.png")
    words = ["localize", place / "model.skmkd", tmp_path / "new", "-o", tmp_path / "maps"]
    assert main([str(word) for word in words]) == 1
    assert capsys.readouterr().err == "skmkd: error: No space left on device\n"
    assert len(calls) < 50
    assert {path.name for path in (tmp_path / "maps").iterdir()} >= {
        "0.jpg", "0.npy", "1.jpg", "1.npy", "2.jpg", "2.npy", "regions.csv",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*It is skipped")
def test_unreadable_images_have_no_regions_and_files(place, tmp_path):
    (tmp_path / "bad.png").write_bytes((place / "learn/0.png").read_bytes()[:200])
    words = ["localize", place / "model.skmkd", tmp_path / "bad.png", place / "learn/0.png",
             "-o", tmp_path / "maps", "--on-error", "skip"]  # fmt: skip
    assert main([str(word) for word in [*words, "--report", tmp_path / "report.html"]]) == 0
    assert "bad" not in (tmp_path / "maps/regions.csv").read_text()
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {
        "0.jpg", "0.npy", "regions.csv",
    }  # fmt: skip
    assert (tmp_path / "report.html").read_text().count(">unreadable</td>") == 1


@pytest.mark.filterwarnings("ignore:.*label images")
def test_score_writes_a_report(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "MAX_PICTURES", 3)
    words = ["score", place / "model.skmkd", place / "set", "--report", tmp_path / "report.html"]
    assert main([str(word) for word in words]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 3
    assert page.count('scope="row"') == 18


def test_localize_runs_the_source_once_per_image(place, tmp_path, monkeypatch):
    passes = []
    load = commands.load

    def load_with_hook(*arguments, **options):
        detector = load(*arguments, **options)
        detector.source_.register_forward_hook(lambda *_: passes.append(1))
        return detector

    monkeypatch.setattr(commands, "load", load_with_hook)
    words = ["localize", place / "model.skmkd", place / "learn/0.png", "-o", tmp_path / "maps"]
    assert main([str(word) for word in [*words, "--report", tmp_path / "maps/a/report.html"]]) == 0
    assert len(passes) == 1
    assert (tmp_path / "maps/a/report.html").is_file()  # its folder did not exist


def test_report_of_localize_shows_the_lowest_scores(place, detector, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "MAX_PICTURES", 3)
    paths = list_images(place / "set/other")
    words = ["localize", place / "model.skmkd", place / "set/other", "-o", tmp_path / "maps"]
    assert main([str(word) for word in [*words, "--report", tmp_path / "report.html"]]) == 0
    page = (tmp_path / "report.html").read_text()
    expected = [str(paths[i]) for i in np.argsort(detector.score_samples(paths))[:3]]
    assert re.findall(r'<img alt="Overlay of ([^"]+)"', page) == expected


@pytest.mark.parametrize("terminal", [True, False])
def test_rows_and_progress_do_not_share_a_terminal(place, terminal, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    words = ["score", place / "model.skmkd", place / "learn"]
    output = [] if terminal else ["-o", tmp_path / "scores.csv"]
    assert main([str(word) for word in [*words, *output]]) == 0
    assert ("100%" in capsys.readouterr().err) == (not terminal)


def test_commands_of_the_readme_run(place, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    commands = re.findall(r"^skmkd (.*)$", readme, re.M)
    assert [command.split()[0] for command in commands] == ["fit", "score", "localize"]
    monkeypatch.chdir(tmp_path)
    Path("good").mkdir()
    for i, face in enumerate((255 * lfw_subset()[:100]).astype(np.uint8)):
        Image.fromarray(face).save(f"good/{i}.png")
    Path("new").symlink_to(place / "held_out")
    for command in commands:
        settings = QUICK if command.startswith("fit") else ""
        assert main([*command.split(), *settings.split()]) == 0
    paths = list_images("new")
    detector = skmkd.load("model.skmkd")
    rows = list(csv.DictReader(Path("scores.csv").read_text().splitlines()))
    scores = [float(row["score"]) for row in rows]
    assert_allclose(scores, detector.score_samples(paths), rtol=1e-12)
    maps = [np.load(f"maps/{path.stem}.npy") for path in paths]
    assert_array_equal(maps, np.array(detector.localize(paths)).astype(np.float16))
    assert Path("report.html").read_text().count("<img ") == len(paths)


def test_evaluate_equals_the_library(place, detector, capsys):
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
    assert figures["image FPR at 95 % TPR"] == pytest.approx(-neg_anomaly_fpr95(*case))
    assert figures["AUPRO"] == pytest.approx(aupro_score(data.masks, maps))
    for name, score in [
        ("pixel AUROC", pixel_roc_auc_score),
        ("pixel average precision", pixel_average_precision_score),
        ("pixel F1 max", pixel_f1_max_score),
    ]:
        assert figures[name] == pytest.approx(score(data.masks, maps))


@pytest.mark.filterwarnings("always")
def test_evaluate_needs_no_masks_and_writes_null_for_nan(place, tmp_path, capsys):
    shutil.copytree(place / "set", tmp_path / "set")
    masks = tmp_path / "set/ground_truth/other"
    for path in masks.iterdir():
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    words = ["evaluate", str(place / "model.skmkd"), str(tmp_path / "set")]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "No positive class found" in printed.err
    assert all(line.startswith("skmkd: warning: ") for line in printed.err.splitlines())
    black = json.loads(printed.out, parse_constant=pytest.fail)
    assert black["pixel AUROC"] is None
    shutil.rmtree(masks.parent)
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == {n: v for n, v in black.items() if "pixel" not in n and n != "AUPRO"}


def test_evaluate_reads_each_mask_once(place, monkeypatch, capsys):
    reads: list[Path] = []

    def counting(function):
        def read(path):
            reads.append(path)
            return function(path)

        return read

    monkeypatch.setattr(_masks, "read_mask", counting(_masks.read_mask))
    monkeypatch.setattr(_masks, "nothing_anomalous", counting(_masks.nothing_anomalous))
    assert main(["evaluate", str(place / "model.skmkd"), str(place / "set")]) == 0
    files = [place / "set/ground_truth/other", place / "set/good"]
    assert sorted(reads) == sorted(path for folder in files for path in folder.iterdir())


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


@pytest.mark.parametrize("layout", [name for name in commands.LAYOUTS if name != "folder"])
def test_each_layout_is_that_of_a_loader_and_of_test_images(layout):
    loader = getattr(skmkd.datasets, f"load_{layout}")
    bound = getattr(commands.LAYOUTS[layout], "keywords", {})
    assert ("subset" in inspect.signature(loader).parameters) == ("subset" in bound)
    assert bound.get("subset", "test").startswith("test")
    assert getattr(commands.LAYOUTS[layout], "func", loader) is loader


def test_evaluate_takes_layouts_without_categories_or_masks(place, tmp_path, capsys):
    for part, source in (("train", "learn"), ("test", "set/good"), ("test", "set/other")):
        (tmp_path / "kolektor" / part).mkdir(parents=True, exist_ok=True)
        for path in (place / source).iterdir():
            name = f"{source[-1]}{path.stem}"
            shutil.copy(path, tmp_path / "kolektor" / part / f"{name}.png")
            mask = place / "set/ground_truth/other" / path.name
            label = np.asarray(Image.open(mask)) if source == "set/other" else np.zeros((25, 25))
            Image.fromarray(label.astype(np.uint8)).save(
                tmp_path / "kolektor" / part / f"{name}_GT.png"
            )
    words = ["evaluate", str(place / "model.skmkd"), str(tmp_path / "kolektor")]
    words += ["--layout", "kolektor_sdd2"]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(place / "model.skmkd"), str(place / "set")]) == 0
    assert figures == pytest.approx(json.loads(capsys.readouterr().out))
    assert main([*words, "--category", "x"]) == 1
    assert "--category must not be given for --layout kolektor_sdd2" in capsys.readouterr().err
    for folder, source in (("good", "set/good"), ("hole", "set/other")):
        shutil.copytree(place / source, tmp_path / "bare/part/test" / folder)
    words = ["evaluate", str(place / "model.skmkd"), str(tmp_path / "bare")]
    assert main([*words, "--layout", "mvtec_ad", "--category", "part"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == pytest.approx({name: figures[name] for name in found})
    assert len(found) == 7


def test_info_counts_weights_instead_of_printing_them(place, detector, tmp_path, capsys):
    path, weights = tmp_path / "model.skmkd", source_state(detector.source_)
    detector.set_params(source_weights=weights).save(path)
    assert main(["info", str(path)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"]["source_weights"] == f"a dict of {len(weights)} tensors"


def test_info_prints_attributes_and_parameters(place, detector, capsys):
    assert main(["info", str(place / "model.skmkd")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["class"] == "MKDDetector"
    assert facts["offset_"] == detector.offset_
    assert facts["calibration images"] == 20
    assert facts["parameters"]["image_size"] == 32
    expected = {k: v for k, v in detector.get_params().items() if v != "deprecated"}
    assert set(facts["parameters"]) == set(expected)


def test_info_leaves_out_deprecated_parameters(place, detector, monkeypatch, capsys):
    parameters = {"image_size": 32, "old_name": "deprecated"}
    monkeypatch.setattr(MKDDetector, "get_params", lambda *_, **__: parameters)
    assert main(["info", str(place / "model.skmkd")]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == {"image_size": 32}


def test_earlier_results_are_not_read_as_images(place, tmp_path):
    (tmp_path / "0.png").symlink_to(place / "learn/0.png")
    for _ in range(2):
        words = ["localize", place / "model.skmkd", tmp_path, "-o", tmp_path / "maps"]
        assert main([str(word) for word in words]) == 0
        assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == [
            "0.jpg", "0.npy", "regions.csv",
        ]  # fmt: skip


@pytest.mark.filterwarnings("always")
def test_unreadable_files_are_skipped_on_request(place, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"")
    words = ["score", place / "model.skmkd", tmp_path / "bad.png", place / "learn/0.png",
             "--format", "jsonl", "--report", tmp_path / "report.html"]  # fmt: skip
    assert main([str(word) for word in words]) == 1
    assert "bad.png cannot be read as an image" in capsys.readouterr().err
    words += ["--on-error", "skip"]
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr()
    assert set(re.findall(r"(.*): \S*bad.png .* It is skipped\.\n", printed.err)) == {
        "skmkd: warning"
    }
    first, second = (json.loads(line) for line in printed.out.splitlines())
    assert first["score"] is first["decision"] is first["p_value"] is None
    assert second["score"] < 0
    assert (tmp_path / "report.html").read_text().count("<img ") == 1


@pytest.mark.filterwarnings("ignore:.*It is skipped")
def test_a_report_may_have_no_pictures(place, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"")
    words = ["score", place / "model.skmkd", tmp_path / "bad.png", "--on-error", "skip",
             "--report", tmp_path / "report.html"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    assert (tmp_path / "report.html").read_text().count("<img ") == 0


# Several sources


@pytest.fixture(scope="module")
def ensemble_file(place, tmp_path_factory):
    """A model of both bundled sources."""
    path = tmp_path_factory.mktemp("ensemble") / "model.skmkd"
    words = ["fit", place / "learn", "-o", path, "--calibrate", place / "held_out", *TWO.split()]
    assert main([*map(str, words), *QUICK.split()]) == 0
    return path


TWO = "--source vgg16 --source efficientnet_lite0 --combine max"


def test_several_sources_are_an_ensemble_as_of_the_library(place, ensemble_file):
    detectors = [(name, quick_detector(source=name)) for name in ("vgg16", "efficientnet_lite0")]
    expected = DetectorEnsemble(
        detectors, combine="max", validation_fraction=0, random_state=0
    ).fit(list_images(place / "learn"))
    expected.calibrate(list_images(place / "held_out"))
    found = skmkd.load(ensemble_file)
    assert (found.offset_, found.map_offset_) == (expected.offset_, expected.map_offset_)
    assert found.get_params(deep=False).keys() == expected.get_params(deep=False).keys()
    paths = list_images(place / "set/other")
    assert_array_equal(found.score_samples(paths), expected.score_samples(paths))


def test_commands_take_an_ensemble(place, ensemble_file, tmp_path, capsys):
    model, images = str(ensemble_file), str(place / "set/other")
    found = skmkd.load(model)
    words = ["score", model, images, "--engine", "torch", "--on-error", "skip", "--drift"]
    assert main(words) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    paths = list_images(images)
    assert_allclose([float(row["score"]) for row in rows], found.score_samples(paths), rtol=1e-6)
    words = ["localize", model, images, "-o", tmp_path, "--report", tmp_path / "report.html"]
    assert main([str(word) for word in words]) == 0
    maps = [np.load(tmp_path / f"{path.stem}.npy") for path in map(Path, paths)]
    expected = np.stack(found.localize(paths)).astype(np.float16)
    assert_array_equal(np.stack(maps), expected)
    assert main(["evaluate", model, str(place / "set")]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12
    assert main(["info", model]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["class"] == "DetectorEnsemble"
    assert facts["offset_"] == found.offset_
    assert facts["parameters"]["combine"] == "max"
    assert list(facts["detectors"]) == ["vgg16", "efficientnet_lite0"]
    assert facts["detectors"]["vgg16"]["parameters"]["image_size"] == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--combine max", "--combine must be given with several --source"),
        ("--source vgg16 --source vgg16", "not unique"),
        ("--source vgg16 --source other", "got 'other'"),
    ],
)
def test_sources_that_make_no_ensemble(place, options, message, tmp_path, capsys):
    words = ["fit", str(place / "learn"), "-o", str(tmp_path / "model"), *options.split()]
    assert main([*words, *QUICK.split(), "--hold-out", "0"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
