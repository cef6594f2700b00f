"""Images of several readers are decoded once, and wait for no one without bound."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skmkd._images import shared
from skmkd._images.images import Images
from skmkd._images.shared import SharedImages


class Decoded:
    """An item of X that counts how often it is decoded."""

    def __init__(self, value: int) -> None:
        self.value, self.times = value, 0

    def __array__(self, dtype=None, copy=None):
        self.times += 1
        return np.full((4, 5, 1), self.value, np.uint8)


@pytest.fixture
def items():
    return [Decoded(i) for i in range(10)]


def images_of(items, n_readers=2):
    images = Images(items, (None, None, 1))
    images.kind = "uint8"
    return SharedImages(images, n_readers)


@pytest.mark.parametrize("n_readers", [1, 2, 3])
def test_each_image_is_decoded_once_for_all_readers(items, n_readers):
    images = images_of(items, n_readers)
    for i, item in enumerate(items):
        for _ in range(n_readers):
            assert_array_equal(images.read(i), np.full((4, 5, 1), i))
        assert item.times == 1
        assert not images._waiting


def test_a_reader_may_be_ahead_of_others(items):
    images = images_of(items)
    for _ in range(2):
        for i in range(len(items)):
            images.read(i)
    assert [item.times for item in items] == [1] * 10
    assert not images._waiting


def test_readers_in_threads(items):
    images = images_of(items, 8)
    threads = [Thread(target=lambda: [images.read(i) for i in range(10)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [item.times for item in items] == [1] * 10
    assert not images._waiting


def test_memory_is_bounded_and_what_it_does_not_hold_is_decoded_again(items, monkeypatch):
    monkeypatch.setattr(shared, "MAX_BYTES", 3 * 20)
    images = images_of(items)
    for i in range(10):
        images.read(i)
        assert len(images._waiting) <= 3
    assert list(images._waiting) == [7, 8, 9]
    for i in range(10):
        assert_array_equal(images.read(i), np.full((4, 5, 1), i))
        assert len(images._waiting) <= 3
    assert sum(item.times for item in items) <= 20
