from __future__ import annotations

import errno
import hashlib
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
from skmkd._files.migration import FORMAT
from skmkd._images.checks import PixelRange
from skmkd._images.preparation import Preprocessing
from skmkd._images.tiles import Tiling
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
        np.array([[True, True, False], [False, True, True]]), np.zeros((3, 2), bool),
        np.ones(4, bool), np.zeros((0, 2), bool), np.array(True), Tiling((3, 4), 0.25),
    ],
    ids=repr,
)  # fmt: skip
def test_values_round_trip(value, tmp_path):
    assert_same(round_trip(value, tmp_path), value)


class Own(str):
    """A subclass, which would be read as a str."""


@pytest.mark.parametrize(
    "value",
    [object(), 1j, b"a", {1}, Own("a"), len, np.complex64(1), np.datetime64("2020-01-01"),
     np.array([object()]), np.array([1j]), np.longdouble(1), torch.ones(1)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_that_cannot_round_trip_are_refused(value, tmp_path):
    with pytest.raises(ValueError, match=r"save can store .*; got part\.of\[1\] = "):
        write_archive(tmp_path / "a", {"part": {"of": [0, value]}}, {})
    assert list(tmp_path.iterdir()) == []


def test_tensors_round_trip(tmp_path):
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
    assert metadata["skmkd_format"] == str(FORMAT)
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


def test_truncation_at_any_length_is_noticed(archive):
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


def forge(path, **metadata):
    """Write a file without tensors whose checksum is right, whatever its metadata."""
    plain = {"skmkd_format": "1", "skmkd": "0", "values": "{}", "sha256": "0" * 64} | metadata
    content = save({}, plain)
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest))


def test_forged_values_cannot_name_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "forged"
    bomb = pickle.dumps(Bomb()).decode("latin1")
    for values in (
        '{"$os.mkdir": ["exploded"]}', '{"$eval": "1"}', '{"$array": ["os", [1], [1]]}',
        '{"$device": "os"}', '{"$scalar": ["os", 1]}', "[" * 10**5, "{", "NaN]",
        '{"$PixelRange": [1]}', '{"$tuple": 1}',
    ):  # fmt: skip
        forge(path, values=values)
        refused(path, "")
    forge(path, values=json.dumps({"values": bomb}))
    assert read_archive(path)[0] == {"values": bomb}  # text, and nothing else
    assert os.listdir() == ["forged"]


def test_a_mask_takes_few_bytes(tmp_path):
    mask = np.zeros((1000, 2000), bool)
    mask[100:900, 300:1500] = True
    write_archive(tmp_path / "a", {"mask": mask}, {})
    assert (tmp_path / "a").stat().st_size < 20_000
    assert_same(read_archive(tmp_path / "a")[0]["mask"], mask)


@pytest.mark.parametrize("saved", [[[2, 2], [1, 2]], [[10**9, 10**9], [10**18]], [[2], [3, -1]]])
def test_a_mask_of_another_size_is_refused(tmp_path, saved):
    path = tmp_path / "a.skmkd"
    forge(path, values=json.dumps({"value": {"$mask": saved}}))
    refused(path, "mask|negative")


def test_a_newer_format(archive):
    forge(archive, skmkd_format=str(FORMAT + 1), skmkd="7.0")
    newer = rf"skmkd 7.0 wrote it in format {FORMAT + 1}; this is skmkd .* up to {FORMAT}\."
    refused(archive, newer)


def test_format_is_returned(archive):
    assert read_archive(archive).format == FORMAT
    forge(archive, skmkd_format="1")
    assert read_archive(archive).format == 1


FIELD = '"sha256":"' + "0" * 64 + '"'


@pytest.mark.parametrize("text", [FIELD, json.dumps(FIELD), json.dumps(json.dumps(FIELD))])
def test_text_like_the_checksum_s_field_is_only_text(tmp_path, text):
    path = tmp_path / "a"
    values = {"text": text, text: [text]}
    write_archive(path, values, {text: torch.ones(2)})
    assert read_archive(path).values == values
    assert list(read_archive(path).tensors) == [text]
    content = path.read_bytes()
    position = content.index(b"0" * 64)
    path.write_bytes(content[:position] + b"1" + content[position + 1 :])
    refused(path, "damaged")


@pytest.mark.parametrize(
    "header",
    [
        b"", b"[]", b"{}", b"[" * 10**5, b'{"__metadata__":{}}', b'{"__metadata__":[]}', b"\xff",
        b'{"__metadata__":{"sha256":1}}', b'{"__metadata__":{"sha256":"0"}}',
        b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'"},"a":{"sha256":"' + b"0" * 64 + b'"}}',
        b'{"__metadata__":{"sha256": "' + b"0" * 64 + b'"}}', b'{"__metadata__":' + b"1" * 5000,
    ],
    ids=lambda header: repr(header[:40]),
)  # fmt: skip
def test_foreign_headers(tmp_path, header):
    path = tmp_path / "a"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(path, "skmkd did not write it")


def test_header_above_the_limit(archive, monkeypatch):
    monkeypatch.setattr(archive_module, "MAX_HEADER", 100)
    refused(archive, "skmkd did not write it")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_archive(tmp_path / "nothing")
    with pytest.raises(OSError, match="a device, not a file: "):
        read_archive(os.devnull)
    with pytest.raises(FileNotFoundError, match="no folder.*'.*nowhere'"):
        write_archive(tmp_path / "nowhere" / "a", VALUES, TENSORS)


# Atomic writing


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of Unix")
@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
def test_being_killed_leaves_the_old_file(archive, moment, monkeypatch):
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
    monkeypatch.setattr("skmkd._atomic.AGE", -1)
    write_archive(archive, {"new": 1}, {})
    assert read_archive(archive)[0] == {"new": 1}
    assert os.listdir(archive.parent) == [archive.name]


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
