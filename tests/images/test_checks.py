from __future__ import annotations

import copy
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from scipy import sparse
from sklearn.base import BaseEstimator

from skmkd._images.checks import check_images
from skmkd._images.pixel_range import kind_of


class Estimator(BaseEstimator):
    def __init__(self, image_shape=None, on_error="raise", pixel_range="auto"):
        self.image_shape, self.on_error, self.pixel_range = image_shape, on_error, pixel_range
        self.max_pixels = 2**28


def fitted_to(X, **parameters):
    estimator = Estimator(**parameters)
    check_images(estimator, X, reset=True)
    return estimator


def noise(shape, dtype=np.float64, seed=0):
    values = np.random.default_rng(seed).random(shape)
    return values if np.dtype(dtype).kind == "f" else (values * 200).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [
        ((3, 5, 6), (5, 6, 1)),
        ((3, 5, 6, 1), (5, 6, 1)),
        ((3, 5, 6, 3), (5, 6, 3)),
        ((3, 5, 6, 4), (5, 6, 4)),
        ((3, 25), (5, 5, 1)),
        ((3, 26), (1, 26, 1)),
        ((3, 2, 3, 1), (2, 3, 1)),
    ],
)
def test_shapes(shape, image_shape):
    X = noise(shape)
    estimator = fitted_to(X)
    assert estimator.image_shape_ == image_shape
    assert estimator.n_features_in_ == np.prod(shape[1:])
    images = check_images(estimator, X, reset=False)
    assert len(images) == 3
    assert_array_equal(np.stack(list(images)), X.reshape(3, *image_shape))
    assert images.sizes([0, 2]) == [image_shape[:2]] * 2


def test_image_shape_of_rows():
    X = noise((4, 24))
    images = check_images(Estimator(image_shape=(4, 2, 3)), X, reset=True)
    assert_array_equal(images.read(1), X[1].reshape(4, 2, 3))


def test_list_of_different_sizes():
    X = [noise((4, 5)), noise((7, 3)), noise((6, 6))]
    estimator = Estimator()
    images = check_images(estimator, X, reset=True)
    assert estimator.image_shape_ == (None, None, 1)
    assert not hasattr(estimator, "n_features_in_")
    assert images.sizes(range(3)) == [(4, 5), (7, 3), (6, 6)]
    assert [image.shape for image in images] == [(4, 5, 1), (7, 3, 1), (6, 6, 1)]


@pytest.mark.parametrize(
    "convert",
    [
        tuple,
        lambda images: np.array([*images, None], dtype=object)[:-1],
        lambda images: [Image.fromarray(image) for image in images],
        lambda images: [torch.from_numpy(image) for image in images],
    ],
    ids=["tuple", "object array", "PIL", "torch"],
)
def test_other_lists_of_images(convert):
    X = [noise((4, 5), np.uint8), noise((7, 3), np.uint8)]
    images = check_images(Estimator(), convert(X), reset=True)
    assert not images.of_one_size
    for got, expected in zip(images, X, strict=True):
        assert_array_equal(got[..., 0], expected)


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        lambda X: X.astype(X.dtype.newbyteorder(">")),
        lambda X: np.ascontiguousarray(X[::-1])[::-1],
        lambda X: X.astype(object),
        lambda X: X.tolist(),
        torch.from_numpy,
    ],
    ids=["fortran", "big-endian", "reversed", "object", "nested list", "torch"],
)
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 3), (3, 20)])
def test_other_arrays(convert, shape):
    X = noise(shape)
    images = check_images(Estimator(), convert(X), reset=True)
    assert_array_equal(np.stack(list(images)).ravel(), X.ravel())


def test_memory_map_is_read_lazily(tmp_path):
    np.save(tmp_path / "images.npy", noise((3, 4, 5), np.uint8))
    X = np.load(tmp_path / "images.npy", mmap_mode="r")
    images = check_images(Estimator(), X, reset=True)
    assert np.shares_memory(images.read(1), X)


def test_data_frame_keeps_its_names():
    X = pd.DataFrame(noise((3, 4)), columns=list("abcd"))
    assert fitted_to(X).feature_names_in_.tolist() == list("abcd")


