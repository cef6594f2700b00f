from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skmkd._images.channels import common_channels, with_channels

OPAQUE = {"u1": 255, "u2": 65535, "?": True, "f4": 1.0}


def image(channels, dtype="u1"):
    values = np.random.default_rng(0).random((4, 5, channels))
    made = (values > 0.5) if dtype == "?" else (values * OPAQUE[dtype]).astype(dtype)
    if channels == 4:
        made[..., 3] = OPAQUE[dtype]
    return made


@pytest.mark.parametrize(
    ("found", "expected"),
    [([1, 1], 1), ([3], 3), ([4, 4], 4), ([1, 3], 3), ([3, 4, 3], 3), ([1, 4, 4], 4)],
)
def test_channels_that_all_can_have(found, expected):
    assert common_channels(found) == expected


@pytest.mark.parametrize("dtype", OPAQUE)
def test_conversions_that_lose_nothing(dtype):
    grey, colour, opaque = (image(c, dtype) for c in (1, 3, 4))
    for made in (with_channels(grey, 3), with_channels(grey, 4)[..., :3]):
        assert_array_equal(made, grey.repeat(3, axis=2))
        assert made.dtype == grey.dtype
    for target in (grey, colour):
        made = with_channels(target, 4)
        assert (made[..., 3] == OPAQUE[dtype]).all()
    assert_array_equal(with_channels(colour, 4)[..., :3], colour)
    assert_array_equal(with_channels(opaque, 3), opaque[..., :3])
    assert_array_equal(with_channels(grey.repeat(3, axis=2), 1), grey)
    for channels in (1, 3, 4):
        assert_array_equal(with_channels(image(channels, dtype), channels), image(channels, dtype))


def test_conversions_that_lose_something_are_refused():
    with pytest.raises(ValueError, match="must be grey, as at fit; it has colours"):
        with_channels(image(3), 1)
    with pytest.raises(ValueError, match="must be grey"):
        with_channels(image(4), 1)
    transparent = image(4)
    transparent[1, 2, 3] = 200
    for channels in (1, 3):
        with pytest.raises(ValueError, match="must not have transparent pixels"):
            with_channels(transparent, channels)
    assert_array_equal(with_channels(transparent, 4), transparent)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_that_is_transparent_everywhere_is_refused(channels):
    hidden = image(4)
    hidden[..., 3] = 0
    with pytest.raises(ValueError, match="must not be transparent everywhere"):
        with_channels(hidden, channels)
