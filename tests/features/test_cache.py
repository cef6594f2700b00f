from __future__ import annotations

import gc
import os
import shutil
import tempfile
import warnings
from collections import namedtuple
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from conftest import Counting, tiny_detector
from PIL import Image

from skmkd import _base
from skmkd._features.batches import Batch
from skmkd._features.cache import cached
from skmkd._images.image_files import ImageFile

N = 7


class Reader:
    """Images of one constant each, and layers computed from them; notes what is read."""

    device = torch.device("cpu")
    tiles = range(N)

    def __init__(self, dtype=torch.float32, batch_size=3):
        self.read, self.computed, self.dtype = [], 0, dtype
        self.batch_size = batch_size

    def tensors(self, batches):
        for indices in batches:
            self.read.append(list(indices))
            images = torch.tensor(list(indices), dtype=torch.float32).view(-1, 1, 1, 1)
            yield images.expand(-1, 3, 4, 4).contiguous(memory_format=torch.channels_last)

    def features(self, images):
        self.computed += len(images)
        first = (images * 0.1).repeat(1, 2, 1, 1).to(self.dtype)
        return {"a": first, "b": first[:, :1, :1, :1] + 1}

    def batches(self, batches):
        for images in self.tensors(batches):
            yield Batch(images, self.features(images))


def caching(reader, budget, *, with_features=True, required=True):
    return cached(reader, budget, with_features=with_features, required=required)


