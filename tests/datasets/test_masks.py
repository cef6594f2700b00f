"""Lazy masks: what they read, how they are indexed, and that metrics take them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.model_selection import train_test_split

from skmkd.datasets._files import path_array
from skmkd.datasets._masks import LazyMasks, read_mask
from skmkd.metrics import aupro_score, pixel_average_precision_score, pixel_roc_auc_score

TRUTH = np.zeros((4, 6), dtype=bool)
TRUTH[1:3, 2:5] = True


def saved(path, array, mode=None):
    image = Image.fromarray(np.asarray(array))
    (image if mode is None else image.convert(mode)).save(path)
    return path


@pytest.fixture
def masks(tmp_path):
    images = [saved(tmp_path / f"{i}.png", np.zeros((4, 6), np.uint8)) for i in range(4)]
    defect = saved(tmp_path / "mask.png", 255 * TRUTH.astype(np.uint8))
    return LazyMasks(path_array(images), path_array([None, defect, None, defect]))


def colour(*channels):
    return np.stack([value * TRUTH.astype(np.uint8) for value in channels], axis=-1)


@pytest.mark.parametrize(
    "array",
    [
        TRUTH, 255 * TRUTH.astype(np.uint8), TRUTH.astype(np.uint8), 3 * TRUTH.astype(np.uint16),
        colour(0, 0, 1), np.dstack([colour(9, 0, 0), np.full(TRUTH.shape, 255, np.uint8)]),
    ],
    ids=["bool", "255", "label 1", "16 bit", "blue", "RGBA"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_what_is_not_0_is_anomalous(tmp_path, array, suffix):
    mask = read_mask(saved(tmp_path / f"mask{suffix}", array))
    assert mask.dtype == bool
    assert_array_equal(mask, TRUTH)


def test_palette_masks_are_read_by_their_colours(tmp_path):
    image = Image.fromarray(TRUTH.astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 9, 0, 0])
    image.save(tmp_path / "mask.png")
    assert_array_equal(read_mask(tmp_path / "mask.png"), TRUTH)
    image.putpalette([9, 0, 0, 0, 0, 0])
    image.save(tmp_path / "mask.png")
    assert_array_equal(read_mask(tmp_path / "mask.png"), ~TRUTH)


@pytest.mark.parametrize("colour_mask", [False, True])
def test_noise_of_jpeg_is_not_anomalous(tmp_path, colour_mask):
    truth = np.kron(TRUTH, np.ones((13, 13), dtype=bool))
    mask = np.dstack([255 * truth, 0 * truth, 0 * truth]) if colour_mask else 255 * truth
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "mask.jpg", quality=90, subsampling=0)
    with Image.open(tmp_path / "mask.jpg") as image:
        assert np.any((np.asarray(image.convert("L")) > 0) != truth)
    assert_array_equal(read_mask(tmp_path / "mask.jpg"), truth)


def test_transparent_pixels_are_not_anomalous(tmp_path):
    paper = np.full((*TRUTH.shape, 3), 255, np.uint8)
    saved(tmp_path / "mask.png", np.dstack([paper, 200 * TRUTH.astype(np.uint8)]))
    assert_array_equal(read_mask(tmp_path / "mask.png"), TRUTH)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.uint16, np.int32, np.float32])
def test_tiff_masks_are_not_inverted(tmp_path, dtype, compression):
    photometric = "miniswhite" if dtype != np.float32 else None
    tifffile.imwrite(
        tmp_path / "mask.tif", TRUTH.astype(dtype), photometric=photometric, compression=compression
    )
    assert_array_equal(read_mask(tmp_path / "mask.tif"), TRUTH)


def test_masks_are_a_sequence(masks):
    assert len(masks) == 4
    for index in (1, -1, np.int64(3)):
        assert_array_equal(masks[index], TRUTH)
    assert masks[0].shape == (4, 6)
    assert masks[0].dtype == bool
    assert not masks[0].any()
    assert [mask.any() for mask in masks] == [False, True, False, True]
    assert np.stack(masks).shape == (4, 4, 6)
    with pytest.raises(IndexError):
        masks[4]


@pytest.mark.parametrize(
    ("index", "anomalous"),
    [([1, 0], [True, False]), (np.array([3]), [True]), (slice(2), [False, True]),
     (np.array([True, False, False, True]), [False, True]), ([], [])],
)  # fmt: skip
def test_parts_of_them_stay_unread(masks, index, anomalous, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", None)
        part = masks[index]
    assert isinstance(part, LazyMasks)
    assert [mask.any() for mask in part] == anomalous


def test_splitting_takes_them(masks):
    train, test = train_test_split(masks, random_state=0)
    assert len(train) + len(test) == 4


def test_pickling_keeps_them(masks):
    assert_array_equal(pickle.loads(pickle.dumps(masks))[1], TRUTH)


def test_pixels_of_normal_images_are_not_read(tmp_path, monkeypatch):
    path = saved(tmp_path / "image.jpg", np.zeros((4, 6), np.uint8))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert LazyMasks(path_array([path]), path_array([None]))[0].shape == (4, 6)


@pytest.mark.parametrize(
    "metric", [aupro_score, pixel_roc_auc_score, pixel_average_precision_score]
)
@pytest.mark.parametrize("exact", [True, False])
def test_metrics_take_them(masks, metric, exact):
    maps = np.random.default_rng(0).random((4, 4, 6))
    assert metric(masks, maps, exact=exact) == metric(np.stack(masks), maps, exact=exact)
    assert metric(masks[[1, 2]], maps[[1, 2]]) == metric(np.stack(masks)[[1, 2]], maps[[1, 2]])


def test_broken_mask_is_named(tmp_path):
    whole = saved(tmp_path / "mask.png", 255 * TRUTH.astype(np.uint8))
    whole.write_bytes(whole.read_bytes()[:50])
    with pytest.raises(ValueError, match="mask.png cannot be read as an image"):
        read_mask(whole)


def test_masks_stand_as_their_images_do(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(255 * TRUTH.astype(np.uint8)).save(tmp_path / "mask.png", exif=exif)
    assert_array_equal(read_mask(tmp_path / "mask.png"), np.rot90(TRUTH, -1))
    lazy = LazyMasks(path_array([tmp_path / "mask.png"]), path_array([None]))
    assert lazy[0].shape == (6, 4)


def test_a_mask_of_another_size_is_resized_with_a_warning(tmp_path):
    image = saved(tmp_path / "image.png", np.zeros((8, 12, 3), np.uint8))
    small = saved(tmp_path / "small.png", 255 * TRUTH.astype(np.uint8))
    large = saved(tmp_path / "large.png", 255 * TRUTH.repeat(4, 0).repeat(4, 1).astype(np.uint8))
    for mask in (small, large):
        with pytest.warns(
            UserWarning, match=rf"{mask.name} of .* is resized to its image's 8 x 12"
        ):
            read = LazyMasks(path_array([image]), path_array([mask]))[0]
        assert_array_equal(read, TRUTH.repeat(2, 0).repeat(2, 1))


def test_a_mask_that_is_turned_against_its_image_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "image.png", exif=exif)
    mask = saved(tmp_path / "mask.png", 255 * TRUTH.astype(np.uint8))
    with pytest.raises(ValueError, match="image.png, which is 6 x 4 pixels once its EXIF orientat"):
        LazyMasks(path_array([tmp_path / "image.png"]), path_array([mask]))[0]
