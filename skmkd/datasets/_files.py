"""Lists of image files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".dcm",
)  # fmt: skip
TOOL_FOLDERS = (  # of network drives, archives and operating systems, in lower case
    "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "__macosx", "$recycle.bin",
    "system volume information", "lost+found", "__pycache__",
)  # fmt: skip


def list_images(
    folder: str | os.PathLike[str],
    *,
    recursive: bool = True,
    extensions: Sequence[str] = IMAGE_SUFFIXES,
) -> np.ndarray:
    """List the image files of a folder, in the same order on every machine.

    Parameters
    ----------
    folder : str or path-like
        The folder. Hidden files and folders, whose names begin with a dot, are ignored, and so are
        folders of tools, such as ``@eaDir`` and ``__MACOSX``.
    recursive : bool, default=True
        Whether to include subfolders. Links to folders are followed, except to a folder that
        the link itself is in.
    extensions : sequence of str, default=(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", \
".webp", ".pgm", ".ppm", ".dcm")
        Suffixes of image files, dot included, in upper or lower case.

    Returns
    -------
    paths : ndarray of shape (n,), object
        A `pathlib.Path` for each file in natural order: 2.png comes before 10.png. It is an
        array so that scikit-learn's splitters can index it.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, PermissionError
        If there is no such folder, or one in it cannot be read.
    ValueError
        If the folder holds no such file, or `extensions` is not as described.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from skmkd.datasets import list_images
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("10.png", "2.PNG", "notes.txt"):
    ...         Path(folder, name).touch()
    ...     paths = list_images(folder)
    >>> [path.name for path in paths]
    ['2.PNG', '10.png']
    """
    if isinstance(extensions, str) or not all(
        isinstance(suffix, str) and suffix.startswith(".") for suffix in extensions
    ):
        raise ValueError(
            f"extensions must be several suffixes that begin with a dot; got {extensions!r}."
        )
    suffixes = [suffix.lower() for suffix in extensions]
    folder = existing_folder(folder, "folder")
    paths = (path for path in _walk(folder, recursive) if path.suffix.lower() in suffixes)
    found = sorted((path for path in paths if path.is_file()), key=natural_order)
    if not found:
        raise ValueError(
            f"folder must hold images ({', '.join(suffixes)}); there is none in {folder}."
        )
    return path_array(found)


def _walk(folder: Path, recursive: bool, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield what is not a folder, through links as ``find -L`` does; `above` are real folders."""
    here = os.path.realpath(folder)
    if here in above:  # a link to a folder that it is in
        return
    for path in folder.iterdir():
        if is_ignored(path.name):
            continue
        if not path.is_dir():
            yield path
        elif recursive:
            yield from _walk(path, recursive, above | {here})


def is_ignored(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or a tool's folder."""
    return name.startswith(".") or name.lower() in TOOL_FOLDERS


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """Return a key that sorts paths by name, and numbers in names by value."""
    text = path.as_posix()
    words = re.split(r"(\d+)", text)  # numbers are at odd indices
    return [int(word) if i % 2 else word for i, word in enumerate(words)], text


def existing_folder(path: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a folder; `name` is the parameter that errors mention.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If it does not exist or is a file.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"{name} must be a folder; {folder} is a file.")
    raise FileNotFoundError(f"{name} must be a folder; there is none at {folder}.")


def sub_folders(folder: Path) -> list[Path]:
    """Return the subfolders that are neither hidden nor a tool's, in natural order."""
    found = [path for path in folder.iterdir() if path.is_dir() and not is_ignored(path.name)]
    return sorted(found, key=natural_order)


def holds_images(folder: Path) -> bool:
    """Return whether there is an image in a folder or below it."""
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in _walk(folder, recursive=True))


def path_array(paths: Iterable[Path | tuple[Path, ...] | None]) -> np.ndarray:
    """Return paths, or tuples of paths, as an array (n,) of objects."""
    return np.fromiter(paths, dtype=object)
