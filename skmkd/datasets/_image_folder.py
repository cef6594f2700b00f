"""Loader of your own images, in folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sklearn.utils import Bunch

from skmkd.datasets._descriptions import IMAGE_FOLDER
from skmkd.datasets._files import existing_folder, holds_images, sub_folders
from skmkd.datasets._layouts import GOOD, MASKS, as_bunch, is_normal, items_of
from skmkd.datasets._mixtures import NORMAL_NAMES, check_only_images

LOSSLESS = (".png", ".bmp", ".tif", ".tiff")  # JPEG would add stray pixels
FOLDER_MASKS = tuple(f"{{stem}}{end}{suffix}" for end in ("", "_mask") for suffix in LOSSLESS)


def load_image_folder(
    root: str | os.PathLike[str],
    *,
    good: str | None = None,
    bad: Sequence[str] | None = None,
    masks: str | None = None,
) -> Bunch:
    """Load your own images: a folder of normal images, and one for each type of defect.

    Images in subfolders of these, for example of a day, belong to them. Folders without images are
    ignored, and so is what `list_images` ignores.

    The mask of ``<defect type>/<image>`` is ``<masks>/<defect type>/<image>.png`` or
    ``<image>_mask.png``; .bmp, .tif and .tiff will do, too, but not .jpg, which adds stray pixels.
    Anomalous pixels of a mask are nonzero.

    Parameters
    ----------
    root : str or path-like
        Folder that holds these folders.
    good : str, default=None
        Name of the folder of normal images. None takes ``good``, ``ok`` and ``normal``, in upper or
        lower case.
    bad : sequence of str, default=None
        Names of the folders of anomalies. None takes all others with images, but not `masks`.
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
        If a folder holds no image or holds label images, or `bad` is a str or holds the name of
        normal images.

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
    if masks is not None:
        existing_folder(mask_folder, "masks")
    if isinstance(bad, str):
        raise ValueError(f"bad must be a sequence of folder names; got {bad!r}. Pass [{bad!r}].")
    normal = _normal_folders(folder) if good is None else [existing_folder(folder / good, "good")]
    if bad is None:
        taken = {place for path in (*normal, mask_folder) for place in (path, *path.parents)}
        others = [path for path in sub_folders(folder) if path not in taken]
        bad = [path.name for path in others if holds_images(path)]
    anomalous = {name: existing_folder(folder / name, "bad") for name in bad}
    if clash := [path for path in anomalous.values() if path in normal or is_normal(path.name)]:
        raise ValueError(
            f"bad must not hold {clash[0].name!r}, a name of normal images; got {list(bad)!r}."
        )
    items = [item for path in normal for item in items_of(path, GOOD, mask_folder, ())]
    items += [
        item
        for name, path in anomalous.items()
        for item in items_of(path, path.name, mask_folder / name, FOLDER_MASKS)
    ]
    check_only_images([item.image for item in items], folder)
    return as_bunch(items, IMAGE_FOLDER, with_masks=mask_folder.is_dir())


def _normal_folders(folder: Path) -> list[Path]:
    named = [path for path in sub_folders(folder) if is_normal(path.name)]
    if not named:
        raise FileNotFoundError(
            f"root must have a folder of normal images, named {', '.join(NORMAL_NAMES)} or by the "
            f"parameter good; {folder} has none. If it is a published dataset, use its loader."
        )
    return [path for path in named if holds_images(path)] or named
