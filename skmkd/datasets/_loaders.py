"""Loaders of public datasets for anomaly detection, in their published layouts."""

from __future__ import annotations

import os

from sklearn.utils import Bunch

from skmkd.datasets import _descriptions
from skmkd.datasets._files import existing_folder
from skmkd.datasets._layouts import (
    GOOD,
    SUBSETS,
    SUBSETS_OF_THREE,
    Item,
    Layout,
    as_bunch,
    check_category,
    load_category,
    parts_of,
    read_table,
)

VISA_COLUMNS = ("object", "split", "image", "mask")
MVTEC_AD = Layout(_descriptions.MVTEC_AD)
MPDD = Layout(_descriptions.MPDD)
BTAD = Layout(_descriptions.BTAD, mask_names=("{stem}.png", "{stem}.bmp"))
VISA = Layout(_descriptions.VISA)
MVTEC_LOCO = Layout(_descriptions.MVTEC_LOCO, SUBSETS_OF_THREE)
MVTEC_AD_2 = Layout(
    _descriptions.MVTEC_AD_2,
    {
        "train": ("train",),
        "validation": ("validation",),
        "test_public": ("test_public",),
        "all": ("train", "validation", "test_public"),
    },
    masks="{part}/ground_truth/{kind}",
    truth="test_public/ground_truth",
)
MVTEC_3D_AD = Layout(
    _descriptions.MVTEC_3D_AD,
    SUBSETS_OF_THREE,
    images="{part}/{kind}/rgb",
    masks="{part}/{kind}/gt",
    truth="",
)


def load_mvtec_ad(root: str | os.PathLike[str], category: str, *, subset: str = "train") -> Bunch:
    """Load a category of MVTec AD, or of a dataset with the same layout.

    Normal images are in ``train/good`` and ``test/good``, anomalies in ``test/<defect type>``, and
    their masks are ``ground_truth/<defect type>/<image>_mask.png`` or ``<image>.png``. The folders
    of normal images may be called ``ok`` or ``normal``, too, in upper or lower case.

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
            metric. A slice or an array of indices selects masks without reading them. None if there
            is no folder ``ground_truth``: then images can be evaluated, but not pixels.
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
    load_mvtec_loco, load_mvtec_ad_2, load_mvtec_3d_ad : Load its successors.
    load_mpdd, load_visa, load_btad, load_kolektor_sdd, load_kolektor_sdd2 : Load other datasets.

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
    return load_category(root, category, subset, MVTEC_AD)


def load_mvtec_loco(root: str | os.PathLike[str], category: str, *, subset: str = "train") -> Bunch:
    """Load a category of MVTec LOCO AD (logical and structural anomalies).

    Its layout is that of MVTec AD, with normal images in ``validation/good``, too, and a folder of
    masks for each anomalous image, ``ground_truth/<defect type>/<image>``. A pixel is anomalous if
    it is so in any of them; their values, which the dataset's own metric needs, are not used.

    Parameters
    ----------
    root : str or path-like
        Folder with a subfolder for each category. Nothing is downloaded.
    category : str
        Name of such a subfolder, for example "breakfast_box".
    subset : {"train", "validation", "test", "all"}, default="train"
        The training images (all normal), the validation images (all normal), the test images
        (normal and anomalous), or all of them, in this order.

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
    return load_category(root, category, subset, MVTEC_LOCO)


def load_mvtec_ad_2(root: str | os.PathLike[str], category: str, *, subset: str = "train") -> Bunch:
    """Load a category of MVTec AD 2 (harder scenes and varying light).

    Normal images are in ``train/good``, ``validation/good`` and ``test_public/good``, anomalies in
    ``test_public/bad``, and their masks in ``test_public/ground_truth/bad``. The test images whose
    ground truth is not public are not loaded; list them with `list_images`.

    Parameters
    ----------
    root : str or path-like
        Folder with a subfolder for each category. Nothing is downloaded.
    category : str
        Name of such a subfolder, for example "can".
    subset : {"train", "validation", "test_public", "all"}, default="train"
        The training images (all normal), the validation images (all normal), the public test
        images (normal and anomalous), or all of them, in this order.

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
    return load_category(root, category, subset, MVTEC_AD_2)


def load_mvtec_3d_ad(
    root: str | os.PathLike[str], category: str, *, subset: str = "train"
) -> Bunch:
    """Load the colour images of a category of MVTec 3D-AD.

    They are in ``<part>/<good or defect type>/rgb``, where a part is ``train``, ``validation`` or
    ``test``, and their masks are in ``test/<defect type>/gt``. Positions, in ``xyz``, are not
    loaded.

    Parameters
    ----------
    root : str or path-like
        Folder with a subfolder for each category. Nothing is downloaded.
    category : str
        Name of such a subfolder, for example "bagel".
    subset : {"train", "validation", "test", "all"}, default="train"
        The training images (all normal), the validation images (all normal), the test images
        (normal and anomalous), or all of them, in this order.

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
    return load_category(root, category, subset, MVTEC_3D_AD)


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
    return load_category(root, category, subset, MPDD)


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
    return load_category(root, category, subset, BTAD)


def load_visa(root: str | os.PathLike[str], category: str, *, subset: str = "train") -> Bunch:
    """Load a category of VisA, with the one-class split of its ``1cls.csv``.

    The form that its authors' script makes of it, with ``train``, ``test`` and ``ground_truth`` in
    the folder of the category, is loaded as well.

    Parameters
    ----------
    root : str or path-like
        Folder with ``split_csv`` and a subfolder for each category, or with converted categories.
        Nothing is downloaded.
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
        has several; of a converted category, names of folders.

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
    parts = parts_of(subset, SUBSETS)
    folder = existing_folder(root, "root")
    if not (folder / "split_csv").is_dir():
        return load_category(root, category, subset, VISA)
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
    return as_bunch(items, VISA.description)
