from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skmkd._images import preparation
from skmkd._images.checks import PixelRange
from skmkd._images.preparation import (
    Preprocessing,
    mild_augmentation,
    over_white,
)
from skmkd._networks.sources import IDENTITY, IMAGENET

BYTES = PixelRange(0, 255, "uint8")


def prepare(size=(4, 4), pixel_range=BYTES, normalization=IDENTITY):
    return Preprocessing(size, pixel_range, *normalization)


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_scales_and_normalises():
    images = [pixels((4, 4, 3), seed) for seed in range(3)]
    got = prepare(normalization=IMAGENET)(images)
    expected = (np.stack(images) / 255 - IMAGENET.mean) / IMAGENET.std
    assert got.dtype == torch.float32
    assert_allclose(got, expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "pixel_range"),
    [
        (">u2", PixelRange(0, 65535, "uint16")),
        (np.int64, PixelRange(-10, 10, "float")),
        (">f8", PixelRange(5, 5, "float")),
        (bool, PixelRange(0, 1, "bool")),
        (np.float16, PixelRange(0, 1, "float")),
        (np.longdouble, PixelRange(0, 15, "float")),
    ],
)
def test_every_kind_of_number(dtype, pixel_range):
    image = np.arange(16).reshape(4, 4, 1).astype(dtype)
    width = (pixel_range.high - pixel_range.low) or 1
    got = prepare(pixel_range=pixel_range)([image])
    expected = (image[..., 0].astype(float) - pixel_range.low) / width
    assert_allclose(got[0, 1], expected, rtol=1e-6)


def triangle_weights(n_out, n_in):
    """Weights (n_out, n_in) of a bilinear resize with antialiasing, float64."""
    scale = n_in / n_out
    centres = (np.arange(n_out)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(n_in) + 0.5 - centres) / max(scale, 1)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(1, keepdims=True)


def scaled_first(image, low, high, size):
    """Scale, composite over white, then resize: (H, W, C) -> (C, height, width), float64."""
    scaled = (image.astype(np.float64) - low) / (high - low)
    if image.shape[2] == 4:
        colour, alpha = scaled[..., :3], scaled[..., 3:]
        scaled = colour * alpha + 1 - alpha
    rows, columns = (triangle_weights(n, m) for n, m in zip(size, image.shape, strict=False))
    return np.einsum("ih,jw,hwc->cij", rows, columns, scaled)


DRAWS = np.random.default_rng(0).random((32, 48, 4))
RESIZED = {
    "uint8": ((256 * DRAWS).astype(np.uint8)[..., :3], (0, 255)),
    "uint8, RGBA": ((256 * DRAWS).astype(np.uint8), (0, 255)),
    "uint16": ((65536 * DRAWS).astype(np.uint16)[..., :1], (0, 65535)),
    "uint16, RGBA": ((65536 * DRAWS).astype(">u2"), (0, 65535)),
    "bool": (DRAWS[..., :3] > 0.5, (0, 1)),
    "int32, far from 0": ((10**9 + 100 * DRAWS).astype(np.int32)[..., :3], (10**9, 10**9 + 99)),
    "float32": (DRAWS[..., :3].astype(np.float32), (0, 1)),
    "float32, RGBA": (DRAWS.astype(np.float32), (0, 1)),
    "float32, far from 0": ((8192 + DRAWS[..., :3]).astype(np.float32), (8192, 8193)),
    "float64": (DRAWS[..., :1] - 0.5, (-0.5, 0.5)),
    "float64, far from 0": (1e7 + DRAWS[..., :3], (1e7, 1e7 + 1)),
}


@pytest.mark.parametrize("size", [(13, 16), (64, 24)])
@pytest.mark.parametrize(("image", "extremes"), RESIZED.values(), ids=RESIZED)
@pytest.mark.parametrize("rows", [1, 5, 32])
def test_resizing_before_scaling_gives_the_same_numbers(monkeypatch, image, extremes, size, rows):
    monkeypatch.setattr(preparation, "STRIP_VALUES", rows * image[:1].size * 2)
    low, high = extremes
    got = prepare(size, PixelRange(low, high, image.dtype.name))([image, image[::-1]])
    assert got.shape == (2, 3, *size)
    for tensor, original in zip(got, (image, image[::-1]), strict=True):
        expected = np.broadcast_to(scaled_first(original, low, high, size), tensor.shape)
        assert_allclose(tensor, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("low", [0, 0.5])
def test_input_is_not_changed(low):
    image = np.ones((4, 4, 1), np.float32)
    image.flags.writeable = False
    prepare(pixel_range=PixelRange(low, 2, "float"))([image]).zero_()
    assert (image == 1).all()


def test_rectangular_size():
    assert prepare(size=(6, 10))([pixels((20, 20, 3))]).shape == (1, 3, 6, 10)


@pytest.mark.parametrize("white", [1, 255])
def test_alpha_is_composited_over_white(white):
    image = torch.tensor([0.2, 0.4, 0.6, 0.5]).view(1, 4, 1, 1) * white
    assert_allclose(over_white(image, white).flatten() / white, [0.6, 0.7, 0.8], rtol=1e-6)
    opaque, clear = image.clone(), image.clone()
    opaque[:, 3], clear[:, 3] = white, 0
    assert_array_equal(over_white(opaque, white), image[:, :3])
    assert_array_equal(over_white(clear, white), torch.full((1, 3, 1, 1), float(white)))


def test_mild_augmentation_rotates_about_the_centre_without_distortion():
    # a disc stays where it is and as wide as high, whatever the rotation and the image's aspect
    rows, columns = np.mgrid[:60, :90]
    disc = np.hypot(rows - 29.5, columns - 44.5) < 12
    images = torch.from_numpy(disc.astype(np.float32)).expand(8, 3, 60, 90)
    turned = mild_augmentation(images, torch.Generator().manual_seed(0))
    assert turned.shape == images.shape
    for single in turned[:, 0].numpy() > 0.5:
        r, c = np.nonzero(single)
        assert abs(r.mean() - 29.5) < 0.5
        assert abs(c.mean() - 44.5) < 0.5
        assert abs(np.ptp(r) - np.ptp(c)) <= 1
        assert 0.85**2 < single.sum() / disc.sum() < 1.1**2


def test_mild_augmentation_has_the_paper_s_ranges():
    # the angle and the length of a bar, measured by its second moments
    rows, columns = np.mgrid[:64, :64]
    bar = (abs(rows - 31.5) < 3) & (abs(columns - 31.5) < 20)
    images = torch.from_numpy(bar.astype(np.float32)).expand(200, 3, 64, 64)
    turned = mild_augmentation(images, torch.Generator().manual_seed(0))[:, 0].numpy()
    angles, lengths = [], []
    for single in turned:
        covariance = np.cov(rows.ravel(), columns.ravel(), aweights=single.ravel())
        angles.append(0.5 * np.arctan2(2 * covariance[0, 1], covariance[1, 1] - covariance[0, 0]))
        lengths.append(np.sqrt(12 * np.linalg.eigvalsh(covariance)[1]) / 40)
    angles = np.rad2deg(angles)
    assert -20.5 < angles.min() < -18
    assert 18 < angles.max() < 20.5
    assert 0.89 < min(lengths) < 0.91
    assert 1.03 < max(lengths) < 1.06


def test_augmentation_leaves_no_dark_corners():
    turned = mild_augmentation(torch.ones(8, 3, 20, 20), torch.Generator().manual_seed(0))
    assert_allclose(turned, 1, rtol=1e-6)
