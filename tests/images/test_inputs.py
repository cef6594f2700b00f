from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from skimage.data import brick
from sklearn.base import BaseEstimator

from skmkd._images.checks import check_images
from skmkd._images.inputs import better_line


class Estimator(BaseEstimator):
    def __init__(self, image_shape=None, on_error="raise", pixel_range="auto"):
        self.image_shape, self.on_error, self.pixel_range = image_shape, on_error, pixel_range
        self.max_pixels = 2**28


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(found):
        Image.fromarray(np.full((6, 8, 3), 10 * i, np.uint8)).save(path)
    return found


TABLES = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "array of text": lambda paths: np.array([str(path) for path in paths]),
    "column": lambda paths: np.array(paths, dtype=object)[:, None],
    "column of text": lambda paths: np.array([str(path) for path in paths])[:, None],
    "series": pd.Series,
    "series of text": lambda paths: pd.Series([str(path) for path in paths]),
    "frame": lambda paths: pd.DataFrame({"path": [str(path) for path in paths]}),
    "frame of paths": lambda paths: pd.DataFrame({"path": paths}, index=[7, 3, 9, 1]),
    "index": lambda paths: pd.Index([str(path) for path in paths]),
    "other library": lambda paths: SimpleNamespace(to_numpy=lambda: np.array(paths)),
}


@pytest.mark.parametrize("table", TABLES)
def test_paths_in_any_table(paths, table):
    images = check_images(Estimator(), TABLES[table](paths), reset=True)
    assert images.are_files
    assert [image[0, 0, 0] for image in images] == [0, 10, 20, 30]


def files(paths):
    return [io.BytesIO(path.read_bytes()) for path in paths]


