"""Image files: every mode by its rule, and one clear error for whatever cannot be read."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import tracemalloc
import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.testing import assert_array_equal
from PIL import Image

from skmkd._images import image_files
from skmkd._images.image_files import (
    MAX_PIXELS,
    ImageFile,
    UnreadableImageError,
    is_path_list,
)
from skmkd.datasets import list_images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)


def check(path, expected):
    """Check that the header already tells shape and type, and that the pixels are right."""
    file = ImageFile(path)
    assert (file.shape, file.ndim, file.dtype) == (expected.shape, expected.ndim, expected.dtype)
    assert_array_equal(np.asarray(file), expected, strict=True)
    assert file.shape == expected.shape


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR, ALPHA], ids=["grey", "colour", "alpha"])
def test_formats_without_loss(tmp_path, suffix, pixels):
    if suffix == "bmp" and pixels is ALPHA:
        pixels = COLOUR  # Pillow's BMP knows no alpha
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(
        path, **({"lossless": True, "exact": True} if suffix == "webp" else {})
    )
    if suffix == "webp" and pixels is GREY:
        pixels = np.repeat(GREY[..., None], 3, axis=2)  # WebP knows no grey
    check(path, pixels)


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_jpeg(tmp_path, pixels):
    path = tmp_path / "image.JPG"
    Image.fromarray(pixels).save(path)
    with Image.open(path) as image:
        check(path, np.asarray(image))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_kept(tmp_path, suffix):
    Image.fromarray(DEEP).save(tmp_path / f"image.{suffix}")
    check(tmp_path / f"image.{suffix}", DEEP)


def test_other_numbers_are_kept(tmp_path):
    for dtype in (np.int32, np.float32):
        Image.fromarray(DEEP.astype(dtype)).save(tmp_path / "image.tiff")
        check(tmp_path / "image.tiff", DEEP.astype(dtype))


def test_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(GREY > 128).save(tmp_path / "image.png")
    check(tmp_path / "image.png", np.where(GREY > 128, 255, 0).astype(np.uint8))


def test_palette_becomes_colour(tmp_path):
    image = Image.fromarray(GREY % 4).convert("P")
    colours = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image.putpalette(colours.ravel().tolist())
    image.save(tmp_path / "image.png")
    check(tmp_path / "image.png", colours[np.asarray(image)])
    image.save(tmp_path / "clear.png", transparency=2)
    alpha = np.where(np.asarray(image) == 2, 0, 255).astype(np.uint8)
    check(tmp_path / "clear.png", np.dstack([colours[np.asarray(image)], alpha]))


def test_transparency_of_any_kind_becomes_alpha(tmp_path):
    Image.fromarray(ALPHA[..., :2]).save(tmp_path / "la.png")
    check(tmp_path / "la.png", ALPHA[..., [0, 0, 0, 1]])
    Image.fromarray(COLOUR).save(tmp_path / "key.png", transparency=tuple(COLOUR[0, 0].tolist()))
    alpha = np.where(np.equal(COLOUR, COLOUR[0, 0]).all(axis=2), 0, 255).astype(np.uint8)
    check(tmp_path / "key.png", np.dstack([COLOUR, alpha]))


def test_cmyk_becomes_colour(tmp_path):
    image = Image.fromarray(COLOUR).convert("CMYK")
    image.save(tmp_path / "image.tiff")
    check(tmp_path / "image.tiff", np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_orientation_is_applied(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / f"image.{suffix}", exif=exif,
                                 **({"lossless": True} if suffix == "webp" else {}))  # fmt: skip
    turned = {
        1: COLOUR, 2: COLOUR[:, ::-1], 3: COLOUR[::-1, ::-1], 4: COLOUR[::-1],
        5: COLOUR.swapaxes(0, 1), 6: COLOUR[::-1].swapaxes(0, 1),
        7: COLOUR[::-1, ::-1].swapaxes(0, 1), 8: COLOUR[:, ::-1].swapaxes(0, 1),
    }  # fmt: skip
    check(tmp_path / f"image.{suffix}", turned[orientation])


@pytest.mark.parametrize("suffix", ["tiff", "webp", "png", "jpg"])
def test_several_images_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(pixels) for pixels in (COLOUR, COLOUR[::-1])]
    path = tmp_path / f"image.{suffix}"
    frames[0].save(
        path, save_all=True, append_images=frames[1:], format="MPO" if suffix == "jpg" else None
    )
    for ask in (lambda: ImageFile(path).shape, lambda: np.asarray(ImageFile(path))):
        with pytest.raises(
            UnreadableImageError, match=rf"image.{suffix} cannot.*holds 2 images.*split it"
        ):
            ask()


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def huge_png(side: int) -> bytes:
    """Return a small PNG that claims side x side grey pixels, with the rows well packed."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(48_000_000 if side >= 20_000 else side * (side + 1)), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def png(pixels, tmp_path) -> bytes:
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    return (tmp_path / "whole.png").read_bytes()


