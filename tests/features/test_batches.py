from __future__ import annotations

import inspect
import threading
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Counting, TinySource, tiny_detector
from numpy.testing import assert_array_equal
from PIL import Image

from skmkd import _runtime
from skmkd._features.batches import (
    ImageDataset,
    consecutive,
    inference_batch_size,
)
from skmkd._images.checks import Images, PixelRange, check_images
from skmkd._images.preparation import Preprocessing
from skmkd._images.tiles import Tiles, Tiling
from skmkd._networks.layers import REDUCTIONS
from skmkd._networks.sources import IDENTITY, build_source

CPU = torch.device("cpu")
SIDE = 512  # of images that are read one at a time


def built(source, layers=2, precision="float32"):
    return build_source(source, "auto", layers, REDUCTIONS, (8, 8), CPU, precision, 0).network


def dataset(images, source=None, size=4):
    prepare = Preprocessing((8, 8), PixelRange(0.0, 1.0, "float"), *IDENTITY)
    tiles = Tiles.cut(images, Tiling())
    return ImageDataset(tiles, prepare, source or built(TinySource()), CPU, size)


@pytest.fixture
def pictures():
    """Ten synthetic images (8, 8, 3)."""
    return Images(np.random.default_rng(0).random((10, 8, 8, 3), dtype=np.float32), (8, 8, 3))


# Features


def test_the_source_computes_features_once_and_only_for_batches(pictures):
    source = Counting(built(TinySource()))
    (images,) = dataset(pictures, source).tensors([[0, 1, 2]])
    assert len(images) == 3
    assert source.passes == []
    (batch,) = dataset(pictures, source).batches([[0, 1, 2]])
    assert source.passes == [3]
    assert torch.equal(batch.images, images)
    assert not any(activations.requires_grad for activations in batch.target.values())


@pytest.mark.parametrize("n", [1, 4, 6, 10])
def test_the_source_computes_a_few_images_at_once_and_none_twice(pictures, n):
    source = Counting(built(TinySource()))
    data = dataset(pictures, source)
    (batch,) = data.batches([range(n)])
    assert max(source.passes) <= 4
    assert sum(source.passes) == n
    expected = source.source(batch.images)
    for target in (batch.target, data.features(batch.images)):
        for layer, activations in expected.items():
            assert len(target[layer]) == n
            torch.testing.assert_close(target[layer], activations)


def test_features_of_an_image_do_not_depend_on_its_batch(pictures):
    alone, last, shuffled = dataset(pictures).batches([[7], range(8), [3, 7, 1]])
    for layer in alone.target:
        assert torch.equal(alone.target[layer][0], last.target[layer][7])
        assert torch.equal(alone.target[layer][0], shuffled.target[layer][1])


def test_features_have_no_gradient_whatever_the_caller_sets(pictures):
    with torch.enable_grad():
        (batch,) = dataset(pictures).batches([[0]])
        assert not batch.images.requires_grad
        assert not any(a.requires_grad for a in batch.target.values())
        assert not any(a.requires_grad for a in dataset(pictures).features(batch.images).values())


def test_consecutive_batches():
    assert consecutive([1, 3, 5, 7, 9], 2) == [[1, 3], [5, 7], [9]]
    assert consecutive(range(4), 2) == [range(2), range(2, 4)]
    assert consecutive([], 2) == []


def test_batches_get_smaller_as_images_grow():
    sizes = [inference_batch_size((s, s), CPU) for s in (32, 64, 128, 1024)]
    assert sizes == [64, 16, 4, 1]
    assert inference_batch_size((128, 128), torch.device("mps")) == 64


@pytest.mark.parametrize(("gigabytes", "n"), [(80, 256), (8, 64), (1, 8)])
def test_batches_on_a_gpu_follow_its_memory(monkeypatch, gigabytes, n):
    monkeypatch.setattr("skmkd._features.batches.gpu_memory", lambda _: (0, gigabytes * 2**30))
    assert inference_batch_size((128, 128), torch.device("cuda")) == n


def test_threads_that_read_ahead_follow_the_stream_of_the_one_that_computes(pictures, monkeypatch):
    follows, reads = {}, set()

    class Noting(Preprocessing):
        def scaled(self, *arguments):
            reads.add(threading.get_ident())
            return super().scaled(*arguments)

    monkeypatch.setattr("skmkd._features.batches.current_stream", lambda device: f"of {device}")
    monkeypatch.setattr(
        "skmkd._features.batches.follow",
        lambda *streams: follows.update({threading.get_ident(): streams}),
    )
    data = dataset(pictures)
    data = replace(data, prepare=Noting(**vars(data.prepare)))
    assert len(list(data.tensors([[0, 1], [2, 3], [4, 5]]))) == 3
    assert reads
    assert {follows.get(thread) for thread in reads} == {("of cpu",)}


# Images


def test_images_of_several_sizes_are_prepared_as_each_alone():
    rng = np.random.default_rng(0)
    shapes = [(9, 5), (9, 5), (4, 4), (9, 5), (8, 8)]
    images = Images([rng.random(shape, dtype=np.float32) for shape in shapes], (None, None, 1))
    data = dataset(images)
    (together,) = data.tensors([[4, 0, 1, 2, 3]])
    assert together.shape == (5, 3, 8, 8)
    assert together.is_contiguous(memory_format=torch.channels_last)
    for single, index in zip(together, [4, 0, 1, 2, 3], strict=True):
        assert_array_equal(single, data.prepare([images.read(index)])[0])


