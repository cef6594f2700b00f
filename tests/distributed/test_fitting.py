"""A detector for each product: the same as alone, resumed, one failing product stops no other."""

from __future__ import annotations

import csv
import os

import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.base import clone

import skmkd
from skmkd.distributed import fit_many
from skmkd.distributed._fitting import TABLE

pytestmark = pytest.mark.slow


@pytest.fixture
def products(faces, tmp_path):
    """An array, a folder, and a list of paths; one of them holds nothing to learn from."""
    for name in ("folder", "none"):
        (tmp_path / name).mkdir()
    files = [tmp_path / "folder" / f"{i}.png" for i in range(8)]
    for file, image in zip(files, faces[8:], strict=False):
        Image.fromarray(image).save(file)
    return {
        "of an array": faces[:8], "no images": tmp_path / "none", "folder": tmp_path / "folder",
        "list.1": files[:4],
    }  # fmt: skip


def table_in(folder):
    with (folder / "fits.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_detectors_are_as_if_fitted_alone(products, brief, faces, tmp_path):
    out = tmp_path / "new" / "fits"
    rows = fit_many(products, out, detector=brief)
    assert {row["name"] for row in rows} == set(products)
    for row in rows:
        failed = row["name"] == "no images"
        assert (
            row["n_images"]
            == {"of an array": 8, "folder": 8, "list.1": 4, "no images": 0}[row["name"]]
        )
        assert (out / f"{row['name']}.skmkd").exists() != failed
        assert ("none" in row["error"]) == bool(row["error"]) == failed
        assert row["seconds"] > 0
    assert [{k: str(v) for k, v in row.items()} for row in rows] == table_in(out)
    alone = clone(brief).fit(faces[:8])
    loaded = skmkd.load(out / "of an array.skmkd")
    assert_array_equal(loaded.score_samples(faces), alone.score_samples(faces))
    assert not hasattr(brief, "cloner_")


def test_what_is_done_is_left_out(products, brief, faces, tmp_path):
    first = {name: products[name] for name in ("folder", "no images")}
    fit_many(first, tmp_path / "fits", detector=brief)
    before = (tmp_path / "fits" / "folder.skmkd").stat()
    products["no images"] = faces[:4]  # which have come in the meantime
    rows = fit_many(products, tmp_path / "fits", detector=brief)
    assert {row["name"] for row in rows} == {"of an array", "no images", "list.1"}
    assert not any(row["error"] for row in rows)
    assert (tmp_path / "fits" / "folder.skmkd").stat() == before
    assert len(table_in(tmp_path / "fits")) == 2 + 3
    assert fit_many(products, tmp_path / "fits", detector=brief) == []


def test_files_are_small(faces, brief, tmp_path):
    for include, name in ((True, "with"), (False, "without")):
        fit_many({name: faces[:4]}, tmp_path, detector=brief, include_source=include)
    assert (
        2 * (tmp_path / "without.skmkd").stat().st_size < (tmp_path / "with.skmkd").stat().st_size
    )


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", 3, None])
def test_names_are_those_of_files(name, faces, tmp_path):
    with pytest.raises(ValueError, match="products must have names that files can have; got"):
        fit_many({"good": faces[:4], name: faces[:4]}, tmp_path / "fits")
    assert not (tmp_path / "fits").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_named_pipe_for_a_table(tmp_path):
    os.mkfifo(tmp_path / TABLE)
    with pytest.raises(OSError, match=f"a named pipe, not a file: '.*{TABLE}'"):
        fit_many({}, tmp_path)


def test_processes(products, brief, tmp_path):
    rows = fit_many(products, tmp_path / "fits", detector=brief, n_jobs=2)
    assert {row["name"]: bool(row["error"]) for row in rows} == {
        "of an array": False, "no images": True, "folder": False, "list.1": False
    }  # fmt: skip
