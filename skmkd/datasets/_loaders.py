"""Datasets for anomaly detection, read from folders in the layouts they are published in."""

from __future__ import annotations

import os
from collections.abc import Sequence

from sklearn.utils import Bunch

from skmkd.datasets._descriptions import BTAD, IMAGE_FOLDER, MPDD, MVTEC_AD, VISA
from skmkd.datasets._files import existing_folder, sub_folders
from skmkd.datasets._layouts import (
    GOOD,
    MASKS,
    Item,
    as_bunch,
    category_folder,
    check_category,
    items_of,
    items_of_subset,
    parts_of,
    read_table,
)

MVTEC_MASKS = ("{stem}_mask.png",)
BTAD_MASKS = ("{stem}.png", "{stem}.bmp")
VISA_COLUMNS = ("object", "split", "image", "mask")
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")  # a JPEG mask has stray pixels
FOLDER_MASKS = tuple(f"{{stem}}{end}{suffix}" for end in ("", "_mask") for suffix in LOSSLESS)


def load_mvtec_ad(root: str | os.PathLike[str], category: str, *, subset: str = "train") -> Bunch:
    """Load a category of MVTec AD, or of any dataset laid out like it.

    Normal images are in ``train/good`` and ``test/good``, anomalies in ``test/<defect type>``, and
    their masks are ``ground_truth/<defect type>/<image>_mask.png``.

    Parameters
    ----------
    root : str or path-like
        Folder that holds a folder for each category. Nothing is ever downloaded.
    category : str
        Name of such a folder, "bottle" for one.
    subset : {"train", "test", "all"}, default="train"
        Normal images to train on, normal and anomalous ones to test on, or all, in this order.

    Returns
    -------
    dataset : Bunch
        With these attributes, for n images, sorted by name within each folder:

        paths : ndarray of shape (n,), object
            A `pathlib.Path` for each image.
        y : ndarray of shape (n,), int
            +1 for normal images, -1 for anomalies.
        masks : sequence of n ndarrays of shape (H, W), bool
            True = anomalous. Each is read when it is asked for by an integer, in a loop or by a
            metric; an array of indices gives a part of them, unread.
        defect_types : ndarray of shape (n,), str
            Name of the image's folder: "good" for normal images.
        DESCR : str
            What the dataset is, its layout, its terms, and where to get it.

    Raises
    ------
    FileNotFoundError
        If root, a part of the category or a mask is not there.
    ValueError
        If there is no such category, a folder holds no image, or `subset` is not as described.

    See Also
    --------
    load_image_folder : For a simpler layout.
    load_mpdd, load_visa, load_btad : Other datasets.

    Examples
    --------
    A tree of the same layout, with a normal and an anomalous image:

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from skmkd.datasets import load_mvtec_ad
    >>> files = [
    ...     "bottle/test/good/000.png",
    ...     "bottle/test/broken/000.png",
    ...     "bottle/ground_truth/broken/000_mask.png",
    ... ]
    >>> with TemporaryDirectory() as root:
    ...     for file in files:
    ...         Path(root, file).parent.mkdir(parents=True)
    ...         Image.new("L", (32, 16), "white").save(Path(root, file))
    ...     bottle = load_mvtec_ad(root, "bottle", subset="test")
    ...     shares = [float(mask.mean()) for mask in bottle.masks]
    >>> bottle.defect_types.tolist(), bottle.y.tolist(), shares
    (['broken', 'good'], [-1, 1], [1.0, 0.0])
    """
    items = items_of_subset(category_folder(root, category), subset, MVTEC_MASKS)
    return as_bunch(items, MVTEC_AD)


def load_mpdd(root: str | os.PathLike[str], category: str, *, subset: str = "train") -> Bunch:
    """Load a category of MPDD, metal parts, which is laid out like MVTec AD.

    Parameters
    ----------
    root : str or path-like
        Folder that holds a folder for each category. Nothing is ever downloaded.
    category : str
        Name of such a folder, "tubes" for one.
    subset : {"train", "test", "all"}, default="train"
        Normal images to train on, normal and anomalous ones to test on, or all, in this order.

    Returns
    -------
    dataset : Bunch
        `paths`, `y`, `masks`, `defect_types` and `DESCR`, as `load_mvtec_ad` gives them.

    Raises
    ------
    FileNotFoundError
        If root, a part of the category or a mask is not there.
    ValueError
        If there is no such category, a folder holds no image, or `subset` is not as described.

    See Also
    --------
    load_mvtec_ad : Explains what is returned.
    """
    items = items_of_subset(category_folder(root, category), subset, MVTEC_MASKS)
    return as_bunch(items, MPDD)


def load_btad(root: str | os.PathLike[str], category: str, *, subset: str = "train") -> Bunch:
    """Load a category of BTAD, industrial products.

    Normal images are in ``train/ok`` and ``test/ok``, anomalies in ``test/ko``, and their masks,
    of the same name, in ``ground_truth/ko``.

    Parameters
    ----------
    root : str or path-like
        Folder that holds the folders 01, 02 and 03. Nothing is ever downloaded.
    category : str
        Name of such a folder.
    subset : {"train", "test", "all"}, default="train"
        Normal images to train on, normal and anomalous ones to test on, or all, in this order.

    Returns
    -------
    dataset : Bunch
        `paths`, `y`, `masks`, `defect_types` ("good" or "ko") and `DESCR`, as `load_mvtec_ad`
        gives them.

    Raises
    ------
    FileNotFoundError
        If root, a part of the category or a mask is not there.
    ValueError
        If there is no such category, a folder holds no image, or `subset` is not as described.

    See Also
    --------
    load_mvtec_ad : Explains what is returned.
    """
    items = items_of_subset(category_folder(root, category), subset, BTAD_MASKS, normal="ok")
    return as_bunch(items, BTAD)


