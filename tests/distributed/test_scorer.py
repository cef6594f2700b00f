"""A scorer is small, loads once a process, and says of each image what the detector says."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from shutil import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import skmkd
from skmkd.distributed import Scorer, _scorer
from skmkd.distributed._scorer import COLUMNS, in_order

pytestmark = pytest.mark.slow


@pytest.fixture
def few(paths):
    return paths[:5]


@pytest.fixture
def bad(tmp_path):
    """Files without a score."""
    files = [tmp_path / name for name in ("text.png", "empty.jpg", "gone.png")]
    files[0].write_text("no image")
    files[1].touch()
    return [str(file) for file in files]


def test_columns_are_what_the_detector_says(model, few):
    detector, columns = skmkd.load(model), Scorer(model)(few)
    assert tuple(columns) == COLUMNS
    assert columns["path"].tolist() == few
    assert_array_equal(columns["score"], detector.score_samples(few))
    assert_array_equal(columns["decision"], detector.decision_function(few))
    assert_array_equal(columns["p_value"], detector.p_value(few))
    assert columns["error"].tolist() == [""] * 5
    for name in ("score", "decision", "p_value"):
        assert columns[name].dtype == np.float64


def test_maps(model, few, bad):
    columns = Scorer(model, maps=True)([*few, bad[0]])
    assert_array_equal(np.stack(columns["map"][:5]), skmkd.load(model).localize(few))
    assert columns["map"][5] is None


def test_pickled_in_a_few_hundred_bytes(model, few):
    scorer = Scorer(model, threads=1)
    here = scorer(few)  # what is loaded must not be pickled
    pickled = pickle.dumps(scorer)
    assert len(pickled) <= 500
    assert vars(pickle.loads(pickled)) == vars(scorer)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        there = pool.submit(scorer, few).result()
    for name in COLUMNS:
        assert_array_equal(there[name], here[name])


def test_a_relative_model_is_found_from_elsewhere(model, few, monkeypatch, tmp_path):
    monkeypatch.chdir(model.parent)
    scorer = Scorer(model.name)
    monkeypatch.chdir(tmp_path)
    assert np.isfinite(scorer(few)["score"]).all()


def test_loaded_once_a_process(model, few, monkeypatch, tmp_path):
    mine = Path(copy(model, tmp_path))
    loads = []

    def counted(path, **options):
        loads.append(path)
        return skmkd.load(path, **options)

    monkeypatch.setattr(_scorer, "load", counted)
    expected = Scorer(model)(few)["score"]
    loads.clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Scorer(mine)(few)["score"], range(8)))
    assert loads == [str(mine)]
    for each in found:
        assert_array_equal(each, expected)
    os.utime(mine, ns=(1, 1))  # as of another file of the name
    Scorer(mine)(few)
    assert len(loads) == 2


def test_images_in_other_forms(model, faces):
    scorer, expected = Scorer(model), skmkd.load(model).score_samples(faces[:3])
    for batch in (faces[:3], list(faces[:3]), {"image": faces[:3]}, {"image": list(faces[:3])}):
        columns = scorer(batch)
        assert columns["path"].tolist() == [""] * 3
        assert_array_equal(columns["score"], expected)


def test_columns_of_a_batch_come_back(model, few, faces):
    scorer, expected = Scorer(model), Scorer(model)(few)
    ids = np.arange(5)
    of_paths = scorer({"id": ids, "path": np.array(few, dtype=object)})
    assert of_paths["id"] is ids
    assert_array_equal(of_paths["score"], expected["score"])
    of_images = scorer({"path": ["a", "b"], "image": faces[:2]})  # pixels that were read already
    assert of_images["path"] == ["a", "b"]
    assert_array_equal(of_images["score"], scorer(faces[:2])["score"])
    assert scorer(Path(path) for path in few)["path"].tolist() == few


def test_paths_come_back_as_they_were(model, few, monkeypatch):
    monkeypatch.chdir(Path(few[0]).parent)
    odd = [f".//{Path(path).name}" for path in few]
    for batch in (odd, {"path": odd}):
        columns = Scorer(model)(batch)
        assert columns["path"].tolist() == odd
        assert columns["error"].tolist() == [""] * 5


def test_a_bad_image_is_a_row(model, few, bad):
    columns = Scorer(model)([few[0], *bad, few[1]])
    assert_array_equal(columns["score"][[0, 4]], Scorer(model)(few[:2])["score"])
    assert columns["error"][[0, 4]].tolist() == ["", ""]
    for name in ("score", "decision", "p_value"):
        assert np.isnan(columns[name][1:4]).all()
    for path, error in zip(bad, columns["error"][1:4], strict=True):
        assert error.startswith(f"{path} cannot be read as an image: ")


def test_all_are_bad(model, bad):
    for batch in (bad, bad[:1], {"path": bad}):
        columns = Scorer(model)(batch)
        assert np.isnan(columns["score"]).all()
        assert all(columns["error"])
    assert Scorer(model)({"path": [None]})["error"].tolist() != [""]


def test_no_images(model):
    for batch in ([], {"path": []}, {"image": []}, iter(())):
        columns = Scorer(model)(batch)
        assert tuple(columns) == COLUMNS
        assert all(len(column) == 0 for column in columns.values())
    assert Scorer(model, maps=True)([])["map"] == []


def test_what_is_no_batch(model, tmp_path):
    with pytest.raises(ValueError, match=r"must have the column 'image' or 'path'; got \['name'\]"):
        Scorer(model)({"name": ["a"]})
    with pytest.raises(ValueError, match=r"X must be a list of paths; got the single path"):
        Scorer(model)("a.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.skmkd"):
        Scorer(tmp_path / "gone.skmkd")(["a.png"])


def test_threads_are_those_of_the_scorer_while_it_scores(model, few, monkeypatch):
    before, seen = torch.get_num_threads(), []

    class Watched:
        def iter_results(self, images, maps):
            seen.append(torch.get_num_threads())
            return iter(())

    monkeypatch.setattr(Scorer, "detector", lambda self: Watched())
    Scorer(model, threads=before + 1)(few)
    Scorer(model)(few)
    assert seen == [before + 1, before]
    assert torch.get_num_threads() == before


def test_in_order(model, few):
    scorer = Scorer(model, maps=True)
    whole, joined = scorer(few), in_order([scorer(few[:2]), scorer([]), scorer(few[2:])])
    assert list(joined) == list(whole)
    for name in whole:
        assert_array_equal(joined[name], whole[name])
    none = in_order([])
    assert {name: column.dtype for name, column in none.items()} == {
        name: column.dtype for name, column in Scorer(model)([]).items()
    }


def test_repr(model):
    assert repr(Scorer(model)) == f"Scorer({str(model)!r})"
