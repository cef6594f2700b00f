"""PGM and PPM: the numbers in the file, whatever its highest value."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from skmkd._images.image_files import ImageFile, UnreadableImageError


def write(path, pixels, highest, plain, comment=b""):
    """Write an image (H, W) or (H, W, 3) as the format's manual says."""
    magic = {(2, True): b"P2", (3, True): b"P3", (2, False): b"P5", (3, False): b"P6"}
    header = b"%s\n%s%d %d\n%d\n" % (
        magic[pixels.ndim, plain], comment, pixels.shape[1], pixels.shape[0], highest
    )  # fmt: skip
    if plain:
        content = b"\n".join(b" ".join(b"%d" % n for n in row.ravel()) for row in pixels)
    else:
        content = pixels.astype(">u2" if highest > 255 else "u1").tobytes()
    path.write_bytes(header + content)


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3), (1, 1)])
@pytest.mark.parametrize("highest", [1, 15, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("comment", [b"", b"# made by a camera\n"])
def test_numbers_are_kept(tmp_path, shape, highest, plain, comment):
    pixels = np.random.default_rng(0).integers(0, highest, shape, endpoint=True)
    pixels = pixels.astype(np.uint8 if highest < 256 else np.uint16)
    path = tmp_path / "image.pnm"
    write(path, pixels, highest, plain, comment)
    file = ImageFile(path)
    assert (file.shape, file.dtype) == (pixels.shape, pixels.dtype)
    assert_array_equal(np.asarray(file), pixels, strict=True)
    if highest == 255 or (highest == 65535 and pixels.ndim == 2):  # Pillow does not stretch these
        with Image.open(path) as image:
            assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("pixels", [np.eye(9, dtype=np.uint8), np.zeros((9, 9, 3), np.uint8)])
def test_what_pillow_writes_is_read(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "image.ppm")
    assert_array_equal(np.asarray(ImageFile(tmp_path / "image.ppm")), pixels, strict=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"P5\n9 9\n255\n" + bytes(80), "truncated: it holds 80 of 81 numbers"),
        (b"P2\n2 2\n255\n1 2 3", "truncated: it holds 3 of 4 numbers"),
        (b"P2\n2 2\n255\n1 2 3 x", "it is broken|invalid literal"),
        (b"P2\n2 2\n255\n1 2 3 256", "numbers above its highest"),
        (b"P5\n9 9\n", "its header is broken"),
        (b"P5\n9 9\n70000\n" + bytes(200), "9 x 9 pixels of at most 70000"),
        (b"P5\n0 9\n255\n", "0 x 9 pixels"),
        (b"P5\n99999999 99999999\n255\n", "max_pixels is"),
    ],
)
def test_broken_files_are_refused(tmp_path, content, reason):
    (tmp_path / "bad.pgm").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=f"bad.pgm cannot be read.*{reason}"):
        np.asarray(ImageFile(tmp_path / "bad.pgm"))