BAD_FILES = {
    "truncated": (lambda whole: whole[: len(whole) * 2 // 3], "truncated"),
    "only a header": (lambda whole: whole[:33], "it is broken"),
    "empty": (lambda _: b"", "it is no PNG"),
    "text": (lambda _: b"not an image", "it is no PNG"),
    "broken": (lambda whole: whole[:60] + bytes(20) + whole[80:], "broken data stream"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_gives_one_error_that_names_it(tmp_path, kind):
    spoil, reason = BAD_FILES[kind]
    whole = png(RNG.integers(0, 256, (90, 90), dtype=np.uint8), tmp_path)
    path = tmp_path / "bad.png"
    path.write_bytes(spoil(whole))
    with pytest.raises(
        UnreadableImageError, match=f"bad.png cannot be read as an image: .*{reason}"
    ):
        np.asarray(ImageFile(path))


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(UnreadableImageError, match=f"{path} cannot be read as an image"):
            _ = ImageFile(path).shape


def test_small_file_that_claims_20000_by_20000_pixels_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(20_000))
    assert 40_000 < path.stat().st_size < 50_000
    before = Image.MAX_IMAGE_PIXELS
    tracemalloc.start()
    for ask in (lambda: ImageFile(path).shape, lambda: np.asarray(ImageFile(path))):
        with pytest.raises(
            UnreadableImageError, match=r"bomb.png cannot be read.*20000 x 20000 pixels"
        ):
            ask()
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process's peak of memory")
def test_refused_image_takes_no_memory(tmp_path):
    for name, side in [("small", 90), ("large", 8_000), ("bomb", 20_000)]:
        (tmp_path / f"{name}.png").write_bytes(huge_png(side))
    program = """
import re, sys
from pathlib import Path
import numpy as np
from skmkd._images.image_files import ImageFile, UnreadableImageError
def peak():  # of this process alone, in bytes
    return 1024 * int(re.search("VmHWM:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1])
np.asarray(ImageFile("small.png"))
before = peak()
try:
    np.asarray(ImageFile("bomb.png"))
except UnreadableImageError:
    refused = peak()
np.asarray(ImageFile("large.png"))
print(refused - before, peak() - refused)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    refused, read = map(int, run.stdout.split())
    assert refused < 4e6  # its pixels would take 400 MB
    assert read > 60e6  # as those of one of 64 MB do


def test_limit_is_our_own(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    path.write_bytes(huge_png(8_193))
    with pytest.raises(
        UnreadableImageError, match="8193 x 8193 pixels, and max_pixels is 67108864: raise that"
    ):
        _ = ImageFile(path, max_pixels=2**26).shape
    assert ImageFile(path, max_pixels=8193**2).shape == (8193, 8193)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)  # beyond it Pillow warns, then raises
    assert np.asarray(ImageFile(path)).shape == (8193, 8193)
    path.write_bytes(huge_png(16_385))
    with pytest.raises(UnreadableImageError, match=f"max_pixels is {MAX_PIXELS}"):
        _ = ImageFile(path).shape


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_limit_of_pillow_plays_no_part(tmp_path, monkeypatch, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {} if suffix == "bmp" else {"exif": exif}
    compression = {"compression": "tiff_adobe_deflate"} if suffix == "tif" else {}
    Image.fromarray(COLOUR).save(tmp_path / f"image.{suffix}", **turned, **compression)
    shape = COLOUR.shape if suffix == "bmp" else (9, 6, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)  # beyond twice that, Pillow raises
    assert np.asarray(ImageFile(tmp_path / f"image.{suffix}")).shape == shape


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda x: np.array(x, object), pd.Series])
@pytest.mark.parametrize("make", [str, Path])
def test_lists_of_paths_are_told_from_data(kind, make):
    assert is_path_list(kind([make("a.png"), make("b.png")]))
    assert not is_path_list(kind([1, 2]))
    assert not is_path_list([make("a.png"), COLOUR])
    assert not is_path_list([])


def test_other_formats_are_refused_whatever_their_suffix(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(GREY).save(path, format="GIF")
    with pytest.raises(UnreadableImageError, match="it is no PNG"):
        _ = ImageFile(path).shape


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "too many open files")])
def test_shortages_are_not_the_file_s_fault(tmp_path, monkeypatch, error):
    Image.fromarray(GREY).save(tmp_path / "image.png")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(type(error)) as raised:
        np.asarray(ImageFile(tmp_path / "image.png"))
    assert raised.value is error


def test_folders_paths_and_arrays_are_the_same_images(tmp_path):
    deep = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
    images = [GREY, COLOUR, ALPHA, DEEP, deep, GREY > 99, DEEP.astype(np.float32)]
    for i, pixels in enumerate(images):
        tifffile.imwrite(tmp_path / f"{i}.tif", pixels)
        if pixels.dtype == np.uint8:
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    images[5] = np.where(images[5], 255, 0).astype(np.uint8)
    paths = list_images(tmp_path)
    assert len(paths) == len(images) + 3
    for path in paths:
        for name in (path, str(path)):
            assert_array_equal(ImageFile(name), images[int(path.stem)], strict=True)


def replaced_while(monkeypatch, path, later):
    """Let a file be another one as soon as its header has been read."""
    real = image_files.of_its_format

    @contextmanager
    def of_its_format(name):
        with real(name) as contents:

            def read():
                os.replace(later, path)
                return contents.read()

            yield replace(contents, read=read)

    monkeypatch.setattr(image_files, "of_its_format", of_its_format)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("jpg", {}), ("bmp", {}), ("pgm", {}), ("tif", {}),
     ("tif", {"compression": "tiff_adobe_deflate"})],
)  # fmt: skip
@pytest.mark.parametrize(
    "pixels", [GREY[:3, :4], GREY.T, 255 - GREY], ids=["small", "turned", "new"]
)
def test_a_file_that_is_replaced_meanwhile_is_named(tmp_path, monkeypatch, suffix, options, pixels):
    path, later = tmp_path / f"image.{suffix}", tmp_path / f"later.{suffix}"
    Image.fromarray(GREY).save(path, **options)
    Image.fromarray(np.ascontiguousarray(pixels)).save(later, **options)
    with monkeypatch.context() as patched:
        replaced_while(patched, path, later)
        with pytest.raises(UnreadableImageError) as error:
            np.asarray(ImageFile(path))
    reason = "it was replaced or written to while it was read"
    assert str(error.value) == f"{path} cannot be read as an image: {reason}"
    assert np.asarray(ImageFile(path)).shape == pixels.shape  # and now it is read


def test_a_file_may_be_deleted_once_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.fromarray(GREY).save(path)
    replaced_while(monkeypatch, tmp_path / "elsewhere.png", path)
    assert_array_equal(ImageFile(path), GREY)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket.png"))  # a long path is no address
    kinds = {
        tmp_path / "pipe.png": "named pipe", tmp_path / "link.png": "named pipe",
        tmp_path / "socket.png": "socket", tmp_path: "folder", "/dev/null": "device",
    }  # fmt: skip
    for path, kind in kinds.items():
        for ask in (lambda file: file.shape, np.asarray):
            with pytest.raises(
                UnreadableImageError, match=f"an image: It is a {kind}, not a file$"
            ):
                ask(ImageFile(path))
    server.close()