@pytest.mark.parametrize(
    ("X", "expected"),
    [
        (noise((2, 3, 3), np.uint8), (0, 255, "uint8")),
        (np.array([[[300, 16]], [[4, 4095]]], ">u2"), (0, 4095, "uint16")),
        (noise((2, 3, 3, 4), "u2") + np.uint16(1), (0, 65535, "uint16")),
        (noise((2, 3, 3), np.uint8) > 9, (0, 1, "bool")),
        (np.array([[[0.2, 0.5]], [[0.9, 0.3]]]), (0, 1, "float")),
        (np.array([[[0, 16]], [[4, 7]]]), (0, 16, "float")),
        (np.array([[[-2.0, 3]], [[0, 1]]], np.float16), (-2, 3, "float")),
        (np.full((2, 3, 3), 7.0), (7, 7, "float")),
    ],
    ids=["uint8", "uint16", "uint16 with alpha", "bool", "0-1", "int64", "float16", "constant"],
)
def test_pixel_range(X, expected):
    assert tuple(fitted_to(X).pixel_range_) == expected


FIT_ERRORS = {
    "empty": (np.empty((0, 4, 4)), r"Found 0 image\(s\) in X while a minimum of 2"),
    "empty rows": (np.empty((0, 4)), "0 sample"),
    "empty list": ([], "X must hold at least one image; got none"),
    "empty images": (np.empty((3, 0, 4)), r"shape \(H, W\)"),
    "one image": (noise((1, 4, 4)), r"Found 1 image\(s\) in X while a minimum of 2"),
    "one listed": ([noise((4, 4))], r"Found 1 image\(s\)"),
    "one row": (noise((1, 16)), "1 sample"),
    "NaN": (np.where(np.arange(48).reshape(3, 4, 4) == 17, np.nan, 0.0), r"X\[1\] contains NaN"),
    "infinity": (np.full((2, 4, 4), np.inf), r"X\[0\] contains infinity"),
    "huge": (np.full((2, 4, 4), 1e300), "too large for dtype"),
    "huge rows": (np.full((2, 16), -1e300), "too large for dtype"),
    "channels first": (noise((2, 3, 8, 9)), "channels-first: move"),
    "five channels": (noise((2, 8, 9, 5)), "C in 1, 3, 4"),
    "one colour image": (noise((8, 9, 3)), r"one colour image; wrap it as X\[None\]"),
    "video": (noise((2, 3, 8, 9, 3)), r"shape \(H, W\) or \(H, W, C\)"),
    "ragged": ([[[1, 2], [3]], [[1, 2], [3, 4]]], "ragged nested sequences"),
    "ragged rows": (np.array([noise(3), noise(4)], dtype=object), "."),
    "transparent": (
        [noise((4, 4, 3)), noise((4, 4, 4))],
        r"X\[1\] must not have transparent pixels",
    ),
    "kinds differ": ([noise((4, 4)), noise((4, 4), np.uint8)], r"X\[0\] is float, X\[1\] uint8"),
    "words": (
        np.array([["a"] * 4] * 3, dtype=object).reshape(3, 2, 2),
        r"X\[0\] must hold numbers",
    ),
    "strings": (np.full((3, 2, 2), "a"), "real numbers; got dtype <U1"),
    "complex": (noise((3, 2, 2)) * 1j, "real numbers; got dtype complex128"),
    "complex rows": (noise((3, 4)) * 1j, "Complex data not supported"),
    "ragged item": ([noise((4, 4)), [[1, 2], [3]]], r"X\[1\] must hold numbers"),
    "differentiable": ([torch.ones(4, 4, requires_grad=True)] * 2, r"X\[0\] must hold numbers"),
    "listed channels first": ([noise((3, 8, 9))] * 2, "channels-first: move"),
    "alpha": (noise((3, 2, 2, 4)) * 9, "alpha channel must be"),
    "1-D": (noise(9), "Expected 2D array"),
}


@pytest.mark.parametrize(("X", "message"), FIT_ERRORS.values(), ids=FIT_ERRORS)
def test_bad_images_at_fit(X, message):
    with pytest.raises(ValueError, match=message):
        fitted_to(X)


def test_sparse_rows_are_refused():
    with pytest.raises(TypeError, match="[Ss]parse"):
        fitted_to(sparse.eye(4).tocsr())


@pytest.mark.parametrize(
    ("X", "image_shape", "message"),
    [
        (noise((3, 24)), (4, 5), r"image_shape must hold as many pixels .* 20 for 24 features"),
        (noise((3, 24)), (4, 6, 1, 1), r"image_shape must be \(H, W\) or"),
        (noise((3, 24)), (4, -6), r"image_shape must be \(H, W\) or"),
        (noise((3, 24)), (12, 1, 2), "image_shape must hold images"),
        (noise((3, 4, 6)), (6, 4), r"image_shape must be the shape of the images; got \(6, 4\)"),
    ],
)
def test_bad_image_shape(X, image_shape, message):
    with pytest.raises(ValueError, match=message):
        fitted_to(X, image_shape=image_shape)