def bytes_needed(dtype=torch.float32):
    return N * (4 * 48 + dtype.itemsize * (96 + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spare", [0, -1], ids=["in memory", "on disk"])
@pytest.mark.parametrize("batch_size", [3, 7, 20])
def test_the_cache_gives_what_the_dataset_gives_to_the_bit(dtype, spare, batch_size):
    reader, expected = Reader(dtype, batch_size), Reader(dtype)
    with caching(reader, bytes_needed(dtype) + spare) as dataset:
        assert [i for indices in reader.read for i in indices] == list(range(N))  # each once
        assert reader.computed == N
        assert dataset.batch_size == batch_size
        reader.read.clear()
        for indices in ([0], [6, 2, 2], range(N), [5, 1]):
            (got,), (wanted,) = dataset.batches([indices]), expected.batches([indices])
            (images,) = dataset.tensors([indices])
            assert torch.equal(got.images, wanted.images)
            assert torch.equal(images, wanted.images)
            assert got.images.is_contiguous(memory_format=torch.channels_last)
            assert list(got.target) == ["a", "b"]
            for layer, activations in wanted.target.items():
                assert got.target[layer].dtype == dtype
                assert torch.equal(got.target[layer], activations)
    assert reader.read == []
    assert reader.computed == N


@pytest.mark.parametrize("budget", [N * 4 * 48, N * 4 * 48 - 1], ids=["in memory", "on disk"])
def test_without_features_images_are_cached_and_features_computed_each_time(
    budget, monkeypatch, tmp_path
):
    opened = temporary_files(monkeypatch, tmp_path)
    reader, expected = Reader(), Reader()
    with caching(reader, budget, with_features=False) as dataset:
        assert len(opened) == (budget < N * 4 * 48)
        assert [i for indices in reader.read for i in indices] == list(range(N))
        assert reader.computed == 0
        reader.read.clear()
        for n in (1, 2):
            (got,), (wanted,) = dataset.batches([[4, 2]]), expected.batches([[4, 2]])
            assert reader.computed == 2 * n
            assert torch.equal(got.images, wanted.images)
            assert torch.equal(got.target["a"], wanted.target["a"])
    assert reader.read == []


def temporary_files(monkeypatch, tmp_path):
    """Keep temporary files where they can be counted, open ones included."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = []
    make = tempfile.TemporaryFile
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda: opened.append(make(dir=tmp_path)) or opened[-1]
    )
    return opened


def test_memory_is_used_up_to_the_budget_and_disk_past_it(monkeypatch, tmp_path):
    opened = temporary_files(monkeypatch, tmp_path)
    with caching(Reader(), bytes_needed()):
        assert opened == []
    with caching(Reader(), bytes_needed() - 1):
        assert sum(os.fstat(file.fileno()).st_size for file in opened) == bytes_needed()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_files_are_gone_afterwards_whatever_happens(monkeypatch, tmp_path, error):
    opened = temporary_files(monkeypatch, tmp_path)

    def work():
        with caching(Reader(), 0) as dataset:
            next(dataset.batches([[1]]))
            if error:
                raise error

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    gc.collect()
    assert len(opened) == 3
    assert all(file.closed for file in opened)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="temporary files have names there")
def test_files_have_no_name_that_a_killed_process_could_leave(monkeypatch, tmp_path):
    temporary_files(monkeypatch, tmp_path)
    with caching(Reader(), 0):
        assert list(tmp_path.iterdir()) == []


def given_up(reason, space_is_free=lambda: True):
    """Check that there is one warning, if the cache is required, and images all the same."""
    for required in (True, False):
        reader = Reader()
        with ExitStack() as stack, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dataset = stack.enter_context(caching(reader, 0, required=required))
            assert space_is_free()
            reader.read.clear()
            (batch,) = dataset.batches([[4]])
            assert torch.equal(batch.images, torch.full((1, 3, 4, 4), 4.0))
        assert reader.read == [[4]]
        messages = [str(warning.message) for warning in caught]
        assert len(messages) == required
        assert all("The cache was given up" in m and reason in m for m in messages)


def test_full_disk_while_writing(monkeypatch):
    class Full:
        def __init__(self, file):
            self.file, self.written = file, 0

        def write(self, content):
            self.written += content.nbytes
            if self.written > 500:
                raise OSError(28, "No space left on device")
            return self.file.write(content)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    make, opened = tempfile.TemporaryFile, []
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda: opened.append(make()) or Full(opened[-1])
    )
    given_up("No space left on device", lambda: all(file.closed for file in opened))


@pytest.mark.parametrize("broken", ["TemporaryFile", "gettempdir"])
def test_unwritable_disk(monkeypatch, broken):
    def denied():
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, broken, denied)
    given_up("Permission denied")


def test_file_that_cannot_be_mapped(monkeypatch):
    def refused(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(np, "memmap", refused)
    given_up("Cannot allocate memory")


def test_at_most_half_of_the_free_space_is_taken(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2 * bytes_needed() - 2))
    given_up("50% of")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2 * bytes_needed()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with caching(Reader(), 0) as dataset:
            assert len(next(dataset.batches([[1, 2]])).images) == 2


@pytest.mark.parametrize("required", [True, False])
def test_errors_of_reading_images_are_not_taken_for_the_disk_s(required):
    class Missing(Reader):
        def tensors(self, batches):
            raise FileNotFoundError("no such image")

    with (
        pytest.raises(FileNotFoundError, match="no such image"),
        caching(Missing(), 0, required=required),
    ):
        pass


# What fit reads and computes


@pytest.fixture
def passes(monkeypatch):
    """The sizes of all batches that any source computes from now on."""
    build, seen = _base.build_source, []

    def counted(*arguments):
        source = build(*arguments)
        return source._replace(network=Counting(source.network, seen))

    monkeypatch.setattr(_base, "build_source", counted)
    return seen


@pytest.fixture
def paths(tmp_path, images):
    """Files of the images."""
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture
def decoded(monkeypatch):
    """The paths of all files that are decoded from now on."""
    decode, seen = ImageFile.__array__, []

    def counted(self, *args, **kwargs):
        seen.append(self.path)
        return decode(self, *args, **kwargs)

    monkeypatch.setattr(ImageFile, "__array__", counted)
    return seen


EPOCHS = 5


@pytest.mark.parametrize(
    ("changes", "every_epoch"),
    [
        ({}, False),
        ({"cache": 0}, False),
        ({"cache": None}, True),
        ({"augmentation": "mild"}, True),
        ({"augmentation": "mild", "cache": 0}, True),
        ({"augmentation": "mild", "cache": None}, True),
    ],
)
def test_each_file_is_decoded_once_per_fit(paths, images, decoded, passes, changes, every_epoch):
    detector = tiny_detector(max_iter=EPOCHS, **changes)
    detector.fit(paths)
    assert sorted(decoded) == sorted(map(str, paths))
    assert (len(passes) > EPOCHS) is every_epoch
    if not every_epoch:
        assert len(passes) == 1  # the twelve images are one batch
    expected = tiny_detector(max_iter=EPOCHS, **changes).fit(images)
    np.testing.assert_allclose(
        detector.score_samples(images), expected.score_samples(images), rtol=1e-4
    )


@pytest.mark.parametrize(("cache", "budget"), [("auto", 250), (None, 250), (7, 7), (0, 0)])
def test_memory_that_a_cache_may_take(monkeypatch, paths, cache, budget):
    budgets = []

    def noted(dataset, budget, **options):
        budgets.append(budget)
        return cached(dataset, 10**6, **options)

    monkeypatch.setattr(_base, "available_memory", lambda: 1000)
    monkeypatch.setattr(_base, "cached", noted)
    tiny_detector(cache=cache).fit(paths)
    assert budgets == [budget]


class Array:
    """An array that counts how often each of its images is read."""

    ndim = 3

    def __init__(self, images):
        self.images, self.shape, self.read = images, images.shape, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read.append(index)
        return self.images[index]


@pytest.mark.parametrize(("cache", "cached_once"), [(None, False), ("auto", True), (0, True)])
def test_without_a_cache_arrays_are_read_in_every_epoch(images, passes, cache, cached_once):
    array = Array(images[..., 0])
    tiny_detector(max_iter=EPOCHS, cache=cache).fit(array)
    counts = np.bincount(array.read)
    if cached_once:
        assert set(counts[1:]) == {1}  # the kind of number is read from the first
        assert len(passes) == 1
    else:
        assert counts.min() > EPOCHS
        assert len(passes) > EPOCHS


@pytest.mark.parametrize(
    ("changes", "warned"),
    [({}, True), ({"augmentation": "mild"}, True), ({"cache": None}, False)],
)
def test_a_disk_that_is_too_small(monkeypatch, paths, decoded, changes, warned):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(_base, "available_memory", lambda: 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 100))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_detector(max_iter=EPOCHS, **changes).fit(paths)
    assert ["The cache was given up" in str(warning.message) for warning in caught] == [
        True
    ] * warned
    assert all(warning.filename == __file__ for warning in caught)
    assert len(decoded) > EPOCHS * len(paths)
