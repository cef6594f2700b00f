"""Files that are written as a whole, and what writers that were killed have left of them."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows, which keeps open files from being removed anyway
    fcntl = None  # type: ignore[assignment]

PREFIX, SUFFIX = ".skmkd-", ".tmp"  # of temporary files
AGE = 60.0  # seconds since its last change, before which a temporary file is left alone


def write_file(path: Path, parts: Sequence[Any], *, durable: bool) -> None:
    """Write a file: at any time, the path is that of the old file or of the whole new one.

    The temporary file has no name until it is whole, where the system has such files: nothing is
    left of it if the process is killed. Elsewhere, `remove_leftovers` removes it.

    Parameters
    ----------
    path : Path
        The file, in a folder that exists.
    parts : sequence of bytes-like
        Its content, one after another.
    durable : bool
        Whether the content is on the disk before it replaces the old one.
    """
    temporary = path.with_name(f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}")
    try:
        try:
            with _without_name(temporary) as file:
                _fill(file, parts, durable)
        except (OSError, AttributeError):  # no such files in this system, or they get no name
            with temporary.open("xb") as file:
                with suppress(OSError):  # of a system without locks
                    lock(file)
                _fill(file, parts, durable)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _without_name(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that gets its path at the end, if nothing went wrong."""
    number = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    with open(number, "wb") as file:
        with suppress(OSError):
            lock(file)
        yield file
        os.link(f"/proc/self/fd/{number}", path, src_dir_fd=number)  # so that links are followed


def _fill(file: IO[bytes], parts: Sequence[Any], durable: bool) -> None:
    for part in parts:
        file.write(part)
    file.flush()
    if durable:
        os.fsync(file.fileno())


def lock(file: IO[Any]) -> None:
    """Lock a file until it is closed or the process ends, where the system has such locks.

    Raises
    ------
    BlockingIOError
        If another has locked it.
    OSError
        If its file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what writers that were killed have left in the folder of a file.

    Those that still write have locked their temporary files; where a system has no locks, nothing
    is removed.
    """
    with suppress(OSError):
        for entry in os.scandir(os.path.dirname(os.path.realpath(path))):
            if entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX):
                with suppress(OSError):
                    _remove_if_abandoned(entry)


def _remove_if_abandoned(entry: os.DirEntry[str]) -> None:
    age = time.time() - entry.stat(follow_symlinks=False).st_mtime
    if entry.is_file(follow_symlinks=False) and age > AGE:
        with open(entry.path, "r+b") as file:
            lock(file)
        os.unlink(entry.path)