@pytest.mark.parametrize("as_list", [True, False])
def test_large_images_are_prepared_a_few_at_a_time(as_list):
    n, side = 16, 1000
    pixels = np.zeros((n, side, side, 1), np.uint8)
    images = Images(list(pixels) if as_list else pixels, (None if as_list else side,) * 2 + (1,))
    tracemalloc.start()
    list(dataset(images).tensors([range(n)]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (torch.get_num_threads() + 1) * 4 * side * side  # floats of one image a thread


class Items:
    """Images that are filled with their index; they note which threads read them."""

    shape, ndim = (20, SIDE, SIDE), 3

    def __init__(self, together=0):
        self.threads, self.read, self.together = set(), [], together
        self._barrier = threading.Barrier(max(1, together))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        self.threads.add(threading.get_ident())
        self.read.append(index)
        if index == 13:
            raise ValueError("the thirteenth cannot be read")
        if index < self.together:
            self._barrier.wait(30)  # until as many threads have come here
        return np.full((SIDE, SIDE), index / 20, np.float32)


@pytest.fixture
def threads(monkeypatch):
    """Let torch use some threads, and restore that and the note that they were started."""
    before = torch.get_num_threads()
    monkeypatch.setattr(_runtime, "_FORK", dict(_runtime._FORK))
    yield torch.set_num_threads
    torch.set_num_threads(before)


def drawn(batches, taken):
    for indices in batches:
        taken.append(indices)
        yield indices


def values(images):
    return (20 * images[:, 0, 0, 0]).round().int().tolist()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_as_many_threads_as_torch_s_read_images_in_order(threads, n_threads, size):
    threads(n_threads)
    items = Items(together=n_threads)
    tensors = dataset(Images(items, (SIDE, SIDE, 1))).tensors(consecutive(range(12), size))
    assert [values(images) for images in tensors] == [
        list(indices) for indices in consecutive(range(12), size)
    ]
    assert len(items.threads) == n_threads
    assert threading.get_ident() not in items.threads
    assert sorted(items.read) == list(range(12))  # each once


@pytest.mark.parametrize(("n_threads", "size", "ahead"), [(1, 1, 1), (3, 1, 3), (3, 2, 2)])
def test_few_batches_are_read_ahead(threads, n_threads, size, ahead):
    threads(n_threads)
    taken, batches = [], consecutive(range(12), size)
    tensors = dataset(Images(Items(), (SIDE, SIDE, 1))).tensors(drawn(batches, taken))
    assert taken == []
    for n in range(1, 4):
        next(tensors)
        assert len(taken) == n + ahead
    tensors.close()


def test_errors_of_reading_come_in_order_and_end_it(threads):
    threads(2)
    before = threading.active_count()
    tensors = dataset(Images(Items(), (SIDE, SIDE, 1))).tensors([i] for i in range(20))
    assert [values(next(tensors)) for _ in range(13)] == [[i] for i in range(13)]
    with pytest.raises(ValueError, match="the thirteenth cannot be read"):
        next(tensors)
    assert threading.active_count() == before
    assert list(tensors) == []


def test_errors_of_the_batches_are_the_caller_s(pictures):
    def batches():
        yield [0]
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(dataset(pictures).tensors(batches()))
    assert list(dataset(pictures).tensors([])) == []


@pytest.mark.parametrize("of", ["tensors", "batches"])
@pytest.mark.parametrize("end", ["close", "delete", "exhaust"])
def test_no_thread_is_left_when_reading_ends(threads, of, end):
    threads(2)
    before = threading.active_count()
    generator = getattr(dataset(Images(Items(), (SIDE, SIDE, 1))), of)([i] for i in range(12))
    next(generator)
    assert threading.active_count() > before
    if end == "close":
        generator.close()
    elif end == "exhaust":
        list(generator)
    else:
        del generator
    assert threading.active_count() == before


def test_unreadable_files_warn_once_in_the_caller_s_thread_and_line(threads, tmp_path, images):
    threads(3)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    paths[1].write_text("not an image")
    for i in (2, 5):
        paths[i].write_bytes(paths[i].read_bytes()[:100])  # the header is whole
    detector = tiny_detector(on_error="skip").fit(images)
    caught = []

    def show(message, category, filename, lineno, *_):
        caught.append((str(message), filename, lineno, threading.get_ident()))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        scores = detector.score_samples(paths)
        line = inspect.currentframe().f_lineno - 1
    assert {entry[1:] for entry in caught} == {(__file__, line, threading.get_ident())}
    skipped = [message.split(".png")[0][-1] for message, *_ in caught]
    assert skipped == ["1", "2", "5"]
    assert_array_equal(np.isnan(scores), [i in (1, 2, 5) for i in range(6)])
    assert_array_equal(scores[[0, 3, 4]], detector.score_samples(images[[0, 3, 4]]))


def test_unreadable_files_are_warned_of_before_their_batch(tmp_path, images):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    detector = tiny_detector(on_error="skip").fit(images)
    found = check_images(detector, paths, reset=False)
    tensors = detector._dataset(detector._tiles(found)).tensors([[0, 1], [2, 3]])
    with pytest.warns(UserWarning, match=r"0.png.*It is skipped"):
        next(tensors)
    assert len(next(tensors)) == 2