PREDICT_ERRORS = {
    "size": (noise((3, 4, 4)), noise((3, 4, 5)), r"\(4, 4, 1\), as at fit; got \(4, 5, 1\)"),
    "channels": (noise((3, 4, 4)), noise((3, 4, 4, 3)), r"X\[0\] must be grey, as at fit"),
    "listed channels": (noise((3, 4, 4)), [noise((4, 4, 3))], r"X\[0\] must be grey, as at fit"),
    "features": (noise((3, 4)), noise((3, 5)), "X has 5 features, but"),
    "rows": (noise((3, 2, 2)), noise((3, 5)), "X has 5 features, but"),
    "uint8, 0-1": (noise((3, 4, 4), np.uint8), noise((3, 4, 4)), "uint8 .* 0 to 255.* got float"),
    "0-1, uint8": (noise((3, 4, 4)), noise((3, 4, 4), np.uint8), "float .* 0 to 1.* got uint8"),
    "0-1, 0-255": (noise((3, 4, 4)), 255 * noise((3, 4, 4)), r"X\[0\] must lie near .* 0 to 1 "),
    "far above": (noise((3, 4, 4)), np.full((2, 4, 4), 11.1), r"X\[0\] must lie near"),
    "far below": (noise((3, 4, 4)), np.full((2, 4, 4), -10.1), r"X\[0\] must lie near"),
    "alpha": (noise((3, 4, 4, 4)), np.full((2, 4, 4, 4), 1.02), r"X\[0\] must lie near"),
    "late kind": (
        [noise((4, 4))] * 2,
        [noise((4, 4)), noise((4, 4), np.uint8)],
        r"X\[1\] must hold float pixels",
    ),
    "empty": (noise((3, 4, 4)), np.empty((0, 4, 4)), r"Found 0 image\(s\)"),
}


@pytest.mark.parametrize(("X", "other", "message"), PREDICT_ERRORS.values(), ids=PREDICT_ERRORS)
def test_bad_images_at_predict(X, other, message):
    estimator = fitted_to(X)
    with pytest.raises(ValueError, match=message):
        list(check_images(estimator, other, reset=False))


@pytest.mark.parametrize(
    ("X", "other"),
    [
        (noise((3, 4, 4)), noise((1, 4, 4))),
        (noise((3, 4, 4)), noise((2, 16))),
        (noise((3, 16)), noise((2, 4, 4, 1))),
        (noise((3, 4, 4)), [noise((9, 8)), noise((5, 4))]),
        ([noise((9, 8)), noise((5, 4))], noise((2, 16))),
        (noise((3, 4, 4)) - 3, np.full((2, 4, 4), 2.0)),
        (noise((3, 4, 4)), np.stack([np.full((4, 4), 10.9), np.full((4, 4), -9.9)])),
        (noise((3, 4, 4, 4)), np.full((2, 4, 4, 4), 1.005)),
        (noise((3, 4, 4)), noise((3, 4, 4), seed=1).astype(np.float32)),
    ],
    ids=[
        "fewer",
        "rows",
        "images",
        "list",
        "rows after list",
        "a little outside",
        "not so far outside",
        "rounded alpha",
        "float32",
    ],
)
def test_what_predict_takes(X, other):
    images = check_images(fitted_to(X), other, reset=False)
    assert len(list(images)) == len(other)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (noise((3, 4, 5)), r"\(4, 5, 1\)"),
        (noise((3, 4, 4, 3)), "must be grey"),
        (noise((3, 4, 4), np.uint8), "got uint8 pixels"),
        (np.full((3, 4, 4), np.nan), "contains NaN"),
        (np.full((3, 4, 4), 300.0), "range"),
        (np.full((3, 4, 4), "a"), "real numbers"),
        ([], "at least one image"),
    ],
)
def test_failed_check_does_not_change_the_estimator(X, message):
    valid = noise((3, 4, 4))
    estimator = fitted_to(valid)
    before = copy.deepcopy(vars(estimator))
    assert {"image_shape_", "n_features_in_", "pixel_range_"} <= set(before)
    with pytest.raises(ValueError, match=message):
        list(check_images(estimator, X, reset=False))  # pixels are checked as they are read
    assert vars(estimator) == before
    assert_array_equal(list(check_images(estimator, valid, reset=False)), valid[..., None])


