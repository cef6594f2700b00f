"""What ``skmkd localize`` writes for an image: its map, a picture of it, and its regions."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image

from skmkd._cli.report import overlay
from skmkd._files.archive import write_whole
from skmkd._images.pixel_range import PixelRange, drawable
from skmkd._images.preparation import Preprocessing
from skmkd._networks.sources import IDENTITY
from skmkd._regions import Region

LONGEST = 1024  # side of a picture, in pixels; smaller images keep their size
QUALITY = 95  # of JPEG, at which small pictures stay sharp
COLUMNS = (
    "path", "region", "top", "left", "bottom", "right", "area", "row", "column", "peak", "mean",
)  # fmt: skip


def region_rows(path: Path, found: Sequence[Region]) -> list[tuple[str | float, ...]]:
    """Return the table's rows of an image, its regions numbered from 1."""
    return [
        (str(path), number, *region.box, region.area, *region.centroid, region.peak, region.mean)
        for number, region in enumerate(found, start=1)
    ]


def picture_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of the picture of an image."""
    scale = min(1, LONGEST / max(size))
    height, width = (max(1, round(scale * side)) for side in size)
    return height, width


def picture(
    image: np.ndarray, single: np.ndarray, threshold: float, pixel_range: PixelRange
) -> Image:
    """Draw the map of an image over it; both are shrunk before they are coloured.

    A pixel of the picture has the highest value of the map there, so that no region vanishes.
    Pixels of the image that are not finite, outside a region of interest, get a value within the
    range.
    """
    size = picture_size(single.shape)
    whole = drawable(image[..., None] if image.ndim == 2 else image, pixel_range)
    shrink = Preprocessing(size, pixel_range, *IDENTITY)
    pixels = shrink([whole])[0].permute(1, 2, 0).numpy()
    values = F.adaptive_max_pool2d(torch.from_numpy(single)[None], size)[0].numpy()
    return overlay(pixels, values, threshold)


def compact_map(single: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map in another size, in float16 if that has the range for it, else float32."""
    tensor = torch.from_numpy(single)[None, None]
    resized = F.interpolate(tensor, size, mode="bilinear", align_corners=False)[0, 0].numpy()
    limits, peak = np.finfo(np.float16), np.abs(resized).max()
    beyond = 0 < peak < limits.tiny or peak > limits.max
    return resized if beyond else resized.astype(np.float16)


def write_files(target: Path, drawn: Image, single: np.ndarray | None) -> None:
    """Write the picture of an image as .jpg and its map, if it is wanted, as .npy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file = BytesIO()
    drawn.save(file, "JPEG", quality=QUALITY, subsampling=0)
    write_whole(target.with_name(f"{target.name}.jpg"), file.getvalue())
    if single is not None:
        file = BytesIO()
        np.save(file, single)
        write_whole(target.with_name(f"{target.name}.npy"), file.getvalue())
