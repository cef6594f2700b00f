"""DICOM files, by pydicom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from skmkd._images.contents import SEVERAL, Contents

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
PREAMBLE = 128  # bytes before the magic word
LONG = 1024  # bytes: longer values, such as the pixels, are read when they are asked for


def is_dicom(path: str, start: bytes) -> bool:
    """Tell by its first bytes, or by its suffix, whether a file is one."""
    return start[PREAMBLE:].startswith(b"DICM") or path.lower().endswith((".dcm", ".dicom"))


@contextmanager
def open_dicom(path: str) -> Iterator[Contents]:
    """Open a file that holds one image."""
    try:
        from pydicom import dcmread
        from pydicom.pixels.utils import get_nr_frames
    except ImportError as error:
        raise ValueError(
            "DICOM needs pydicom, which `pip install skmkd[dicom]` installs"
        ) from error
    data = dcmread(path, defer_size=LONG)
    if "Rows" not in data:
        raise ValueError("it is a DICOM file without an image")
    if (count := get_nr_frames(data, warn=False)) > 1:
        raise ValueError(SEVERAL.format(count=count, reader="pydicom"))
    channels, dtype = kind(data)
    check_decodable(data)
    size = (int(data.Rows), int(data.Columns))
    yield Contents(size if channels == 1 else (*size, channels), dtype, partial(decoded, data))


def check_decodable(data: Any) -> None:
    """Raise ValueError if the pixels are compressed so that pydicom needs one of its plugins."""
    from pydicom.pixels import get_decoder

    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not get_decoder(syntax).is_available:
        raise ValueError(
            f"its compression, {syntax.name}, needs a plugin of pydicom: "
            "`pip install pylibjpeg[all]` installs one"
        )


def kind(data: Any) -> tuple[int, np.dtype]:
    """Return channels and dtype of the array that an image becomes."""
    from pydicom.pixels.utils import pixel_dtype

    meaning = data.PhotometricInterpretation
    if meaning not in (*GREY, *COLOUR, PALETTE):
        raise ValueError(
            f"its pixels are {meaning}; only {', '.join((*GREY, *COLOUR, PALETTE))} are read"
        )
    if meaning == PALETTE:
        entries, _, bits = data.RedPaletteColorLookupTableDescriptor
        if "RedPaletteColorLookupTableData" in data:  # 8 bits may be stored in 16
            bits = 8 * len(data.RedPaletteColorLookupTableData) // (entries or 2**16)
        return 3, np.dtype(np.uint8 if bits <= 8 else np.uint16)
    if is_rescaled(data):
        return 1, np.dtype(np.float32)
    real = "FloatPixelData" in data or "DoubleFloatPixelData" in data
    return int(data.SamplesPerPixel), pixel_dtype(data, as_float=real).newbyteorder("=")


def is_rescaled(data: Any) -> bool:
    """Tell whether the file says how stored values become those of the modality."""
    return bool(data.get("ModalityLUTSequence")) or (
        "RescaleSlope" in data and "RescaleIntercept" in data
    )


def decoded(data: Any) -> np.ndarray:
    """Decode an image: larger is brighter, in the units of the modality, colours in RGB."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    _, dtype = kind(data)
    pixels = pixel_array(data)  # YCbCr is RGB already
    if data.PhotometricInterpretation == PALETTE:
        pixels = apply_color_lut(pixels, data)[..., :3]
    elif data.PhotometricInterpretation == "MONOCHROME1":
        pixels = turned_round(pixels, int(data.BitsStored))
    if is_rescaled(data):
        pixels = apply_modality_lut(pixels, data)
    return pixels.astype(dtype)


def turned_round(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Exchange the lowest and the highest of the values that so many bits can store."""
    if pixels.dtype.kind == "f":
        return -pixels
    return ~pixels if pixels.dtype.kind == "i" else (2**bits - 1) - pixels
