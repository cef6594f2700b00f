"""Parts of many images: whole, in order, nothing twice, whatever was killed before."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from shutil import copy
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skmkd import _atomic
from skmkd.distributed import Scorer, _shards, score_shard
from skmkd.distributed._scorer import COLUMNS, TEXTS
from skmkd.distributed._shards import chunks, part_of, read_list

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
N = 300
BAD = 123
needs_parquet = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow")


@pytest.fixture
def some(paths, tmp_path):
    """Three hundred of the images; one is broken."""
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    return [*paths[:BAD], str(bad), *paths[BAD + 1 : N]]


@pytest.fixture
def odd(paths, tmp_path):
    """Images and others whose names do not suit a table."""
    names = [
        "a,b",
        'say "so"',
        "two\nlines",
        "carriage\rreturn",
        "\u2028",
        "",
        "nan",
        "\udcff",
        "a\n",
    ]
    folder = tmp_path / "odd"
    folder.mkdir()
    files = [folder / f"{name}.png" for name in names]
    for file in files[::2]:
        copy(paths[0], file)  # the others are not there, so that their names are in errors, too
    return [str(file) for file in files]


def rows_of(*parts):
    """Return the rows of parts in CSV."""
    rows = []
    for part in parts:
        with part.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            header, *found = csv.reader(stream)
        assert tuple(header) == COLUMNS
        rows += found
    return rows


def check(parts, columns):
    """Check that parts say bit for bit what one process says."""
    rows = rows_of(*parts)
    for name, found in zip(COLUMNS, zip(*rows, strict=True), strict=True):
        if name in TEXTS:
            assert list(found) == columns[name].tolist()
        else:
            assert_array_equal(np.array(found, dtype=float), columns[name])


def test_parts_together_are_all(model, some, tmp_path):
    out = tmp_path / "new" / "scores"
    found = [score_shard(model, some, out, shard=(i, 3)) for i in (3, 1, 2)]
    parts = sorted(part for part, _ in found)
    assert [part.name for part in parts] == [f"part-0000{i}-of-00003.csv" for i in (1, 2, 3)]
    assert [n_errors for _, n_errors in found] == [0, 0, 1]
    check(parts, Scorer(model)(some))
    assert {path for path in out.iterdir() if path.name[0] != "."} == set(parts)


def test_files_that_do_not_suit_a_table(model, odd, tmp_path):
    part, n_errors = score_shard(model, odd, tmp_path / "scores")
    assert n_errors == len(odd) // 2
    check([part], Scorer(model)(odd))


def test_as_rows_come(model, some, tmp_path, monkeypatch):
    """Rows are written batch by batch; an error in the middle keeps those before."""
    detector = Scorer(model).detector()
    original, scored = type(detector).iter_results, []

    def failing(self, paths):
        for result in original(self, paths):
            if len(scored) == 150:
                scored.append(None)
                raise MemoryError
            scored.append(result.path)
            yield result

    monkeypatch.setattr(type(detector), "iter_results", failing)
    with pytest.raises(MemoryError):
        score_shard(model, some, tmp_path / "scores")
    (partial,) = (tmp_path / "scores").glob(".*.partial.csv")
    assert [row[0] for row in rows_of(partial)] == some[:150]
    part, _ = score_shard(model, some, tmp_path / "scores")
    assert scored == [*some[:150], None, *some[150:]]  # nothing is scored again
    monkeypatch.undo()
    check([part], Scorer(model)(some))


def test_a_row_torn_anywhere(model, odd, tmp_path):
    """Wherever a killed process stopped writing, the rest is as if it had not been killed."""
    first, second = tmp_path / "whole", tmp_path / "torn"
    part, _ = score_shard(model, odd, first)
    whole = part.read_bytes()
    told = first / ".run.json"
    second.mkdir()
    rng = random.Random(0)
    ends = {0, 1, len(whole), *(i + 1 for i, byte in enumerate(whole) if byte in b'\r\n",')}
    for end in sorted(ends | set(rng.sample(range(len(whole)), 20))):
        for old in second.iterdir():
            old.unlink()
        copy(told, second)
        (second / ".part-00001-of-00001.partial.csv").write_bytes(whole[:end])
        again, _ = score_shard(model, odd, second)
        assert again.read_bytes() == whole, end


def test_killed_at_random_moments(model, paths, expected, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["skmkd.distributed", "conftest", __name__])
    rng, n = random.Random(0), 800
    out = tmp_path / "scores"
    rows = out / ".part-00001-of-00001.partial.csv"
    sizes = [0]
    for i in range(10):
        process = context.Process(target=score_shard, args=(model, paths[:n], out))
        process.start()
        while i % 3 and process.is_alive() and size(rows) <= sizes[-1]:
            time.sleep(0.001)  # but every third one is killed before it writes
        process.join(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        sizes.append(size(rows))
    part, _ = score_shard(model, paths[:n], out)
    check([part], {name: column[:n] for name, column in expected.items()})
    assert not rows.exists()
    assert len(set(sizes)) > 5


def size(file):
    """Return how long a file is; 0 if it is not there."""
    return file.stat().st_size if file.exists() else 0


def test_a_finished_part_is_left_alone(model, some, tmp_path, monkeypatch):
    out = tmp_path / "scores"
    part, _ = score_shard(model, some, out, shard=(1, 30))
    before = part.stat()
    monkeypatch.setattr(_shards, "_write_rows", None)
    assert score_shard(model, some, out, shard=(1, 30)) == (part, 0)
    assert part.stat() == before


def test_without_resume_all_is_scored_again(model, some, faces, tmp_path):
    out = tmp_path / "scores"
    part, _ = score_shard(model, some[:10], out)
    part.write_text("of an earlier run")
    (out / ".part-00001-of-00001.partial.csv").write_text("rows")
    score_shard(model, some[:10], out, resume=False)
    check([part], Scorer(model)(some[:10]))


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_is_of_one_run(model, some, brief, faces, tmp_path, resume):
    out = tmp_path / "scores"
    part, _ = score_shard(model, some[:10], out)
    before = part.read_bytes()
    other = Path(copy(model, tmp_path / "other.skmkd"))
    brief.set_params(random_state=1).fit(faces[:4]).save(other)
    for changed, noun in (
        ({"model": other}, "model"),
        ({"paths": some[:9]}, "list of images"),
        ({"shard": (1, 2)}, "number of parts"),
        ({"model": other, "file_format": "parquet"}, "model and another format"),
    ):
        given = {"model": model, "paths": some[:10], "output": out, "resume": resume} | changed
        with pytest.raises(ValueError, match=f"{out} was begun with another {noun}. Choose"):
            score_shard(**given)
    assert part.read_bytes() == before


@pytest.mark.skipif(_atomic.fcntl is None, reason="needs locks of files")
@pytest.mark.parametrize("resume", [False, True])
def test_one_process_a_part(model, some, tmp_path, resume):
    """A second process is refused, until the first has ended, however it did."""
    out = tmp_path / "scores"
    out.mkdir()
    lock = out / ".part-00001-of-00001.lock"
    program = (
        f"import fcntl; file = open({str(lock)!r}, 'a'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print(flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        other.stdout.readline()
        with pytest.raises(BlockingIOError, match="part-00001-of-00001.csv is being written by"):
            score_shard(model, some[:3], out, resume=resume)
        other.kill()
    part, _ = score_shard(model, some[:3], out, resume=resume)
    check([part], Scorer(model)(some[:3]))


def test_a_file_system_without_locks(model, some, tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    for broken in (SimpleNamespace(flock=unknown, LOCK_EX=0, LOCK_NB=0), None):
        monkeypatch.setattr(_atomic, "fcntl", broken)
        part, _ = score_shard(model, some[:3], tmp_path / "scores", resume=False)
        check([part], Scorer(model)(some[:3]))


@needs_parquet
def test_parquet(model, some, tmp_path, monkeypatch):
    from pyarrow import parquet

    monkeypatch.setattr(_shards, "ROW_GROUP", 64)
    out, expected = tmp_path / "scores", Scorer(model)(some)
    for i in (1, 2):
        part, _ = score_shard(model, some, out, shard=(i, 2), file_format="parquet")
        assert part.name == f"part-0000{i}-of-00002.parquet"
    table = parquet.read_table(out)  # the folder: hidden files are no part of it
    assert table.column_names == list(COLUMNS)
    for name in COLUMNS:
        assert_array_equal(table[name].to_numpy(), expected[name])
        assert table[name].null_count == 0
    assert not list(out.glob(".*.parquet")) + list(out.glob(".*.csv"))


@needs_parquet
def test_parquet_of_a_part_that_was_killed(model, odd, tmp_path):
    from pyarrow import parquet

    out, names = tmp_path / "scores", [path for path in odd if "\udcff" not in path]
    with pytest.raises(ValueError, match=r"paths in Parquet must be valid UTF-8; got '.*udcff"):
        score_shard(model, odd, out, file_format="parquet")
    part, _ = score_shard(model, names, out, file_format="parquet")
    whole = parquet.read_table(part)
    csv_part, _ = score_shard(model, names, tmp_path / "csv")
    part.unlink()
    (out / f".{part.name}").write_bytes(b"PAR1")
    content = csv_part.read_bytes()
    (out / ".part-00001-of-00001.partial.csv").write_bytes(content[: len(content) // 2])
    assert score_shard(model, names, out, file_format="parquet")[0] == part
    again = parquet.read_table(part)
    for name in COLUMNS:
        assert_array_equal(again[name].to_numpy(), whole[name].to_numpy())
    assert whole["path"].to_pylist() == names


def test_no_images(model, tmp_path):
    for n_parts in (1, 3):
        part, n_errors = score_shard(model, [], tmp_path / str(n_parts), shard=(1, n_parts))
        assert (rows_of(part), n_errors) == ([], 0)


def test_progress(model, some, tmp_path, capsys):
    score_shard(model, some[:10], tmp_path / "scores", verbose=1)
    assert "10/10" in capsys.readouterr().err


@pytest.mark.parametrize("shard", [(0, 3), (4, 3), (1, 0), (-1, -1)])
def test_there_is_no_such_shard(model, some, tmp_path, shard):
    with pytest.raises(ValueError, match=r"shard must be \(i, n\) with i from 1 to n; got \("):
        score_shard(model, some, tmp_path, shard=shard)


def test_there_is_no_such_format(model, some, tmp_path):
    with pytest.raises(ValueError, match="file_format must be 'csv' or 'parquet'; got 'json'"):
        score_shard(model, some, tmp_path, file_format="json")


def test_there_is_no_such_model(some, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.skmkd"):
        score_shard(tmp_path / "gone.skmkd", some, tmp_path / "scores")


@pytest.mark.parametrize(("n", "n_parts"), [(10, 3), (2, 5), (0, 2), (1000, 7)])
def test_sizes_of_parts(n, n_parts):
    parts = [part_of(range(n), i, n_parts) for i in range(1, n_parts + 1)]
    assert [item for part in parts for item in part] == list(range(n))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_chunks():
    assert list(chunks(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks([], 3)) == []


def test_lists(tmp_path):
    text = tmp_path / "images.txt"
    text.write_bytes("a b.png\r\n\n\u00fc.png\n".encode() + b"\xff.png")
    assert read_list(text) == ["a b.png", "\u00fc.png", "\udcff.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("suffix", ["txt", pytest.param("parquet", marks=needs_parquet)])
def test_a_list_that_is_a_named_pipe(tmp_path, suffix):
    os.mkfifo(tmp_path / f"images.{suffix}")
    with pytest.raises(OSError, match=f"a named pipe, not a file: '.*images.{suffix}'"):
        read_list(tmp_path / f"images.{suffix}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize(
    "name", [".run.json", ".part-00001-of-00001.lock", ".part-00001-of-00001.partial.csv"]
)
def test_a_named_pipe_among_the_parts(model, some, tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match=f"a named pipe, not a file: '.*{name}'"):
        score_shard(model, some, tmp_path)


@needs_parquet
def test_lists_in_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2], "path": ["a", "b"]}), file)
    assert read_list(file) == ["a", "b"]
    for columns in ({"path": ["a", None]}, {"path": [1, 2]}):
        parquet.write_table(pyarrow.table(columns), file)
        with pytest.raises(ValueError, match=f"the column 'path' of {file} must hold text"):
            read_list(file)
    parquet.write_table(pyarrow.table({"file": ["a"]}), file)
    with pytest.raises(ValueError, match=f"{file} must be Parquet with a column 'path'"):
        read_list(file)
    file.write_text("no Parquet")
    with pytest.raises(ValueError, match=f"{file} must be Parquet with a column 'path'"):
        read_list(file)


def test_empty_lists(tmp_path):
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(ValueError, match="a.txt must list at least one image; it lists none"):
        read_list(tmp_path / "a.txt")


def test_output_is_a_file(model, some, tmp_path):
    (tmp_path / "scores").touch()
    with pytest.raises(ValueError, match="output must be a folder; .*scores is a file"):
        score_shard(model, some, tmp_path / "scores")


@pytest.mark.skipif(find_spec("resource") is None, reason="needs limits of files")
def test_a_file_cannot_grow(model, some, tmp_path):
    """As on a full disk, the error names the file; with room, the part goes on."""
    import resource

    out = tmp_path / "scores"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"\[Errno \d+\] .*part-00001-of-00001.*csv'$"):
            score_shard(model, some[:20], out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert size(out / ".part-00001-of-00001.partial.csv") == 1000
    part, _ = score_shard(model, some[:20], out)
    check([part], Scorer(model)(some[:20]))


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Where a shell finds skmkd, and what Slurm brings."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, words in (("srun", ""), ("skmkd", f"{sys.executable} -m skmkd ")):
        (folder / name).write_text(f'#!/bin/sh\nexec {words}"$@"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes"])
def test_the_scripts_of_the_guide(scheduler, commands, guide, tmp_path, monkeypatch):
    data = tmp_path / "data"
    if scheduler == "slurm":
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
        (script,) = re.findall(r"```sh\n(#!/bin/bash.*?)```", guide, re.S)
        command = ["bash", "-euc", script]
        assert "--array=1-16\n" in script
    else:
        yaml = pytest.importorskip("yaml")
        monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
        (text,) = re.findall(r"```yaml\n(.*?)```", guide, re.S)
        job = yaml.safe_load(text)["spec"]
        assert job["completions"] == 16
        (container,) = job["template"]["spec"]["containers"]
        command = container["command"]
    subprocess.run(command, check=True, capture_output=True)
    part = data / scheduler / "part-00003-of-00016.csv"
    images = sorted((data / "archive").iterdir())[2:3]
    check([part], Scorer(data / "part.skmkd")([str(image) for image in images]))
