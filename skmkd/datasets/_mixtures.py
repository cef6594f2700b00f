"""Folders that hold more than good images: labels, test images, defects."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

NORMAL_NAMES = ("good", "ok", "normal")  # of folders of normal images, in lower case
LABEL = re.compile(r"(.+)_(label|mask|gt)", re.IGNORECASE)  # stem of a label beside its image
LABEL_FOLDERS = ("ground_truth", "gt", "masks")  # "label" may be a part of a product
LOADERS = {"_label.bmp": "load_kolektor_sdd", "_GT.png": "load_kolektor_sdd2"}
TRAIN, TEST = ("train", "training"), ("test", "testing", "test_public", "test_private")
Parts = dict[Path, dict[str, str]]  # names of the subfolders of a folder, by their lower case


def label_images(paths: Iterable[Path], folder: Path | None = None) -> list[Path]:
    """Return the paths that are labels of others, by their names.

    A file is a label if its name is that of another and _label, _mask or _GT, both without suffix,
    or if it is in a folder of labels below `folder`.
    """
    paths = list(paths)
    stems = {path.stem for path in paths}
    return [
        path
        for path in paths
        if ((match := LABEL.fullmatch(path.stem)) and match[1] in stems)
        or (folder is not None and set(LABEL_FOLDERS) & set(_folders(path, folder)))
    ]


def check_only_images(paths: Iterable[Path], folder: Path) -> None:
    """Raise ValueError if there are labels or positions of pixels among the images of a dataset."""
    paths = list(paths)
    if labels := label_images(paths):
        raise ValueError(
            f"{folder} must hold label images in a folder of their own; {labels[0]} lies among the "
            "images."
        )
    for place, names in _subfolders(folder, paths).items():
        if "rgb" in names and "xyz" in names:
            raise ValueError(
                f"{place} holds colours and positions, as in MVTec 3D-AD: use "
                "skmkd.datasets.load_mvtec_3d_ad."
            )


def check_good_images(folder: Path, paths: Sequence[Path]) -> None:
    """Raise ValueError if a folder to learn from holds other images than good ones, by its names.

    Parameters
    ----------
    folder : Path
        The folder.
    paths : sequence of Path
        The images in it and below it.
    """
    parts = _subfolders(folder, paths)
    for place, names in parts.items():
        train = next((name for key, name in names.items() if key in TRAIN), None)
        test = next((name for key, name in names.items() if key in TEST), None)
        if train and test:
            good = place / train
            raise _refusal(folder, f"the test images of {place / test}", _good_in(good, parts))
    for place, names in parts.items():
        if "rgb" in names and "xyz" in names:
            raise _refusal(folder, f"the positions of {place / names['xyz']}", place / names["rgb"])
    if labels := label_images(paths, folder):
        loaders = [name for end, name in LOADERS.items() if labels[0].name.endswith(end)]
        selected = "".join(f", which skmkd.datasets.{name} selects" for name in loaders)
        raise ValueError(
            f"{folder} must hold good images only; {labels[0]} is a label image. Give the folders "
            f"or files of the good images{selected}."
        )
    for place, names in parts.items():
        others = [name for key, name in names.items() if key not in NORMAL_NAMES]
        if others and len(others) < len(names):
            raise _refusal(folder, f"the images of {place / others[0]}", _good_in(place, parts))


def _refusal(folder: Path, found: str, good: Path) -> ValueError:
    return ValueError(f"{folder} must hold good images only; it holds {found}, too. Give {good}.")


def _good_in(folder: Path, parts: Parts) -> Path:
    """Return the folder of good images in a folder, or itself."""
    names = parts.get(folder, {})
    return next((folder / names[name] for name in NORMAL_NAMES if name in names), folder)


def _subfolders(folder: Path, paths: Iterable[Path]) -> Parts:
    """Return the subfolders on the way to the images."""
    found: Parts = {}
    for path in paths:
        place = folder
        for name in path.relative_to(folder).parts[:-1]:
            found.setdefault(place, {})[name.lower()] = name
            place /= name
    return found


def _folders(path: Path, folder: Path) -> list[str]:
    """Return the names of the folders between a folder and a file, in lower case."""
    return os.path.relpath(path.parent, folder).lower().split(os.sep)
