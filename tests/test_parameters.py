from __future__ import annotations

import numpy as np
import pytest

from skmkd._parameters import resized_shape


@pytest.mark.parametrize("image_size", [(8, 8, 8), (8,), (0, 8), (8.5, 8)])
def test_bad_image_size(image_size):
    with pytest.raises(ValueError, match="image_size must be a side or .* got"):
        resized_shape(image_size)


def test_image_size_of_either_kind():
    assert resized_shape(32) == (32, 32)
    assert resized_shape([16, np.int64(24)]) == (16, 24)
