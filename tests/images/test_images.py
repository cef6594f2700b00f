from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.base import BaseEstimator

from skmkd._images.checks import check_images
from skmkd._images.image_files import UnreadableImageError


class Estimator(BaseEstimator):
    def __init__(self, on_error="raise"):
        self.image_shape, self.on_error, self.pixel_range = None, on_error, "auto"
        self.max_pixels = 2**28


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 200, shape, dtype=np.uint8)


def written(folder, n):
    """Write n images of 9 x 6 pixels and return their paths."""
    paths = [folder / f"{i}.png" for i in range(n)]
    for i, path in enumerate(paths):
        Image.fromarray(noise((6, 9, 3), seed=i)).save(path)
    return paths


def test_headers_of_files_are_read_and_pixels_when_they_are_needed(tmp_path):
    paths = written(tmp_path, 4)
    paths[3].write_bytes(paths[3].read_bytes()[:60])  # its header is whole
    images = check_images(Estimator(), paths, reset=True)
    assert images.are_files
    assert images.sizes(range(4)) == [(6, 9)] * 4
    assert_array_equal(images.read(1), noise((6, 9, 3), seed=1))
    with pytest.raises(UnreadableImageError, match=r"3.png"):
        images.read(3)
    with pytest.raises(UnreadableImageError, match=r"nowhere.png"):
        check_images(Estimator(), [*paths, tmp_path / "nowhere.png"], reset=True)


def test_unreadable_files_are_replaced_and_warned_of_once(tmp_path):
    estimator = Estimator(on_error="skip")
    check_images(estimator, noise((3, 6, 9, 3)), reset=True)
    paths = [*written(tmp_path, 3), tmp_path / "nowhere.png"]
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    images = check_images(estimator, paths, reset=False)
    assert images.sizes([3]) == [(1, 1)]
    for _ in range(2):
        assert [image.shape for image in images] == [(6, 9, 3)] * 2 + [(1, 1, 3)] * 2
    assert images.unreadable == {2, 3}
    with pytest.warns(UserWarning, match="It is skipped") as caught:
        images.warn_of_unreadable(range(4))
    for warning, name in zip(caught, ("2.png", "nowhere.png"), strict=True):
        assert name in str(warning.message)
        assert str(warning.message).endswith("It is skipped.")
    images.warn_of_unreadable(range(4))  # a second warning would be an error
    with pytest.warns(UserWarning, match="It is left out") as caught:
        assert len(check_images(estimator, paths, reset=True)) == 2
    assert len(caught) == 2


def test_nothing_is_left_if_no_file_can_be_read(tmp_path):
    with (
        pytest.warns(UserWarning, match="It is left out"),
        pytest.raises(ValueError, match="got 2, and none can"),
    ):
        check_images(Estimator(on_error="skip"), [tmp_path / name for name in "ab"], reset=True)
