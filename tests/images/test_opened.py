"""Images of Pillow are read as their files are, and stay as they were opened."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, features

from skmkd._images.image_files import ImageFile
from skmkd._images.opened import OpenedImage

WIDTH, HEIGHT = 19, 11


def noise(mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


CASES = {
    "png": (noise(), "PNG", {}),
    "grey": (noise("L"), "PNG", {}),
    "alpha": (noise("RGBA"), "PNG", {}),
    "palette": (noise("P"), "PNG", {"transparency": 3}),
    "16 bits": (noise("I").convert("I;16"), "PNG", {}),
    "turned png": (noise(), "PNG", {"exif": turned(6)}),
    "jpeg": (noise(), "JPEG", {}),
    "turned jpeg": (noise(), "JPEG", {"exif": turned(8)}),
    "bmp": (noise(), "BMP", {}),
    "webp": (noise(), "WEBP", {"lossless": True}),
    "tiff": (noise(), "TIFF", {}),
    "floats": (noise("F"), "TIFF", {}),
}


@pytest.fixture(params=CASES)
def path(request, tmp_path):
    if request.param == "webp" and not features.check("webp"):
        pytest.skip("Pillow has no WebP")
    image, kind, options = CASES[request.param]
    image.save(tmp_path / "image", kind, **options)
    return tmp_path / "image"


@pytest.mark.parametrize("in_memory", [False, True])
def test_pixels_are_those_of_the_file_and_nothing_is_decoded(path, in_memory):
    expected = np.asarray(ImageFile(path))
    with Image.open(BytesIO(path.read_bytes()) if in_memory else path) as image:
        item = OpenedImage(image, 0)
        assert (item.shape, item.ndim, item.dtype) == (
            expected.shape,
            expected.ndim,
            expected.dtype,
        )
        for _ in range(2):
            assert_array_equal(np.asarray(item), expected)
            assert np.asarray(item).dtype == expected.dtype
        assert image._im is None
        image.load()  # it can be used as before
        assert image.fp is None
        assert_array_equal(np.asarray(item), expected)
        assert item.shape == expected.shape


def test_several_threads_read_one_image(tmp_path):
    noise().save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as image, ThreadPoolExecutor(4) as pool:
        items = [OpenedImage(image, i) for i in range(40)]
        for read in pool.map(np.asarray, items):
            assert_array_equal(read, np.asarray(noise()))


def test_an_image_in_memory_is_not_changed():
    image = noise()
    image.info["exif"] = turned(6).tobytes()
    item = OpenedImage(image, 0)
    assert item.shape == (WIDTH, HEIGHT, 3)
    assert_array_equal(np.asarray(item), np.rot90(np.asarray(noise()), -1))
    assert image.size == (WIDTH, HEIGHT)


def test_a_draft_and_another_frame_are_what_was_chosen(tmp_path):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    large.save(tmp_path / "large.jpg")
    with Image.open(tmp_path / "large.jpg") as image:
        image.draft("L", (16, 16))
        assert np.asarray(OpenedImage(image, 0)).shape == (16, 16)
    frames = [noise(seed=0), noise(seed=1)]
    frames[0].save(tmp_path / "frames.tif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "frames.tif") as image:
        image.seek(1)
        assert_array_equal(np.asarray(OpenedImage(image, 0)), np.asarray(frames[1]))