def test_any_sliceable_of_images_will_do():
    stored = noise((3, 4, 5))

    class Store:
        shape, ndim = stored.shape, 3

        def __len__(self):
            return len(stored)

        def __getitem__(self, index):
            return stored[index]

    images = check_images(Estimator(), Store(), reset=True)
    assert_array_equal(np.stack(list(images))[..., 0], stored)
    assert SimpleNamespace(**vars(images)).shape == (4, 5, 1)


def test_paths_are_told_from_a_single_path_and_from_mixed_lists(tmp_path):
    for X in ("images", tmp_path):
        with pytest.raises(ValueError, match=r"list of paths; got the single path.*list_images"):
            check_images(Estimator(), X, reset=True)
    Image.fromarray(noise((4, 5), np.uint8)).save(tmp_path / "grey.png")
    images = check_images(Estimator(), [tmp_path / "grey.png"] * 2, reset=True)
    assert images.sizes([0, 1]) == [(4, 5)] * 2
    assert np.asarray(images.items[1]).dtype == np.uint8


def test_a_given_range_wins():
    for X in (noise((2, 4, 4), np.uint8), noise((2, 4, 4), "u2"), noise((2, 4, 4))):
        estimator = fitted_to(X, pixel_range=(-2, 4095))
        assert estimator.pixel_range_ == (-2.0, 4095.0, kind_of(X.dtype))
    with pytest.raises(ValueError, match="must be 'auto' for images with an alpha channel"):
        fitted_to(noise((2, 4, 4, 4), np.uint8), pixel_range=(0, 4095))


def test_a_pixel_far_from_most_is_warned_of_by_name(tmp_path):
    heights = [noise((20, 20), seed=i) + 25 for i in range(4)]
    heights[2][5, 5] = -9999
    with pytest.warns(
        UserWarning, match=r"X\[2\] has pixels of up to -9999, far .* set pixel_range="
    ):
        fitted_to(heights)
    heights[2][5, 5] = 48
    with pytest.warns(UserWarning, match=r"X\[2\] has pixels of 48, far .* is 25.* to 48.*range="):
        fitted_to(heights)
    fitted_to(heights, pixel_range=(20, 30))  # a warning would be an error


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("fill", [-9999, 0, 1e20])
def test_a_value_of_missing_pixels_is_warned_of_whatever_their_number(share, fill):
    rng = np.random.default_rng(0)
    heights = rng.normal(280, 5, (6, 40, 40))
    heights[rng.random(heights.shape) < share] = fill
    found = rf"X\[0\] has pixels of .*{re.escape(f'{fill:g}')}, far .* and so have 5"
    with pytest.warns(UserWarning, match=found):
        fitted_to(heights)


@pytest.mark.parametrize("share", [0.05, 0.6])
@pytest.mark.parametrize(
    "things",
    [lambda x: 0.4 + 0.01 * x, lambda x: 20 + 200 * x, lambda x: np.where(x > 0.5, 255.0, 128.0)],
    ids=["from 0 to 1", "of much contrast", "of two values"],
)
def test_a_plain_ground_is_no_missing_value(things, share):
    rng = np.random.default_rng(0)
    X = things(rng.random((6, 40, 40)))
    X[:, : int(40 * share)] = 0
    fitted_to(X)  # a warning would be an error


COLOUR, GREY = noise((5, 6, 3), np.uint8), noise((5, 6), np.uint8)
OPAQUE = np.dstack([COLOUR, np.full((5, 6), 255, np.uint8)])


@pytest.mark.parametrize("odd", [GREY, OPAQUE, Image.fromarray(COLOUR).quantize(8)])
@pytest.mark.parametrize("place", [0, 2])
def test_grey_opaque_and_palette_images_among_colours(odd, place):
    X = [COLOUR] * 3
    X[place] = odd
    estimator = fitted_to(X)
    assert estimator.image_shape_ == (None, None, 3)
    for reset in (True, False):
        assert [i.shape for i in check_images(estimator, X, reset=reset)] == [(5, 6, 3)] * 3


