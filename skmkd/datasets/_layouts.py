"""Helpers that the loaders share: from folders and tables to images, labels and masks."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.utils import Bunch

from skmkd.datasets._files import existing_folder, list_images, path_array, sub_folders
from skmkd.datasets._masks import LazyMasks

GOOD = "good"  # the defect type of normal images
MASKS = "ground_truth"  # the folder of masks
SUBSETS = {"train": ("train",), "test": ("test",), "all": ("train", "test")}


class Item(NamedTuple):
    """An image of a dataset."""

    image: Path
    defect_type: str
    masks: tuple[Path, ...] = ()  # possible paths of its mask


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
        masks=LazyMasks(paths, path_array(map(_mask, items))) if with_masks else None,
        defect_types=defect_types,
        DESCR=description,
    )


def _mask(item: Item) -> Path | None:
    if item.defect_type == GOOD:
        return None
    found = next((path for path in item.masks if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"The anomalous image {item.image} must have a mask; there is none at "
            f"{' or '.join(map(str, item.masks))}."
        )
    return found


def items_of_subset(
    folder: Path, subset: str, mask_names: Sequence[str], *, normal: str = GOOD
) -> list[Item]:
    """List the images of <part>/<defect type>/, whose masks are in ground_truth/<defect type>/."""
    return [
        item
        for part in parts_of(subset)
        for kind in sub_folders(existing_folder(folder / part, f"the {part} set"))
        for item in items_of(kind, folder / MASKS / kind.name, mask_names, normal=normal)
    ]


def items_of(
    folder: Path, masks: Path, mask_names: Sequence[str], *, normal: str = GOOD
) -> list[Item]:
    """List the images of one defect type.

    Parameters
    ----------
    folder : Path
        Folder of the images, named after their defect type.
    masks : Path
        Folder that holds their masks.
    mask_names : sequence of str
        Possible file names of a mask; "{stem}" stands for the stem of the image's name.
    normal : str
        Name of the folder of normal images.
    """
    defect_type = GOOD if folder.name == normal else folder.name
    return [
        Item(image, defect_type, tuple(masks / name.format(stem=image.stem) for name in mask_names))
        for image in list_images(folder, recursive=False)
    ]


def parts_of(subset: str) -> tuple[str, ...]:
    """Return the parts, "train" and "test", of a subset."""
    if not isinstance(subset, str) or subset not in SUBSETS:
        raise ValueError(f"subset must be 'train', 'test' or 'all'; got {subset!r}.")
    return SUBSETS[subset]


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
