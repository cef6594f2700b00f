"""Parts of the images, each by a command of its own."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from io import StringIO

import pytest

from skmkd._cli import main
from skmkd._cli.parser import shard
from skmkd.datasets import list_images
from skmkd.distributed import Scorer


def run(*words):
    return main(["score", *map(str, words)])


def rows(*files):
    return [row for file in files for row in csv.DictReader(StringIO(file.read_text()))]


def test_parts_of_a_folder_and_a_list(place, tmp_path, capsys):
    images = [str(path) for path in list_images(place / "held_out")]
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    listed = tmp_path / "more.txt"
    listed.write_text(f"{place / 'learn' / '0.png'}\n{bad}\n")
    out = tmp_path / "scores"
    given = place / "model.skmkd", place / "held_out", listed, "-o", out
    for i in (1, 2):
        assert run(*given, "--shard", f"{i}/2", "--resume") == 0
    printed = capsys.readouterr()
    parts = [out / f"part-0000{i}-of-00002.csv" for i in (1, 2)]
    assert printed.out.split() == [str(part) for part in parts]
    assert printed.err == "skmkd: 1 image without a score: see error\n"
    paths = [*images, str(place / "learn" / "0.png"), str(bad)]
    found = rows(*parts)
    assert [row["path"] for row in found] == paths
    expected = Scorer(place / "model.skmkd")(paths)
    assert [float(row["score"]) for row in found[:-1]] == expected["score"][:-1].tolist()
    assert found[-1]["error"].startswith(f"{bad} cannot be read")


def test_resume(place, tmp_path, capsys):
    given = place / "model.skmkd", place / "held_out", "-o", tmp_path / "scores", "--shard", "1/1"
    part = tmp_path / "scores" / "part-00001-of-00001.csv"
    for _ in range(2):
        assert run(*given, "--resume") == 0
    capsys.readouterr()
    before = part.read_text()
    assert run(given[0], place / "learn", *given[2:], "--resume") == 1
    assert "was begun with another list of images" in capsys.readouterr().err
    part.write_text("of an earlier process")
    assert run(*given) == 0  # from the beginning
    assert part.read_text() == before


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow")
def test_parquet(place, tmp_path):
    from pyarrow import parquet, table

    paths = [str(path) for path in list_images(place / "learn")]
    parquet.write_table(table({"path": paths}), tmp_path / "images.parquet")
    words = place / "model.skmkd", tmp_path / "images.parquet", "--shard", "2/2"
    assert run(*words, "--format", "parquet", "-o", tmp_path / "scores") == 0
    written = parquet.read_table(tmp_path / "scores" / "part-00002-of-00002.parquet")
    assert written["path"].to_pylist() == paths[8:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume"], "--resume must be given with --shard; got none"),
        (["--format", "parquet"], "--format parquet must be given with --shard; got none"),
        (["--shard", "1/2"], "--output must be a folder for the parts with --shard"),
        (["--shard", "1/2", "-o", "out", "--drift"], "--drift must not be given with --shard"),
        (["--shard", "1/2", "-o", "out", "--report", "a"], "--report must not be given with"),
        (["--shard", "1/2", "-o", "out", "--engine", "torch"], "--engine must not be given with"),
        (["--shard", "1/2", "-o", "out", "--on-error", "skip"], "--on-error must not be given"),
        (["--shard", "1/2", "-o", "out", "--format", "jsonl"], "--format must be csv or parquet"),
    ],
)
def test_options_that_do_not_go_together(place, words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(place / "model.skmkd", place / "learn", *words) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_shard_is_a_pair_of_numbers():
    assert shard("3/16") == (3, 16)


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "a/b", "1/2/3", "-1/2", ""])
def test_no_shard(place, text, capsys):
    with pytest.raises(SystemExit):
        run(place / "model.skmkd", place / "learn", "-o", "out", f"--shard={text}")
    assert "--shard" in capsys.readouterr().err