@pytest.mark.parametrize(
    ("learned", "new"),
    [(COLOUR, GREY), (COLOUR, OPAQUE), (GREY, np.dstack([GREY] * 3)), (OPAQUE, COLOUR),
     (OPAQUE, GREY)],
)  # fmt: skip
def test_images_of_other_channels_later(learned, new):
    for convert in (list, np.stack):
        estimator = fitted_to(convert([learned] * 2))
        (image,) = check_images(estimator, convert([new]), reset=False)
        assert image.shape == np.atleast_3d(learned).shape
    np.testing.assert_array_equal(image[..., 0], new[..., 0] if new.ndim == 3 else new)


def test_odd_images_are_left_out_of_a_fit_and_replaced_later():
    deep = GREY.astype(np.uint16)
    X = [GREY, deep, GREY, np.dstack([COLOUR, GREY])]
    for where, message in ((X[:2], "must all be of one kind"), ([*X[:1], X[3]], "transparent")):
        with pytest.raises(ValueError, match=message):
            list(check_images(Estimator(), where, reset=True))
    with pytest.warns(UserWarning, match="It is left out") as caught:
        estimator = fitted_to(X, on_error="skip")
    assert [str(w.message)[:4] for w in caught] == ["X[1]", "X[3]"]
    assert all("It is left out." in str(w.message) for w in caught)
    images = check_images(estimator, X, reset=False)
    assert [image.shape for image in images] == [(5, 6, 3), (1, 1, 3), (5, 6, 3), (1, 1, 3)]
    assert images.unreadable == {1, 3}


def test_images_with_missing_pixels_are_left_out():
    X = noise((4, 6, 6))
    X[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"X\[1\] contains NaN. .*on_error='skip'"):
        fitted_to(X)
    with pytest.warns(UserWarning, match=r"X\[1\] contains NaN.* It is left out."):
        estimator = fitted_to(X, on_error="skip")
    images = check_images(estimator, X, reset=False)
    assert len(list(images)) == 4
    assert images.unreadable == {1}


@pytest.mark.parametrize(
    ("learned", "change"),
    [(255, lambda x: x / 255), (1, lambda x: x / 255), (1, lambda x: 2 * x - 1)],
)
def test_images_at_another_scale_are_warned_of_once(learned, change):
    X = learned * noise((8, 9, 9))
    images = check_images(fitted_to(X), X, reset=False)
    list(images)
    images.warn_of_scale()  # a warning would be an error
    images = check_images(fitted_to(X), change(X), reset=False)
    list(images)
    with pytest.warns(UserWarning, match="Nearly none of the images of X seem to be") as caught:
        images.warn_of_scale()
    assert len(caught) == 1
    assert "The first that does not is X[0]." in str(caught[0].message)
    images = check_images(fitted_to(X), [*change(X), X[0]], reset=False)
    list(images)
    images.warn_of_scale()  # one is as at fit: a warning would be an error


@pytest.mark.parametrize("learned", [1, 255, 65535])
def test_few_images_that_were_divided_are_warned_of(learned):
    X = np.random.default_rng(0).uniform(0.05, 0.95, (8, 30, 30))
    estimator = fitted_to(learned * X)
    for n, factor in ((1, 255), (4, 255), (1, 65535)):
        images = check_images(estimator, learned * X[:n] / factor, reset=False)
        list(images)
        with pytest.warns(UserWarning, match=r"on the scale of .* does not is X\[0\]"):
            images.warn_of_scale()


@pytest.mark.parametrize("learned", [1, 255])
@pytest.mark.parametrize(
    "grey",
    [
        lambda rng: np.zeros((2, 30, 30)),
        lambda rng: np.full((2, 30, 30), 0.5),
        lambda rng: rng.integers(0, 2, (2, 30, 30)),
        lambda rng: rng.poisson(1.5, (2, 30, 30)),
        lambda rng: rng.normal(3, 1, (2, 30, 30)),
        lambda rng: rng.normal(128, 1, (2, 30, 30)),
        lambda rng: rng.normal(255, 0.1, (2, 30, 30)),
    ],
    ids=["black", "plain", "bits", "dark", "dark floats", "blank", "white"],
)
def test_few_images_of_little_contrast_are_no_others(learned, grey):
    X = np.random.default_rng(0).uniform(0.05, 0.95, (8, 30, 30))
    new = learned / 255 * grey(np.random.default_rng(1))
    images = check_images(fitted_to(learned * X), new, reset=False)
    list(images)
    images.warn_of_scale()  # a warning would be an error