REFUSED = {
    "generator": (lambda p: (path for path in p), r"got generator: give list\(X\)"),
    "map": (lambda p: map(str, p), r"got map: give list\(X\)"),
    "set": (lambda p: set(p), r"got set: give list\(X\), or sorted\(X\)"),
    "values": (lambda p: dict(enumerate(p)).values(), r"got dict_values: give list\(X\)"),
    "two columns": (
        lambda p: pd.DataFrame({"path": list(map(str, p)), "part": range(4)}),
        "a table of 2 columns: give the one of the paths",
    ),
    "missing": (lambda p: [*map(str, p[:2]), None], r"X\[2\] must be a path, .* got None"),
    "NaN": (lambda p: [*map(str, p[:2]), np.nan], r"X\[2\] must be a path, .* got nan"),
    "missing in a frame": (
        lambda p: pd.DataFrame({"path": [str(p[0]), None]}), r"X\[1\] must be a path"
    ),
    "bytes": (lambda p: [path.read_bytes() for path in p], r"X\[0\] is bytes: open .*BytesIO"),
    "uploads": (files, r"X\[0\] is BytesIO: open .*PIL.Image.open"),
    "one upload": (lambda p: files(p)[0], r"got a single BytesIO: give \[image\]"),
    "one image": (lambda p: Image.new("L", (4, 4)), r"got a single Image: give \[image\]"),
    "one path": (lambda p: p[0], r"list of paths; got the single path"),
    "data set": (
        lambda p: torch.utils.data.TensorDataset(torch.zeros(2, 3, 4, 4)),
        r"got TensorDataset. For a data set of pairs, give \[image for image, _ in X\]",
    ),
    "loader": (
        lambda p: torch.utils.data.DataLoader([torch.zeros(3, 4, 4)] * 2), "got DataLoader"
    ),
    "pairs": (lambda p: [(np.zeros((4, 4)), 0)] * 2, r"X\[0\] is a pair: give \[image for image"),
    "a path among images": (lambda p: [np.eye(4), p[0]], r"X\[0\] must be a path, .* ndarray"),
    "dict": (lambda p: {"image": p}, "got dict"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_says_what_to_give(paths, kind):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as caught:
        check_images(Estimator(), make(paths), reset=True)
    assert "\\x" not in str(caught.value)


def test_one_grey_image_is_told_from_rows():
    fitted = Estimator()
    check_images(fitted, np.zeros((3, 20, 24), np.uint8), reset=True)
    with pytest.raises(ValueError, match=r"shape \(20, 24\), that of one image; wrap it as X\[No"):
        check_images(fitted, np.zeros((20, 24), np.uint8), reset=False)


def test_a_series_of_images_is_a_list():
    images = check_images(Estimator(), pd.Series([np.eye(4), np.ones((5, 6))]), reset=True)
    assert [image.shape for image in images] == [(4, 4, 1), (5, 6, 1)]


@pytest.mark.parametrize("broken", ["truncated", "closed"])
def test_an_image_of_pillow_that_cannot_be_decoded_is_named(paths, broken):
    if broken == "truncated":
        paths[1].write_bytes(paths[1].read_bytes()[:50])
    with Image.open(paths[0]) as first, Image.open(paths[1]) as second:
        if broken == "closed":
            second.close()
        with pytest.raises(ValueError, match=r"X\[1\] \(.*1.png\) cannot be read: ."):
            list(check_images(Estimator(), [first, second], reset=True))


def test_masked_pixels_are_refused():
    X = np.ma.masked_less(np.linspace(0, 1, 48).reshape(3, 4, 4), 0.2)
    with pytest.raises(ValueError, match=r"X\[0\] has masked pixels; fill them"):
        check_images(Estimator(), X, reset=True)


def test_a_square_of_rows_may_be_one_image():
    fitted = Estimator()
    check_images(fitted, np.zeros((3, 4, 4), np.uint8), reset=True)
    with pytest.warns(
        UserWarning, match=r"shape \(16, 16\), and each .* image of 4 x 4. If X is one"
    ):
        assert len(check_images(fitted, np.zeros((16, 16), np.uint8), reset=False)) == 16


def test_one_colour_image_with_its_channels_first():
    fitted = Estimator()
    check_images(fitted, np.zeros((2, 6, 8, 3), np.uint8), reset=True)
    with pytest.raises(ValueError, match=r"looks like one colour image with its channels first"):
        check_images(fitted, torch.zeros(3, 6, 8, dtype=torch.uint8), reset=False)
    assert len(check_images(fitted, np.zeros((3, 6, 8, 1), np.uint8), reset=False)) == 3


def test_a_pil_image_has_the_pixels_of_its_file(tmp_path):
    turned = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(6, 8, 3)).quantize(9).save(
        tmp_path / "palette.png"
    )
    for name in ("turned.png", "palette.png"):
        path = tmp_path / name
        from_path = check_images(Estimator(), [path] * 2, reset=True).read(0)
        with Image.open(path) as opened:
            from_image = check_images(Estimator(), [opened] * 2, reset=True).read(0)
        assert_array_equal(from_image, from_path)
        assert from_image.dtype == from_path.dtype


# Flattened rows


def crops(height, width, channels=1):
    rng = np.random.default_rng(0)
    places = rng.integers(0, 512 - 64, (10, 2))
    photograph = brick()[..., None] if channels == 1 else colour_photograph()
    return np.stack([photograph[r : r + height, c : c + width] for r, c in places])


def colour_photograph():
    grey = brick().astype(float)
    return np.stack([grey, 0.7 * grey, 0.4 * grey], axis=2).astype(np.uint8)


@pytest.mark.parametrize("side", [16, 28, 48, 60, 64])
def test_rows_of_square_grey_images_are_taken_for_such(side):
    X = crops(side, side).reshape(10, -1)
    assert better_line(X, side) is None
    fitted = Estimator()
    check_images(fitted, X, reset=True)
    assert fitted.image_shape_ == (side, side, 1)


@pytest.mark.parametrize(
    "shape",
    [(48, 64, 3), (64, 48, 3), (64, 36, 1), (36, 64, 1), (64, 64, 3), (50, 40, 1), (30, 40, 3)],
)
def test_rows_that_are_no_square_grey_images_are_warned_of(shape):
    X = crops(*shape).reshape(10, -1)
    with pytest.warns(UserWarning, match=r"but their pixels repeat after \d+. Set image_shape to"):
        check_images(Estimator(), X, reset=True)
    given = Estimator(image_shape=shape)
    check_images(given, X, reset=True)  # a warning would be an error
    assert given.image_shape_ == shape


def test_a_smooth_signal_is_an_image_of_one_row():
    phases = np.random.default_rng(0).random((6, 1))
    signals = np.sin(np.linspace(0, 3, 600) + phases)
    fitted = Estimator()
    check_images(fitted, signals, reset=True)
    assert fitted.image_shape_ == (1, 600, 1)


def test_noise_has_no_better_line():
    X = np.random.default_rng(0).random((20, 2304))
    assert better_line(X, 48) is None
    assert better_line(X[:, :1000], 1000) is None
    assert better_line(np.zeros((2, 4)), 2) is None


def test_files_of_more_pixels_than_allowed_are_refused(paths):
    few = Estimator()
    few.max_pixels = 47
    with pytest.raises(ValueError, match=r"0.png .* 8 x 6 pixels, and max_pixels is 47"):
        check_images(few, paths, reset=True)
    few.max_pixels = 48
    assert len(list(check_images(few, paths, reset=True))) == 4
