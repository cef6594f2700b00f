"""Files are whole at any time, and what killed writers leave is removed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skmkd import _atomic
from skmkd._atomic import AGE, PREFIX, SUFFIX, remove_leftovers, write_file

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="locks and signals of Unix")


@pytest.fixture(params=["with a name", "without a name"])
def way(request, monkeypatch):
    """Write by temporary files of one kind."""
    if request.param == "with a name":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("the system has no files without a name")
    return request.param


def leftover(folder, age=2 * AGE, name="0"):
    path = folder / f"{PREFIX}{name}{SUFFIX}"
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_file_is_replaced_by_the_parts(tmp_path, way):
    path = tmp_path / "file"
    for parts in ([b"first"], [b"second", bytearray(b" and "), memoryview(b"third")], []):
        write_file(path, parts, durable=True)
        assert path.read_bytes() == b"".join(parts)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", ["os.fsync", "os.link", "pathlib.Path.replace"])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, way, moment, error):
    if moment == "os.link" and (way == "with a name" or isinstance(error, OSError)):
        pytest.skip("no link is made, or none is needed")

    def fail(*_, **__):
        raise error

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(moment, fail)
    with pytest.raises(type(error)):
        write_file(path, [b"new"], durable=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_system_whose_files_cannot_be_linked(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise PermissionError

    monkeypatch.setattr(os, "link", fail)
    write_file(tmp_path / "file", [b"new"], durable=False)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_old_leftovers_are_removed_and_nothing_else(tmp_path):
    old = leftover(tmp_path)
    others = [leftover(tmp_path, 0, "young")]
    for name in (".0123456789abcdef.tmp", f"{PREFIX}mine", "a.tmp"):
        others.append(tmp_path / name)
        others[-1].touch()
        os.utime(others[-1], (0, 0))
    folder = tmp_path / f"{PREFIX}folder{SUFFIX}"
    folder.mkdir()
    os.utime(folder, (0, 0))
    remove_leftovers(tmp_path / "file")
    assert not old.exists()
    assert all(path.exists() for path in [*others, folder])
    remove_leftovers(tmp_path / "no folder" / "file")  # no error


@posix
def test_what_another_still_writes_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(_atomic, "AGE", -1)
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    seen = []

    def parts():
        yield b"half"
        remove_leftovers(tmp_path / "other")
        seen.extend(os.listdir(tmp_path))
        yield b" and half"

    write_file(tmp_path / "file", parts(), durable=False)
    assert len(seen) == 1
    assert seen[0].startswith(PREFIX)
    assert (tmp_path / "file").read_bytes() == b"half and half"


WRITER = """
import os, sys
sys.path.insert(0, {root!r})
from skmkd._atomic import write_file
from pathlib import Path
if sys.argv[2] == "with a name" and hasattr(os, "O_TMPFILE"):
    del os.O_TMPFILE
print("ready", flush=True)
for i in range(10**9):
    write_file(Path(sys.argv[1]), [bytes([i % 256]) * 10**6], durable=False)
"""


@posix
def test_killed_writers_leave_whole_files_only(tmp_path, monkeypatch, way):
    path = tmp_path / "file"
    rng = random.Random(0)
    program = WRITER.format(root=str(ROOT))
    for _ in range(4):
        run = [sys.executable, "-c", program, str(path), way]
        with subprocess.Popen(run, stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(0.02 + 0.03 * rng.random())
            writer.send_signal(signal.SIGKILL)
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 10**6
            assert content == content[:1] * 10**6
    monkeypatch.setattr(_atomic, "AGE", -1)
    remove_leftovers(path)
    assert set(os.listdir(tmp_path)) <= {"file"}
