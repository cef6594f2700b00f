from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save, save_file

from skmkd._files import archive as archive_module
from skmkd._files.archive import read_archive, write_archive
from skmkd._images.checks import PixelRange
from skmkd._images.preparation import Preprocessing
from skmkd._networks.cloners import Block

VALUES = {"text": "é\n", "list": [1, (2.5, None)], "range": PixelRange(0.0, 1.0, "float")}
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.skmkd"
    write_archive(path, VALUES, TENSORS)
    return path


def round_trip(value, tmp_path):
    write_archive(tmp_path / "a", {"value": value}, {})
    return read_archive(tmp_path / "a")[0]["value"]


def assert_same(first, second):
    assert type(first) is type(second)
    if isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    elif isinstance(first, dict):
        assert_same(list(first.items()), list(second.items()))
    elif isinstance(first, (np.ndarray, np.generic)):
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
        assert np.shape(first) == np.shape(second)
    else:
        assert repr(first) == repr(second)  # nan, and the sign of zero


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(2**70), "", "$tuple", '"sha256":"' + "0" * 64 + '"',
        0.1, -0.0, 5e-324, float("nan"), float("inf"), -float("inf"), [], (), {}, (1, [2, (3,)]),
        {"a": (1,), "b": {"c": None}}, {"$tuple": 1}, {1: "a", (2, 3): [4]}, {"": 1},
        np.float64(0.1), np.float32("nan"), np.float16(0.1), np.int8(-3), np.uint64(2**64 - 1),
        np.bool_(True), np.str_("vector"), np.linspace(0, 1, 7), np.zeros((0, 3)),
        np.array(2.5, dtype=np.float32), np.array([[np.nan, np.inf], [-0.0, 1e-320]]),
        np.arange(6, dtype=">i2").reshape(1, 2, 3), np.array(["a", "bcd"]),
        np.array(["a", "bcd"], dtype=object), Path("a/b"), torch.device("cuda:1"),
        PixelRange(0.0, 255.0, "uint8"), Block((1, 2), (3, 4), None, True),
        Preprocessing((1, 2), PixelRange(0.0, np.inf, "float"), (0.1,), (0.2,)),
    ],
    ids=repr,
)  # fmt: skip
def test_values_come_back_the_same(value, tmp_path):
    assert_same(round_trip(value, tmp_path), value)


class Own(str):
    """A subclass, which would not come back as one."""


@pytest.mark.parametrize(
    "value",
    [object(), 1j, b"a", {1}, Own("a"), len, np.complex64(1), np.datetime64("2020-01-01"),
     np.array([object()]), np.array([1j]), np.longdouble(1), torch.ones(1)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_that_would_not_come_back_are_refused(value, tmp_path):
    with pytest.raises(ValueError, match=r"save can store .*; got part\.of\[1\] = "):
        write_archive(tmp_path / "a", {"part": {"of": [0, value]}}, {})
    assert list(tmp_path.iterdir()) == []


def test_tensors_come_back_the_same(tmp_path):
    shared = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "rows": shared, "columns": shared.T, "same": shared, "part": shared[1:, ::2],
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7), "empty": torch.zeros(0, 2), "half": torch.ones(2).bfloat16(),
        "learned": torch.nn.Parameter(torch.tensor([float("nan"), 1.0])),
    }  # fmt: skip
    write_archive(tmp_path / "a", {}, tensors)
    got = read_archive(tmp_path / "a")[1]
    assert set(got) == set(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(got[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)


def test_the_file_is_a_safetensors_file(archive):
    with safe_open(archive, "pt") as file:
        assert set(file.keys()) == {"a", "b"}
        metadata = file.metadata()
    assert metadata["skmkd_format"] == "1"
    assert json.loads(metadata["values"])["text"] == VALUES["text"]


# Refusals


def refused(path, reason):
    with pytest.raises(ValueError, match=f"cannot be loaded: .*{reason}") as caught:
        read_archive(path)
    assert type(caught.value) is ValueError
    assert repr(str(path)) in str(caught.value)


def test_any_flipped_bit_is_noticed(archive):
    content = archive.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        archive.write_bytes(damaged)
        refused(archive, "damaged")


def test_any_cut_is_noticed(archive):
    content = archive.read_bytes()
    for length in np.linspace(1, len(content) - 1, 50).astype(int):
        archive.write_bytes(content[:length])
        refused(archive, "damaged")
    archive.write_bytes(content + b"\0")
    refused(archive, "damaged")


def test_an_empty_file(tmp_path):
    (tmp_path / "a").touch()
    refused(tmp_path / "a", "it is empty")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_foreign_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "foreign.skmkd"
    Image.new("RGB", (20, 20)).save(path, format="png")
    refused(path, "skmkd did not write it")
    save_file({"a": torch.ones(2)}, path, {"about": "a plain safetensors file"})
    refused(path, "skmkd did not write it")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Bomb(), protocol))
        refused(path, "skmkd did not write it")
    torch.save(Bomb(), path)
    refused(path, "skmkd did not write it")
    path.write_bytes(bytes(range(256)) * 100)
    refused(path, "skmkd did not write it")
    assert os.listdir() == ["foreign.skmkd"]


