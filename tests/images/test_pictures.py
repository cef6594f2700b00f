"""PNG, JPEG, BMP and WebP: all bits of a PNG are kept, previews are told from frames."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from skmkd._images.image_files import ImageFile, UnreadableImageError

CASES = 300  # any number: each has its own seed
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by channels
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1)]  # fmt: skip # first row and column, and steps, of each pass


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def filtered(pixels, rng) -> bytes:
    """Return the rows of an image (H, W, C), each by a filter of PNG drawn at random."""
    step = pixels.shape[2] * pixels.itemsize
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(len(pixels), -1)
    rows = np.frombuffer(rows.tobytes(), np.uint8).reshape(len(pixels), -1).astype(int)
    above = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    left = np.pad(rows, ((0, 0), (step, 0)))[:, :-step]
    corner = np.pad(above, ((0, 0), (step, 0)))[:, :-step]
    guess = left + above - corner
    distance = np.abs([guess - left, guess - above, guess - corner])
    paeth = np.choose(distance.argmin(axis=0), [left, above, corner])
    kinds = [0 * rows, left, above, (left + above) // 2, paeth]
    packed = []
    for i in range(len(rows)):
        kind = int(rng.integers(5))
        packed.append(bytes([kind]) + (rows[i] - kinds[kind][i]).astype(np.uint8).tobytes())
    return b"".join(packed)


def png(pixels, rng, interlaced=False, extra=b"") -> bytes:
    """Write an image (H, W, C) of 8 or 16 bits."""
    height, width, channels = pixels.shape
    header = struct.pack(
        ">IIBBBBB", width, height, 8 * pixels.itemsize, COLOUR_TYPES[channels], 0, 0, interlaced
    )
    passes = [pixels[r::dr, c::dc] for r, c, dr, dc in ADAM7] if interlaced else [pixels]
    content = zlib.compress(b"".join(filtered(part, rng) for part in passes if part.size))
    half = len(content) // 2
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", content[:half])
        + chunk(b"IDAT", content[half:]) + chunk(b"IEND", b"")
    )  # fmt: skip


def check(path, expected):
    file = ImageFile(path)
    assert (file.shape, file.dtype) == (expected.shape, expected.dtype)
    assert_array_equal(np.asarray(file), expected, strict=True)


def plain(pixels):
    """Return pixels (H, W, C) with the channels that they are read with."""
    if pixels.shape[2] == 2:
        return pixels[..., [0, 0, 0, 1]]
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


@pytest.mark.parametrize("block", range(0, CASES, 50))
def test_png_keeps_every_bit(tmp_path, block):
    for seed in range(block, min(block + 50, CASES)):
        rng = np.random.default_rng(seed)
        dtype = rng.choice([np.uint8, np.uint16])
        height, width, channels = (*rng.integers(1, 40, 2), rng.integers(1, 5))
        high = rng.choice([256, 1024, 4096, 65536]) if dtype == np.uint16 else 256
        pixels = rng.integers(0, high, (height, width, channels)).astype(dtype)
        interlaced = bool(rng.random() < 0.3)
        (tmp_path / f"{seed}.png").write_bytes(png(pixels, rng, interlaced))
        check(tmp_path / f"{seed}.png", plain(pixels))


@pytest.mark.parametrize("channels", [3, 4])
def test_deep_png_is_turned_and_its_clear_colour_is_alpha(tmp_path, channels):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (6, 9, channels), dtype=np.uint16)
    path = tmp_path / "image.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    place = chunk(b"eXIf", exif.tobytes()[6:])
    path.write_bytes(png(pixels, rng, extra=place))
    check(path, np.rot90(pixels, -1))
    if channels == 3:
        key = pixels[2, 3]
        path.write_bytes(png(pixels, rng, extra=chunk(b"tRNS", key.astype(">u2").tobytes())))
        alpha = np.full((6, 9), 65535, np.uint16)
        alpha[2, 3] = 0
        check(path, np.dstack([pixels, alpha]))


def test_truncated_deep_png_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    whole = png(rng.integers(0, 65536, (40, 40, 3), dtype=np.uint16), rng)
    (tmp_path / "cut.png").write_bytes(whole[:5000])
    with pytest.raises(UnreadableImageError, match="cut.png cannot be read.*truncated"):
        np.asarray(ImageFile(tmp_path / "cut.png"))


def test_previews_of_cameras_are_no_frames(tmp_path):
    path = tmp_path / "image.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(path, format="MPO", save_all=True, append_images=[image.resize((25, 20))])
    written = path.read_bytes()
    with Image.open(path) as saved:
        decoded = np.asarray(saved)
    place = written.index(b"MPF\0") + 4
    entries = written.index(struct.pack("<HHL", 0xB002, 7, 32), place) + 8
    second = place + struct.unpack_from("<L", written, entries)[0] + 16
    thumbnail = bytearray(written)
    thumbnail[second : second + 4] = struct.pack("<L", 0x010001)  # VGA
    path.write_bytes(thumbnail)
    check(path, decoded)
    path.write_bytes(written)
    with pytest.raises(UnreadableImageError, match="it holds 2 images"):
        _ = ImageFile(path).shape


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_animation_of_one_frame_is_an_image(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path, save_all=True, lossless=True)
    check(path, pixels)


def test_an_orientation_at_the_end_of_a_png_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    content = (tmp_path / "image.png").read_bytes()
    end = len(content) - 12  # of the chunks before IEND
    stated = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "image.png").write_bytes(content[:end] + stated + content[end:])
    assert_array_equal(np.asarray(ImageFile(tmp_path / "image.png")), np.rot90(pixels, -1))


@pytest.mark.parametrize("values", [1, 100, 2**20])
@pytest.mark.parametrize(
    ("mode", "becomes"), [("L", "L"), ("1", "L"), ("RGB", "RGB"), ("CMYK", "RGB"), ("RGBA", "RGBA")]
)
def test_pixels_are_the_same_in_strips_of_any_height(tmp_path, monkeypatch, mode, becomes, values):
    monkeypatch.setattr("skmkd._images.pictures.STRIP_VALUES", values)
    noise = np.random.default_rng(0).integers(0, 256, (23, 17, 4), dtype=np.uint8)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.fromarray(noise).convert(mode).save(path)
    with Image.open(path) as image:
        assert_array_equal(ImageFile(path), np.asarray(image.convert(becomes)))