def test_good_images_are_kept_whatever_is_left_out(tmp_path):
    transparent = np.dstack([COLOUR, GREY])
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    for i in range(3):
        Image.fromarray(transparent).save(tmp_path / f"{i}.png")
        Image.fromarray(GREY).save(tmp_path / f"grey{i}.png")
    deep = tmp_path / "deep.png"
    Image.fromarray(GREY.astype(np.uint16)).save(deep)
    for name, odd, channels in (("", [broken], 4), ("grey", [deep, broken], 1)):
        paths = [*(tmp_path / f"{name}{i}.png" for i in range(3)), *odd]
        with pytest.warns(UserWarning, match="It is left out") as caught:
            estimator = fitted_to(paths, on_error="skip")
        assert len(caught) == len(odd)
        assert estimator.image_shape_ == (None, None, channels)
    with (
        pytest.warns(UserWarning, match="It is left out"),
        pytest.raises(ValueError, match="two images at least that can be used; got one"),
    ):
        fitted_to([tmp_path / "0.png", broken], on_error="skip")


def test_images_far_outside_of_a_given_range_are_left_out():
    X = noise((4, 6, 6))
    X[3] *= 1e6
    with pytest.warns(UserWarning, match=r"X\[3\] must lie near .*It is left out"):
        fitted_to(X, on_error="skip", pixel_range=(0, 1))


def test_each_image_of_a_list_is_converted_once_before_it_is_read():
    class Counted:
        converted = 0

        def __array__(self, dtype=None, copy=None):
            self.converted += 1
            return GREY

    X = [Counted() for _ in range(3)]
    images = check_images(Estimator(), X, reset=True)
    before = [item.converted for item in X]
    list(images)
    assert [item.converted - n for item, n in zip(X, before, strict=True)] == [1] * 3
    assert before[1:] == [1, 1]  # for shape and kind; the first also tells a list of images


@pytest.mark.parametrize("given", [(-2, 4095), (300, 400)])
def test_a_given_range_may_be_wider_than_the_type(tmp_path, given):
    estimator = fitted_to([GREY, GREY], on_error="skip", pixel_range=given)
    images = check_images(estimator, [tmp_path / "nowhere.png"], reset=False)
    assert [image.shape for image in images] == [(1, 1, 1)]


@pytest.mark.parametrize("value", [1e10, -9999.0, 3e38])
def test_a_far_pixel_is_named_and_the_range_is_that_without_it(value):
    X = 25 + 8 * noise((30, 9, 9))
    expected = fitted_to(X)
    X[[4, 20], 3, 3] = value
    with pytest.warns(UserWarning, match="far from all others") as caught:
        estimator = fitted_to(X)
    assert str(caught[0].message).startswith(f"X[4] has pixels of up to {value:g}, far from")
    assert "and so have 1 other image(s)" in str(caught[0].message)
    low, high, _ = expected.pixel_range_
    assert estimator.pixel_range_[:2] == pytest.approx((low, high), rel=0.01)
    assert estimator._seen_pixels == pytest.approx(expected._seen_pixels, rel=0.05)
    for image in check_images(estimator, X, reset=False):
        assert low - 11 * (high - low) <= image.min() <= image.max() <= high + 11 * (high - low)


def test_an_image_at_another_scale_than_the_others_of_a_fit_is_named(tmp_path):
    X = 25 + 8 * noise((20, 9, 9))
    X[0, 0, 0] = np.nan  # left out first, and counted
    X[7] *= 1000
    with pytest.raises(ValueError, match=r"X\[6\] must be at the scale of the other images.*leave"):
        fitted_to(X[1:])
    with pytest.warns(UserWarning, match="It is left out") as caught:
        images = check_images(Estimator(on_error="skip"), X, reset=True)
    assert [str(each.message)[:4] for each in caught] == ["X[0]", "X[7]"]
    assert np.flatnonzero(~images.kept).tolist() == [0, 7]
    assert images.pixel_range.high < 34
    assert len(list(images)) == 18
    given = fitted_to(X[1:], pixel_range=(0, 33_000))
    assert given.pixel_range_[:2] == (0, 33_000)


def test_a_hot_pixel_of_a_camera_does_not_set_the_range():
    X = 500 + noise((12, 20, 20), np.uint16) // 2
    expected = fitted_to(X).pixel_range_
    assert expected.high < 600
    X[5, 3, 3] = 65535
    with pytest.warns(UserWarning, match=r"X\[5\] has pixels of up to 65535"):
        assert fitted_to(X).pixel_range_ == expected