def forged(path, values: str):
    """Write a file with a true checksum, whatever its values are."""
    metadata = {"skmkd_format": "1", "values": values, "sha256": "0" * 64}
    content = bytearray(save({}, metadata))
    start, stop = archive_module.SEAL.search(content).span(1)
    content[start:stop] = archive_module.hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content)


def test_values_name_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "forged"
    bomb = pickle.dumps(Bomb()).decode("latin1")
    for values in (
        '{"$os.mkdir": ["exploded"]}', '{"$eval": "1"}', '{"$array": ["os", [1], [1]]}',
        '{"$device": "os"}', '{"$scalar": ["os", 1]}', "[" * 10**5, "{", "NaN]",
        '{"$PixelRange": [1]}', '{"$tuple": 1}',
    ):  # fmt: skip
        forged(path, values)
        refused(path, "")
    forged(path, json.dumps({"values": bomb}))
    assert read_archive(path)[0] == {"values": bomb}  # text, and nothing else
    assert os.listdir() == ["forged"]


def test_a_newer_format(archive, monkeypatch):
    monkeypatch.setattr(archive_module, "FORMAT", 2)
    monkeypatch.setattr(archive_module, "__version__", "7.0")
    write_archive(archive, VALUES, TENSORS)
    monkeypatch.undo()
    refused(archive, "skmkd 7.0 wrote it in format 2; this is skmkd .* formats up to 1")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_archive(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no folder.*'.*nowhere'"):
        write_archive(tmp_path / "nowhere" / "a", VALUES, TENSORS)


# Writing whole or not at all


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of Unix")
@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
def test_being_killed_leaves_the_old_file(archive, moment):
    old = archive.read_bytes()
    program = (
        "import os, pathlib, signal, torch\n"
        "from skmkd._files.archive import write_archive\n"
        f"{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_archive({str(archive)!r}, {{}}, {{'new': torch.zeros(10**5)}})\n"
    )
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    killed = subprocess.run([sys.executable, "-c", path + program], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert archive.read_bytes() == old
    assert read_archive(archive)[0] == VALUES
    write_archive(archive, {"new": 1}, {})
    assert read_archive(archive)[0] == {"new": 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_an_interruption_leaves_the_old_file_and_no_other(archive, monkeypatch, error, moment):
    def interrupt(*_):
        raise error

    target = (os, "fsync") if moment == "fsync" else (Path, "replace")
    old = archive.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(*target, interrupt)
        with pytest.raises(error if isinstance(error, type) else type(error)):
            write_archive(archive, {}, TENSORS)
    assert archive.read_bytes() == old
    assert os.listdir(archive.parent) == [archive.name]


@pytest.mark.skipif(os.name != "posix", reason="permissions of Unix")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_archive(tmp_path / "a", VALUES, TENSORS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_one(archive, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(archive)
    write_archive(link, {"new": 1}, {})
    assert link.is_symlink()
    assert read_archive(archive)[0] == {"new": 1}
