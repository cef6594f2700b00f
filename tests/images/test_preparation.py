from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skmkd._images.checks import PixelRange
from skmkd._images.preparation import (
    Preprocessing,
    mild_augmentation,
    over_white,
    resized_shape,
    runs,
    shuffled_batches,
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
    ],
)
def test_every_kind_of_number(dtype, pixel_range):
    image = np.arange(16).reshape(4, 4, 1).astype(dtype)
    width = (pixel_range.high - pixel_range.low) or 1
    got = prepare(pixel_range=pixel_range)([image])
    expected = (image[..., 0].astype(float) - pixel_range.low) / width
    assert_allclose(got[0, 1], expected, rtol=1e-6)


def test_read_only_input_is_copied():
    image = np.ones((4, 4, 1), np.float32)
    image.flags.writeable = False
    prepare(pixel_range=PixelRange(0, 2, "float"))([image]).zero_()
    assert (image == 1).all()


def test_mixed_sizes_come_out_as_each_alone():
    images = [pixels(shape) for shape in [(9, 5, 1), (9, 5, 1), (4, 4, 1), (9, 5, 1)]]
    together = prepare()(images)
    assert together.shape == (4, 3, 4, 4)
    for single, image in zip(together, images, strict=True):
        assert_array_equal(single, prepare()([image])[0])


def test_rectangular_size():
    assert prepare(size=(6, 10))([pixels((20, 20, 3))]).shape == (1, 3, 6, 10)


def test_alpha_is_laid_over_white():
    image = torch.tensor([0.2, 0.4, 0.6, 0.5]).view(1, 4, 1, 1)
    assert_allclose(over_white(image).flatten(), [0.6, 0.7, 0.8], rtol=1e-6)
    opaque, clear = image.clone(), image.clone()
    opaque[:, 3], clear[:, 3] = 1, 0
    assert_array_equal(over_white(opaque), image[:, :3])
    assert_array_equal(over_white(clear), torch.ones(1, 3, 1, 1))
    assert over_white(image[:, :3]).equal(image[:, :3])


def test_large_images_are_brought_to_size_a_few_at_a_time():
    images = [pixels((600, 600, 1))] * 3 + [pixels((30, 40, 1))] * 400
    stacked = [len(run) for run in runs(images)]
    assert stacked == [1, 1, 1, 218, 182]
    tracemalloc.start()
    prepare()([pixels((1500, 1500, 3))] * 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 4 * 1500 * 1500 * 3  # a few images as floats, not sixteen


@pytest.mark.parametrize("image_size", [(8, 8, 8), (8,), (0, 8), (8.5, 8)])
def test_bad_image_size(image_size):
    with pytest.raises(ValueError, match="image_size must be a side or .* got"):
        resized_shape(image_size)


def test_image_size_of_either_kind():
    assert resized_shape(32) == (32, 32)
    assert resized_shape([16, np.int64(24)]) == (16, 24)


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


@pytest.mark.parametrize(("n", "batch_size"), [(65, 64), (3, 2), (5, 1), (2, 64), (130, 64)])
def test_shuffled_batches_hold_every_image_once_and_none_alone(n, batch_size):
    batches = shuffled_batches(n, batch_size, torch.Generator().manual_seed(0))
    sizes = [len(batch) for batch in batches]
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3)
    order = np.concatenate(batches)
    assert_array_equal(np.sort(order), np.arange(n))
    assert n < 5 or (order != np.arange(n)).any()
