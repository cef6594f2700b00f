"""TIFF: what tifffile writes is read as tifffile reads it, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_array_equal

from skmkd._images.image_files import ImageFile, UnreadableImageError

CASES = 400  # any number: each has its own seed
DTYPES = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", "c8"]
SERVED = "buif"
CHANNELS = [1, 1, 1, 2, 3, 3, 4, 5]
has_imagecodecs = tifffile.COMPRESSION.LZW in tifffile.TIFF.DECOMPRESSORS


def draw_pixels(rng, shape, dtype):
    """Draw numbers over the whole range of a dtype, or over a narrow one, with NaN and infinity."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.3
    if dtype.kind in "ui":
        info = np.iinfo(dtype)
        high = rng.choice([info.max, min(info.max, 1023)])
        return rng.integers(info.min, high, shape, dtype=dtype, endpoint=True)
    pixels = rng.normal(20, 1000, shape).astype(dtype)
    if rng.random() < 0.5:
        pixels.flat[0], pixels.flat[-1] = np.nan, -np.inf
    return pixels


def write_case(path, seed):
    """Write a file; return its pixels, channels last and as stored, or None if it is refused."""
    rng = np.random.default_rng(seed)
    dtype, channels = rng.choice(DTYPES), int(rng.choice(CHANNELS))
    pages, planar = int(rng.choice([1, 1, 1, 1, 3])), bool(rng.random() < 0.3)
    height, width = (int(n) for n in rng.integers(2, 70, 2))
    shape = (height, width) if channels == 1 else (height, width, channels)
    pixels = draw_pixels(rng, (pages, *shape), dtype)
    options = {
        "bigtiff": bool(rng.random() < 0.3), "byteorder": str(rng.choice(["<", ">"])),
        "metadata": None if rng.random() < 0.5 else {},
    }  # fmt: skip
    layout = rng.integers(3)
    if layout == 1:
        options["rowsperstrip"] = int(rng.integers(1, height + 1))
    if layout == 2 and dtype != "bool":
        options["tile"] = tuple(int(n) for n in rng.choice([16, 32], 2))
    if rng.random() < 0.4:
        options["compression"] = "zlib"
        options["predictor"] = bool(np.dtype(dtype).kind in "ui" and rng.random() < 0.5)
    grey = channels == 1 or np.dtype(dtype).kind != "u" or rng.random() < 0.2
    options["photometric"] = rng.choice(["minisblack", "miniswhite"]) if grey else "rgb"
    colours = 1 if grey else 3
    extras = max(channels - colours, 0)
    meaning = str(rng.choice(["unassalpha", "assocalpha", "unspecified"]))
    if channels > 1:
        options["planarconfig"] = "separate" if planar else "contig"
    if extras:
        options["extrasamples"] = [meaning, *["unspecified"] * (extras - 1)]
    if not grey and channels < 3:
        options |= {"photometric": "minisblack", "extrasamples": [meaning]}
    grey = grey or channels < 3
    stored = np.moveaxis(pixels, -1, 1) if channels > 1 and planar else pixels
    tifffile.imwrite(path, stored if pages > 1 else stored[0], **options)
    served = (
        pages == 1
        and np.dtype(dtype).kind in SERVED
        and (dtype != "bool" or channels == 1)
        and (
            channels in (1, 3)
            or (channels == 4 and not grey and meaning != "unspecified")
            or (channels == 2 and meaning != "unspecified")
        )
    )
    return (pixels[0], stored[0]) if served else (None, None)


@pytest.mark.parametrize("block", range(0, CASES, 50))
def test_what_tifffile_writes_is_read_or_refused(tmp_path, block):
    for seed in range(block, min(block + 50, CASES)):
        path = tmp_path / f"{seed}.tif"
        pixels, stored = write_case(path, seed)
        file = ImageFile(path)
        if pixels is None:
            for ask in (lambda file=file: file.shape, lambda file=file: np.asarray(file)):
                with pytest.raises(UnreadableImageError, match=f"{seed}.tif cannot be read"):
                    ask()
            continue
        assert_array_equal(np.squeeze(tifffile.imread(path)), np.squeeze(stored), err_msg=str(seed))
        if pixels.dtype == bool:
            pixels = np.where(pixels, 255, 0).astype(np.uint8)
        if pixels.ndim == 3 and pixels.shape[2] == 2:
            pixels = pixels[..., [0, 0, 0, 1]]
        assert (file.shape, file.dtype) == (pixels.shape, pixels.dtype), seed
        assert_array_equal(np.asarray(file), pixels, err_msg=str(seed), strict=True)
