"""Helpers that the loaders share: from folders and tables to images, labels and masks."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.utils import Bunch

from skmkd.datasets._files import existing_folder, list_images, path_array, sub_folders
from skmkd.datasets._masks import LazyMasks
from skmkd.datasets._mixtures import NORMAL_NAMES, check_only_images

GOOD = "good"  # the defect type of normal images
MASKS = "ground_truth"  # the folder of masks
SUBSETS = {"train": ("train",), "test": ("test",), "all": ("train", "test")}
SUBSETS_OF_THREE = {
    "train": ("train",),
    "validation": ("validation",),
    "test": ("test",),
    "all": ("train", "validation", "test"),
}


class Item(NamedTuple):
    """An image of a dataset."""

    image: Path
    defect_type: str
    masks: tuple[Path, ...] = ()  # possible paths of its mask, or of a folder of its masks


class Layout(NamedTuple):
    """The folders of a category, and what its loader says of the dataset.

    Parameters
    ----------
    description : str
        Contents, layout, terms and source.
    subsets : mapping of str to tuple of str
        The parts of each subset; a part is a folder with a subfolder for each defect type.
    images : str
        Folder of the images of a part and defect type, "{part}" and "{kind}".
    masks : str
        Folder of their masks.
    mask_names : sequence of str
        Possible names of a mask in it, or of a folder of masks; "{stem}" stands for the image's.
    truth : str
        Folder without which the dataset has no masks.
    """

    description: str
    subsets: Mapping[str, tuple[str, ...]] = SUBSETS
    images: str = "{part}/{kind}"
    masks: str = MASKS + "/{kind}"
    mask_names: Sequence[str] = ("{stem}_mask.png", "{stem}.png", "{stem}")
    truth: str = MASKS


def load_category(
    root: str | os.PathLike[str], category: str, subset: str, layout: Layout
) -> Bunch:
    """Load a category of a dataset whose folders tell subsets and defect types.

    Raises
    ------
    FileNotFoundError
        If root, a part of the category or a mask does not exist.
    ValueError
        If the category does not exist, a folder holds no image, or `subset` is invalid.
    """
    folder = category_folder(root, category)
    items = [
        item
        for part in parts_of(subset, layout.subsets)
        for kind in kinds_of(_part_folder(folder, part))
        for item in items_of(
            folder / layout.images.format(part=part, kind=kind),
            kind,
            folder / layout.masks.format(part=part, kind=kind),
            layout.mask_names,
        )
    ]
    if not items:
        raise ValueError(f"the {subset} set must hold folders of images; {folder} has none.")
    check_only_images([item.image for item in items], folder)
    return as_bunch(items, layout.description, with_masks=(folder / layout.truth).is_dir())


def _part_folder(folder: Path, part: str) -> Path:
    if not (folder / part).is_dir() and (public := folder / f"{part}_public").is_dir():
        raise FileNotFoundError(
            f"the {part} set must be a folder; there is {public}, as in MVTec AD 2: use "
            "skmkd.datasets.load_mvtec_ad_2."
        )
    return existing_folder(folder / part, f"the {part} set")


def as_bunch(items: Iterable[Item], description: str, *, with_masks: bool = True) -> Bunch:
    """Return `paths`, `y`, `masks`, `defect_types` and `DESCR`, in the order of the items.

    Raises
    ------
    FileNotFoundError
        If an image, or the mask of an anomalous image, does not exist.
    """
    items = list(items)
    if absent := next((item.image for item in items if not item.image.is_file()), None):
        raise FileNotFoundError(f"There is no image at {absent}.")
    paths = path_array(item.image for item in items)
    defect_types = np.array([item.defect_type for item in items], dtype=np.str_)
    return Bunch(
        paths=paths,
        y=np.where(defect_types == GOOD, 1, -1),
        masks=LazyMasks(paths, path_array(map(_masks, items))) if with_masks else None,
        defect_types=defect_types,
        DESCR=description,
    )


def _masks(item: Item) -> Path | tuple[Path, ...] | None:
    if item.defect_type == GOOD:
        return None
    found = next((path for path in item.masks if path.exists()), None)
    if found is None:
        raise FileNotFoundError(
            f"The anomalous image {item.image} must have a mask; there is none at "
            f"{' or '.join(map(str, item.masks))}."
        )
    return tuple(list_images(found)) if found.is_dir() else found


def items_of(folder: Path, kind: str, masks: Path, mask_names: Sequence[str]) -> list[Item]:
    """List the images of one defect type, those in subfolders included.

    Parameters
    ----------
    folder : Path
        Folder of the images.
    kind : str
        Name of their defect type, or of a folder of normal images.
    masks : Path
        Folder that holds their masks, in the same subfolders.
    mask_names : sequence of str
        Possible names of a mask; "{stem}" stands for the image's, without suffix.
    """
    defect_type = GOOD if is_normal(kind) else kind
    stems = ((image, image.relative_to(folder).with_suffix("")) for image in list_images(folder))
    return [
        Item(image, defect_type, tuple(masks / name.format(stem=stem) for name in mask_names))
        for image, stem in stems
    ]


def is_normal(name: str) -> bool:
    """Return whether a folder of this name holds normal images: good, ok or normal, in any case."""
    return name.lower() in NORMAL_NAMES


def kinds_of(folder: Path) -> list[str]:
    """Return the names of the subfolders that hold images of a kind, not masks."""
    return [path.name for path in sub_folders(folder) if path.name != MASKS]


def parts_of(subset: str, subsets: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the parts of a subset, such as "train" and "test"."""
    if not isinstance(subset, str) or subset not in subsets:
        *names, last = map(repr, subsets)
        raise ValueError(f"subset must be {', '.join(names)} or {last}; got {subset!r}.")
    return subsets[subset]


def check_category(category: str, known: Sequence[str], root: Path) -> None:
    """Raise ValueError if the dataset at root has no such category."""
    if category not in known:
        raise ValueError(
            f"category must be one of those in {root}: {', '.join(known)}; got {category!r}."
        )


def category_folder(root: str | os.PathLike[str], category: str) -> Path:
    """Return the folder of a category in root."""
    folder = existing_folder(root, "root")
    check_category(category, [path.name for path in sub_folders(folder)], folder)
    return folder / category


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV file with a header.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If a column is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The dataset must have a table at {path}; there is none.")
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        found = table.fieldnames or ()
        if not set(columns) <= set(found):
            raise ValueError(
                f"{path} must have the columns {', '.join(columns)}; got {', '.join(found)}."
            )
        return list(table)
