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

import skmkd._features.cache as module
from skmkd._features.batches import Batch
from skmkd._features.cache import byte_budget, feature_cache

N = 7


class Reader:
    """Images of one constant each, and layers computed from them; remembers what was read."""

    def __init__(self, dtype=torch.float32):
        self.read, self.dtype = [], dtype

    def __call__(self, batches):
        for indices in batches:
            self.read.append(list(indices))
            yield self.batch(indices)

    def batch(self, indices):
        images = torch.tensor(list(indices), dtype=torch.float32).view(-1, 1, 1, 1)
        images = images.expand(-1, 3, 4, 4).contiguous(memory_format=torch.channels_last)
        first = (images * 0.1).repeat(1, 2, 1, 1).to(self.dtype)
        return Batch(images, lambda: {"a": first, "b": first[:, :1, :1, :1] + 1})


def bytes_needed(dtype=torch.float32):
    return N * (4 * 48 + dtype.itemsize * (96 + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spare", [0, -1], ids=["in memory", "on disk"])
@pytest.mark.parametrize("batch_size", [3, 7, 20])
def test_cache_serves_what_the_reader_does_to_the_bit(dtype, spare, batch_size):
    reader, expected = Reader(dtype), Reader(dtype)
    budget = bytes_needed(dtype) + spare
    with feature_cache(reader, None, N, batch_size, budget) as read:
        assert sorted(i for indices in reader.read for i in indices) == list(range(N))  # each once
        reader.read.clear()
        for indices in ([0], [6, 2, 2], range(N), [5, 1]):
            got, wanted = next(read([indices])), expected.batch(indices)
            assert torch.equal(got.images, wanted.images)
            assert got.images.is_contiguous(memory_format=torch.channels_last)
            assert list(got.target) == ["a", "b"]
            for layer, activations in wanted.target.items():
                assert got.target[layer].dtype == dtype
                assert torch.equal(got.target[layer], activations)
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
    with feature_cache(Reader(), None, N, 3, bytes_needed()):
        assert opened == []
    with feature_cache(Reader(), None, N, 3, bytes_needed() - 1):
        assert sum(os.fstat(file.fileno()).st_size for file in opened) == bytes_needed()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_files_are_gone_afterwards_whatever_happens(monkeypatch, tmp_path, error):
    opened = temporary_files(monkeypatch, tmp_path)

    def work():
        with feature_cache(Reader(), None, N, 3, 0) as read:
            next(read([[1]]))
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
    with feature_cache(Reader(), None, N, 3, 0):
        assert list(tmp_path.iterdir()) == []


def given_up(reason, space_is_free=lambda: True):
    """Check that a cache that cannot be had warns once, and that images come all the same."""
    anew = Reader()
    with ExitStack() as stack:
        with pytest.warns(UserWarning, match=f"feature cache was given up.*{reason}") as caught:
            read = stack.enter_context(feature_cache(Reader(), anew, N, 3, 0))
        assert space_is_free()
        assert torch.equal(next(read([[4]])).target["a"], Reader().batch([4]).target["a"])
    assert len(caught) == 1
    assert anew.read == [[4]]


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
        with feature_cache(Reader(), None, N, 3, 0) as read:
            assert len(next(read([[1, 2]]))) == 2


def test_errors_of_reading_images_are_not_taken_for_the_disk_s():
    def missing(batches):
        raise FileNotFoundError("no such image")

    with (
        pytest.raises(FileNotFoundError, match="no such image"),
        feature_cache(missing, missing, N, 3, 0),
    ):
        pass


def test_no_budget_no_cache():
    anew = Reader()
    with feature_cache(None, anew, N, 3, None) as read:
        assert read is anew


def test_budgets(monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 1000)
    assert byte_budget("auto") == 250
    assert byte_budget(7) == 7
    assert byte_budget(None) is None
