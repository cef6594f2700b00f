"""Loaders of the surface-defect datasets of Kolektor, whose labels lie beside the images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from skmkd.datasets._descriptions import KOLEKTOR_SDD, KOLEKTOR_SDD2
from skmkd.datasets._files import existing_folder, list_images, path_array
from skmkd.datasets._layouts import GOOD, SUBSETS, parts_of
from skmkd.datasets._masks import LazyMasks


def load_kolektor_sdd(root: str | os.PathLike[str]) -> Bunch:
    """Load KolektorSDD (cracks in electrical commutators), all its images.

    It has no training set: select normal images to learn from, or split with `NormalOnlySplit`.
    The label of ``<item>/<image>.jpg`` is ``<item>/<image>_label.bmp``; an image is anomalous if
    its label has a nonzero pixel. All labels are read.

    Parameters
    ----------
    root : str or path-like
        Folder with the subfolders kos01, kos02 and so on. Nothing is downloaded.

    Returns
    -------
    dataset : Bunch
        `paths`, `y`, `masks`, `defect_types` ("good" or "defect") and `DESCR`, as in
        `load_mvtec_ad`, in natural order.

    Raises
    ------
    FileNotFoundError
        If root or a label does not exist.
    ValueError
        If root holds no images.

    See Also
    --------
    load_mvtec_ad : Describes the attributes of the dataset.
    skmkd.model_selection.NormalOnlySplit : Splits it for cross-validation.
    """
    return _labelled([existing_folder(root, "root")], "_label.bmp", KOLEKTOR_SDD)


def load_kolektor_sdd2(root: str | os.PathLike[str], *, subset: str = "train") -> Bunch:
    """Load KolektorSDD2 (several kinds of defects on surfaces).

    The label of ``<image>.png`` is ``<image>_GT.png``; an image is anomalous if its label has a
    nonzero pixel. All labels are read.

    Parameters
    ----------
    root : str or path-like
        Folder with the subfolders train and test. Nothing is downloaded.
    subset : {"train", "test", "all"}, default="train"
        The normal images of the training set, the test images (normal and anomalous), or all
        images, with the anomalous ones of the training set.

    Returns
    -------
    dataset : Bunch
        `paths`, `y`, `masks`, `defect_types` ("good" or "defect") and `DESCR`, as in
        `load_mvtec_ad`, in natural order.

    Raises
    ------
    FileNotFoundError
        If root, a part of it or a label does not exist.
    ValueError
        If a part holds no images, or `subset` is invalid.

    See Also
    --------
    load_mvtec_ad : Describes the attributes of the dataset.
    """
    folder = existing_folder(root, "root")
    parts = parts_of(subset, SUBSETS)
    folders = [existing_folder(folder / part, f"the {part} set") for part in parts]
    return _labelled(folders, "_GT.png", KOLEKTOR_SDD2, normal_only=subset == "train")


def _labelled(
    folders: Sequence[Path], end: str, description: str, *, normal_only: bool = False
) -> Bunch:
    """Load images whose labels have the same name but for its end."""
    found = [path for folder in folders for path in list_images(folder)]
    images = [path for path in found if not path.name.endswith(end)]
    labels = [path.with_name(path.stem + end) for path in images]
    if absent := next((path for path in labels if not path.is_file()), None):
        raise FileNotFoundError(f"Each image must have a label; there is none at {absent}.")
    paths, masks = path_array(images), LazyMasks(path_array(images), path_array(labels))
    normal = np.array([not mask.any() for mask in masks], dtype=bool)
    chosen = normal if normal_only else np.full(len(normal), True)
    return Bunch(
        paths=paths[chosen],
        y=np.where(normal, 1, -1)[chosen],
        masks=masks[chosen],
        defect_types=np.where(normal, GOOD, "defect")[chosen],
        DESCR=description,
    )
