"""Images of Pillow: decoded when they are needed, and left as they were opened."""

from __future__ import annotations

from io import BytesIO
from threading import Lock

import numpy as np
from PIL import ExifTags
from PIL.Image import Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile

from skmkd._images.contents import LazyImage, upright_shape
from skmkd._images.image_files import UnreadableImageError
from skmkd._images.pictures import plain_mode, plain_pixels, shape_as

FAILURES = (OSError, SyntaxError, ValueError, AssertionError)  # of Pillow's, or of a closed file
READING = Lock()  # several threads may read the same image, whose file has one position


class OpenedImage(LazyImage):
    """An image of Pillow that converts to an array as its file would.

    One that was opened but not decoded stays so: else all images of a list would be in memory
    from their first use on.

    Parameters
    ----------
    image : Image
        The image.
    index : int
        Its place in X, for errors.
    """

    def __init__(self, image: Image, index: int) -> None:
        self._image = image
        self._index = index

    def header(self) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype, as far as they are known before the image is decoded."""
        mode, dtype = plain_mode(self._image)
        return upright_shape(shape_as(mode, self._image), _orientation(self._image)), dtype

    def decode(self) -> np.ndarray:
        """Return the pixels."""
        try:
            image = again(self._image)
            return plain_pixels(image, in_place=image is not self._image)
        except FAILURES as error:
            name = getattr(self._image, "filename", "") or "an image of Pillow"
            raise UnreadableImageError(
                f"X[{self._index}] ({name}) cannot be read: {error or 'it is closed'}"
            ) from error


def again(image: Image) -> Image:
    """Open an image that is not decoded yet a second time; return any other as it is.

    So is one of which a draft or another frame was chosen.
    """
    file = getattr(image, "fp", None)  # None once it is decoded
    if not isinstance(image, ImageFile) or file is None:
        return image
    with READING:
        place = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(place)
    opened = type(image)(BytesIO(content))
    same = all(getattr(opened, n) == getattr(image, n) for n in ("mode", "size", "info", "tile"))
    return opened if same else image


def _orientation(image: Image) -> int:
    """Return the orientation that EXIF states, as far as it is known without decoding."""
    if isinstance(image, PngImageFile) and "exif" not in image.info:
        return 1  # Pillow would decode the image to look for it
    return image.getexif().get(ExifTags.Base.Orientation, 1)
