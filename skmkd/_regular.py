"""Regular files: to open a named pipe would wait for a writer, perhaps for ever."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

SPECIAL = {
    stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device", stat.S_IFBLK: "device",
}  # fmt: skip


def state_of(path: str | os.PathLike[str]) -> os.stat_result:
    """Return the state of a regular file, or of a folder, which nobody waits for.

    Raises
    ------
    OSError
        If there is nothing, or something special.
    """
    state = os.stat(path)
    if (kind := SPECIAL.get(stat.S_IFMT(state.st_mode))) is not None:
        raise OSError(errno.EINVAL, f"It is a {kind}, not a file", os.fspath(path))
    return state


def regular(path: str, flags: int) -> int:
    """Open a file that is regular, or new: an opener for the function `open`."""
    with suppress(FileNotFoundError):
        state_of(path)
    return os.open(path, flags, 0o666)


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a regular file."""
    with open(path, "rb", opener=regular) as file:
        return file.read()
