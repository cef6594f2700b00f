"""Images with other channels: grey, colour and alpha, converted where nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from skmkd._images.pixel_range import OPAQUE, kind_of

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def common_channels(found: Iterable[int]) -> int:
    """Return the channels for all images: theirs if they agree, four if most have alpha, else 3."""
    counts = Counter(found)
    if len(counts) == 1 or counts.most_common(1)[0][0] == 4:
        return counts.most_common(1)[0][0]
    return 3


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Convert an image (H, W, C) to a number of channels.

    Raises
    ------
    ValueError
        If colour or transparency would be lost, or the whole image is transparent.
    """
    opaque = OPAQUE[kind_of(image.dtype)]
    if image.shape[2] == 4:
        alpha = image[..., 3:]
        if not alpha.any():
            raise ValueError("must not be transparent everywhere; its alpha channel is 0.")
        if channels == 4:
            return image
        if (alpha != opaque).any():
            raise ValueError(
                "must not have transparent pixels, since other images have no alpha channel: "
                "composite it over a background first."
            )
        image = image[..., :3]
    if channels == 1 and image.shape[2] == 3:
        if (image != image[..., :1]).any():
            raise ValueError("must be grey, as at fit; it has colours.")
        return image[..., :1]
    if channels >= 3 and image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    if channels == 4:
        image = np.concatenate([image, np.full_like(image[..., :1], opaque)], axis=2)
    return image
