"""Loaders of public datasets for anomaly detection, in their published layouts."""

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
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")  # JPEG would add stray pixels
FOLDER_MASKS = tuple(f"{{stem}}{end}{suffix}" for end in ("", "_mask") for suffix in LOSSLESS)


def load_mvtec_ad(root: str | os.PathLike[str], category: str, *, subset: str = "train") -> Bunch:
    """Load a category of MVTec AD, or of a dataset with the same layout.

    Normal images are in ``train/good`` and ``test/good``, anomalies in ``test/<defect type>``, and
    their masks are ``ground_truth/<defect type>/<image>_mask.png``.

    Parameters
    ----------
    root : str or path-like
        Folder with a subfolder for each category. Nothing is downloaded.
    category : str
        Name of such a subfolder, for example "bottle".
    subset : {"train", "test", "all"}, default="train"
        The training images (all normal), the test images (normal and anomalous), or both, in this
        order.

    Returns
    -------
    dataset : Bunch
        With these attributes, for n images in natural order within each folder:

        paths : ndarray of shape (n,), object
            A `pathlib.Path` for each image.
        y : ndarray of shape (n,), int
            +1 for normal images, -1 for anomalies.
        masks : sequence of n ndarrays of shape (H, W), bool
            True = anomalous. Masks are read on access: by an integer index, in a loop or by a
            metric. A slice or an array of indices selects masks without reading them.
        defect_types : ndarray of shape (n,), str
            Name of the image's folder: "good" for normal images.
        DESCR : str
            Description of the dataset: contents, layout, terms and source.

    Raises
    ------
    FileNotFoundError
        If root, a part of the category or a mask does not exist.
    ValueError
        If the category does not exist, a folder holds no image, or `subset` is invalid.

    See Also
    --------
    load_image_folder : Loads your own images.
    load_mpdd, load_visa, load_btad : Load other datasets.

    Examples
    --------
    A folder with the same layout, with a normal and an anomalous image:

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
    """Load a category of MPDD (metal parts), which has the layout of MVTec AD.

    Parameters
    ----------
    root : str or path-like
        Folder with a subfolder for each category. Nothing is downloaded.
    category : str
        Name of such a subfolder, for example "tubes".
    subset : {"train", "test", "all"}, default="train"
        The training images (all normal), the test images (normal and anomalous), or both, in this
        order.

    Returns
    -------
    dataset : Bunch
        `paths`, `y`, `masks`, `defect_types` and `DESCR`, as in `load_mvtec_ad`.

    Raises
    ------
    FileNotFoundError
        If root, a part of the category or a mask does not exist.
    ValueError
        If the category does not exist, a folder holds no image, or `subset` is invalid.

    See Also
    --------
    load_mvtec_ad : Describes the attributes of the dataset.
    """
    items = items_of_subset(category_folder(root, category), subset, MVTEC_MASKS)
    return as_bunch(items, MPDD)


def load_btad(root: str | os.PathLike[str], category: str, *, subset: str = "train") -> Bunch:
    """Load a category of BTAD (industrial products).

    Normal images are in ``train/ok`` and ``test/ok``, anomalies in ``test/ko``, and their masks, of
    the same name, in ``ground_truth/ko``.

    Parameters
    ----------
    root : str or path-like
        Folder with the subfolders 01, 02 and 03. Nothing is downloaded.
    category : str
        Name of such a subfolder.
    subset : {"train", "test", "all"}, default="train"
        The training images (all normal), the test images (normal and anomalous), or both, in this
        order.

    Returns
    -------
    dataset : Bunch
        `paths`, `y`, `masks`, `defect_types` ("good" or "ko") and `DESCR`, as in `load_mvtec_ad`.

    Raises
    ------
    FileNotFoundError
        If root, a part of the category or a mask does not exist.
    ValueError
        If the category does not exist, a folder holds no image, or `subset` is invalid.

    See Also
    --------
    load_mvtec_ad : Describes the attributes of the dataset.
    """
    items = items_of_subset(category_folder(root, category), subset, BTAD_MASKS, normal="ok")
    return as_bunch(items, BTAD)


def load_visa(root: str | os.PathLike[str], category: str, *, subset: str = "train") -> Bunch:
    """Load a category of VisA, with the one-class split of its ``1cls.csv``.

    Parameters
    ----------
    root : str or path-like
        Folder with ``split_csv`` and a subfolder for each category. Nothing is downloaded.
    category : str
        Name of such a subfolder, for example "candle".
    subset : {"train", "test", "all"}, default="train"
        The training images (all normal), the test images (normal and anomalous), or both, in this
        order.

    Returns
    -------
    dataset : Bunch
        `paths`, `y`, `masks`, `defect_types` and `DESCR`, as in `load_mvtec_ad`, in the order of
        the table. Defect types are those of ``image_anno.csv``, separated by commas if an image
        has several.

    Raises
    ------
    FileNotFoundError
        If root, a table, an image or a mask does not exist.
    ValueError
        If the category does not exist, a table lacks a column or row, or `subset` is invalid.

    See Also
    --------
    load_mvtec_ad : Describes the attributes of the dataset.
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
    """Load your own images: a folder of normal images, and one for each type of defect.

    The mask of ``<defect type>/<image>`` is ``<masks>/<defect type>/<image>.png`` or
    ``<image>_mask.png``; .bmp, .tif and .tiff will do, too, but not .jpg, which adds stray pixels.
    Anomalous pixels of a mask are nonzero.

    Parameters
    ----------
    root : str or path-like
        Folder that holds these folders.
    good : str, default="good"
        Name of the folder of normal images.
    bad : sequence of str, default=None
        Names of the folders of anomalies. None takes all subfolders but `good` and `masks`.
    masks : str, default=None
        Name of the folder of masks. None takes "ground_truth" if it exists, else no masks.

    Returns
    -------
    dataset : Bunch
        `paths`, `y`, `masks`, `defect_types` and `DESCR`, as in `load_mvtec_ad`, normal images
        first. `masks` is None if there is no folder of masks.

    Raises
    ------
    FileNotFoundError
        If a folder or a mask does not exist.
    ValueError
        If a folder holds no image, or `bad` is a str or holds the name of normal images.

    See Also
    --------
    load_mvtec_ad : Describes the attributes of the dataset.
    list_images : Returns paths only.

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
        raise ValueError(f"bad must be a sequence of folder names; got {bad!r}. Pass [{bad!r}].")
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
