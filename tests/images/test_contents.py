"""Turning images upright, compared with Pillow's."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageOps

from skmkd._images.contents import upright, upright_shape, with_grey_as_colour

COLOUR = np.random.default_rng(0).integers(0, 256, (4, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("pixels", [COLOUR, COLOUR[..., 0]], ids=["colour", "grey"])
@pytest.mark.parametrize("orientation", [0, *range(1, 9), 9])
def test_images_are_turned_as_pillow_turns_them(pixels, orientation):
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert_array_equal(upright(pixels, orientation), expected)
    assert upright_shape(pixels.shape, orientation) == expected.shape


def test_grey_with_alpha_becomes_colour_as_in_pillow():
    grey_alpha = COLOUR[..., :2]
    expected = Image.fromarray(grey_alpha).convert("RGBA")
    assert_array_equal(with_grey_as_colour(grey_alpha), np.asarray(expected))
