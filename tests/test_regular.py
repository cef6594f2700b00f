from __future__ import annotations

import os
import socket
import sys
from functools import partial

import pytest

from skmkd._regular import read_regular, regular, state_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


@pytest.fixture
def special(tmp_path):
    """Map paths of what is no regular file to what it is."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket"))  # a long path is no address
    yield {
        tmp_path / "pipe": "named pipe", tmp_path / "link": "named pipe",
        tmp_path / "socket": "socket", "/dev/zero": "device",
    }  # fmt: skip
    server.close()


def test_what_is_special_is_refused_without_waiting(special):
    for path, kind in special.items():
        for ask in (state_of, read_regular, partial(regular, flags=os.O_WRONLY)):
            with pytest.raises(OSError, match=f"It is a {kind}, not a file: '{path}'$"):
                ask(path)


def test_files_are_opened_as_ever(tmp_path):
    path = tmp_path / "file"
    with open(path, "a", encoding="utf-8", opener=regular) as file:
        file.write("text")
    assert path.stat().st_mode & 0o111 == 0
    path.with_name("link").symlink_to("file")
    assert read_regular(path) == read_regular(path.with_name("link")) == b"text"
    assert os.path.samestat(state_of(path), path.stat())
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