def load_visa(root: str | os.PathLike[str], category: str, *, subset: str = "train") -> Bunch:
    """Load a category of VisA, split as for one-class learning by its own table ``1cls.csv``.

    Parameters
    ----------
    root : str or path-like
        Folder that holds ``split_csv`` and a folder for each category. Nothing is ever downloaded.
    category : str
        Name of such a folder, "candle" for one.
    subset : {"train", "test", "all"}, default="train"
        Normal images to train on, normal and anomalous ones to test on, or all, in this order.

    Returns
    -------
    dataset : Bunch
        `paths`, `y`, `masks`, `defect_types` and `DESCR`, as `load_mvtec_ad` gives them, in the
        order of the table. Defect types are those of ``image_anno.csv``: several of them, for an
        image with several defects, are separated by commas.

    Raises
    ------
    FileNotFoundError
        If root, a table, an image or a mask is not there.
    ValueError
        If there is no such category, a table lacks a column, or `subset` is not as described.

    See Also
    --------
    load_mvtec_ad : Explains what is returned.
    """
    parts = parts_of(subset)
    folder = existing_folder(root, "root")
    rows = read_table(folder / "split_csv" / "1cls.csv", VISA_COLUMNS)
    check_category(category, sorted({row["object"] for row in rows}), folder)
    annotations = folder / category / "image_anno.csv"
    kinds = {row["image"]: row["label"] for row in read_table(annotations, ("image", "label"))}
    kinds = {image: GOOD if kind == "normal" else kind for image, kind in kinds.items()}
    chosen = [
        row for part in parts for row in rows if (row["object"], row["split"]) == (category, part)
    ]
    if absent := [row["image"] for row in chosen if row["image"] not in kinds]:
        raise ValueError(f"{annotations} must have a row for {absent[0]}; there is none.")
    items = [
        Item(folder / row["image"], kinds[row["image"]], (folder / row["mask"],)) for row in chosen
    ]
    return as_bunch(items, VISA)


def load_image_folder(
    root: str | os.PathLike[str],
    *,
    good: str = GOOD,
    bad: Sequence[str] | None = None,
    masks: str | None = None,
) -> Bunch:
    """Load images of one's own: a folder of normal ones, and one for each type of defect.

    The mask of ``<defect type>/<image>`` is ``<masks>/<defect type>/<image>.png``, or
    ``<image>_mask.png``; likewise .bmp, .tif and .tiff, but not .jpg, which would have stray
    pixels. In it, anomalous pixels are not 0.

    Parameters
    ----------
    root : str or path-like
        Folder that holds them.
    good : str, default="good"
        Name of the folder of normal images.
    bad : sequence of str, default=None
        Names of the folders of anomalies. None takes all sub folders but `good` and `masks`.
    masks : str, default=None
        Name of the folder of masks. None takes "ground_truth" if there is one; else there are no
        masks.

    Returns
    -------
    dataset : Bunch
        `paths`, `y`, `masks`, `defect_types` and `DESCR`, as `load_mvtec_ad` gives them, normal
        images first. `masks` is None if there is no folder of them.

    Raises
    ------
    FileNotFoundError
        If a folder or a mask is not there.
    ValueError
        If a folder holds no image, or `bad` names normal ones or is no sequence of names.

    See Also
    --------
    load_mvtec_ad : Explains what is returned.
    list_images : Paths alone.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from skmkd.datasets import load_image_folder
    >>> with TemporaryDirectory() as root:
    ...     for file in ("good/1.png", "good/2.png", "scratch/1.png"):
    ...         Path(root, file).parent.mkdir(exist_ok=True)
    ...         Image.new("L", (32, 16)).save(Path(root, file))
    ...     dataset = load_image_folder(root)
    >>> dataset.defect_types.tolist(), dataset.y.tolist()
    (['good', 'good', 'scratch'], [1, 1, -1])
    """
    folder = existing_folder(root, "root")
    mask_folder = folder / (masks or MASKS)
    existing_folder(folder / good, "good")
    if masks is not None:
        existing_folder(mask_folder, "masks")
    if isinstance(bad, str):
        raise ValueError(f"bad must be several names of folders; got {bad!r}: write [{bad!r}].")
    if bad is None:
        others = [path.name for path in sub_folders(folder)]
        bad = [name for name in others if name not in (good, mask_folder.name)]
    normal = (folder / good).name
    if taken := {normal, GOOD} & {(folder / name).name for name in bad}:
        raise ValueError(
            f"bad must not hold {taken.pop()!r}, a name of normal images; got {list(bad)!r}."
        )
    for name in bad:
        existing_folder(folder / name, "bad")
    items = [
        item
        for name in (good, *bad)
        for item in items_of(folder / name, mask_folder / name, FOLDER_MASKS, normal=normal)
    ]
    return as_bunch(items, IMAGE_FOLDER, with_masks=mask_folder.is_dir())
