from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from conftest import Counting, TinySource
from numpy.testing import assert_array_equal
from torch import nn

from skmkd._features.batches import (
    Batch,
    Observer,
    Recall,
    batch_size,
    fixed_batches,
    layer_keys,
    read_ahead,
)
from skmkd._images.checks import Images, PixelRange
from skmkd._images.preparation import Preprocessing
from skmkd._networks.layers import REDUCTIONS
from skmkd._networks.sources import IDENTITY, build_source

CPU = torch.device("cpu")


def recalling(source, memory, conditions="x"):
    return Recall(source, layer_keys(source), memory, conditions)


def built(source, layers=2, precision="float32"):
    return build_source(source, "auto", layers, REDUCTIONS, (8, 8), CPU, precision, 0).network


def observer(look, size=4):
    prepare = Preprocessing((8, 8), PixelRange(0.0, 1.0, "float"), *IDENTITY)
    return Observer(prepare, look, CPU, size)


@pytest.fixture
def pictures():
    """Ten synthetic images (8, 8, 3)."""
    return Images(np.random.default_rng(0).random((10, 8, 8, 3), dtype=np.float32), (8, 8, 3))


def test_the_source_looks_only_when_asked_and_only_once(pictures):
    source = Counting(built(TinySource()))
    batch = next(observer(source)(pictures, [[0, 1, 2]]))
    assert len(batch) == 3
    assert source.passes == []
    first, second = batch.target, batch.target
    assert first is second
    assert source.passes == [4]


@pytest.mark.parametrize("n", [1, 4, 6, 10])
def test_the_source_sees_batches_of_one_size(pictures, n):
    source = Counting(built(TinySource()))
    batch = next(observer(source)(pictures, [range(n)]))
    target = batch.target
    assert set(source.passes) == {4}
    expected = source.source(batch.images)
    for layer, activations in expected.items():
        assert len(target[layer]) == n
        torch.testing.assert_close(target[layer], activations)


def test_an_image_is_seen_alike_wherever_it_comes(pictures):
    look = observer(built(TinySource()))
    alone, last, shuffled = look(pictures, [[7], range(8), [3, 7, 1]])
    for layer in alone.target:
        assert torch.equal(alone.target[layer][0], last.target[layer][7])
        assert torch.equal(alone.target[layer][0], shuffled.target[layer][1])


def test_observing_needs_no_gradient_whatever_the_caller_wants(pictures):
    with torch.enable_grad():
        batch = next(observer(built(TinySource()))(pictures, [[0]]))
        assert not any(a.requires_grad for a in batch.target.values())


class Slow:
    """Images that note when each batch of them is read."""

    def __init__(self):
        self.read = [threading.Event() for _ in range(4)]

    def __getitem__(self, indices):
        self.read[indices[0]].set()
        if indices[0] == 3:
            raise ValueError("not an image")
        return list(indices)


def test_the_next_batch_is_read_while_one_is_at_work_and_no_more():
    images = Slow()
    batches = read_ahead(images, ([i] for i in range(4)))
    assert next(batches) == [0]
    assert images.read[1].wait(60)
    assert not images.read[2].is_set()
    assert [next(batches), next(batches)] == [[1], [2]]
    with pytest.raises(ValueError, match="not an image"):
        next(batches)
    assert list(read_ahead(images, [])) == []


def test_reading_ends_with_whoever_asked():
    before = threading.active_count()
    batches = read_ahead(Slow(), ([i] for i in range(3)))
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_fixed_batches_pad_the_tail_with_its_last_image():
    def read(batches):
        for indices in batches:
            images = torch.tensor(list(indices)).view(-1, 1, 1, 1)
            yield Batch(images, partial(dict, a=10 * images))

    batches = list(fixed_batches(read, [1, 3, 5, 7, 9], 2))
    assert [list(chosen) for chosen, _ in batches] == [[1, 3], [5, 7], [9]]
    assert [b.images.flatten().tolist() for _, b in batches] == [[1, 3], [5, 7], [9, 9]]
    assert [b.target["a"].flatten().tolist() for _, b in batches][1:] == [[50, 70], [90, 90]]


def test_a_padded_batch_pads_what_the_source_saw():
    batch = Batch(torch.rand(2, 3, 4, 4), lambda: {"a": torch.rand(2, 5, 2, 2)})
    padded = batch.padded(4)
    assert padded.images.shape == (4, 3, 4, 4)
    assert torch.equal(padded.target["a"][1:], batch.target["a"][1:].expand(3, -1, -1, -1))
    assert batch.padded(2) is batch


def test_batches_get_smaller_as_images_grow():
    sizes = [batch_size((s, s), CPU, "float32") for s in (32, 64, 128, 1024)]
    assert sizes == [32, 8, 2, 1]
    assert batch_size((128, 128), CPU, "bfloat16") == 8
    assert batch_size((128, 128), torch.device("cuda"), "bfloat16") == 64


# The store


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recall_gives_what_the_source_gives_and_spares_it(tmp_path, precision):
    source = Counting(built(TinySource(), precision=precision))
    images = torch.rand(4, 3, 8, 8)
    memory = joblib.Memory(tmp_path, verbose=0)
    with torch.no_grad():
        fresh = recalling(source, memory)(images)
        assert source.passes == [4]  # one pass for both layers
        recalled = recalling(source, memory)(images)
        assert source.passes == [4]
        expected = source(images)
    for layer, activations in expected.items():
        assert recalled[layer].dtype == activations.dtype == getattr(torch, precision)
        assert torch.equal(fresh[layer], activations)
        assert torch.equal(recalled[layer], activations)
        assert recalled[layer].is_contiguous(memory_format=torch.channels_last)


def test_recall_tells_apart_images_sources_layers_and_conditions(tmp_path):
    memory = joblib.Memory(tmp_path, verbose=0)
    images = torch.rand(4, 3, 8, 8)
    counting = Counting(built(TinySource()))
    recalling(counting, memory)(images)
    for other_source, other_images, conditions in [
        (counting, images + 1e-6, "x"),
        (counting, images.flip(0), "x"),
        (counting, images[:3], "x"),
        (counting, images, "y"),
        (Counting(built(TinySource(seed=1))), images, "x"),
    ]:
        before = len(other_source.passes)
        recalling(other_source, memory, conditions)(other_images)
        assert len(other_source.passes) == before + 1


def test_recall_shares_layers_between_choices_of_layers(tmp_path):
    memory = joblib.Memory(tmp_path, verbose=0)
    images = torch.rand(4, 3, 8, 8)
    recalling(built(TinySource(), 2), memory)(images)
    fewer = Counting(built(TinySource(), 1))
    recalled = recalling(fewer, memory)(images)
    assert fewer.passes == []
    assert list(recalled) == ["features.5"]


def test_recall_reads_a_store_that_is_mapped_read_only(tmp_path):
    images = torch.rand(4, 3, 8, 8)
    source = built(TinySource())
    for _ in range(2):
        recalled = recalling(source, joblib.Memory(tmp_path, mmap_mode="r", verbose=0))(images)
    for layer, activations in source(images).items():
        assert torch.equal(recalled[layer], activations)


def test_keys_cover_the_weights_and_operations_before_a_layer_only():
    keys = layer_keys(built(TinySource()))
    assert list(keys) == ["features.2", "features.5"]
    late = TinySource()
    late.features[3].weight.data.mul_(2)
    changed = layer_keys(built(late))
    assert changed["features.2"] == keys["features.2"]
    assert changed["features.5"] != keys["features.5"]


def test_keys_cover_what_a_layer_without_weights_does():
    pools = [  # all of the same shape, and the averages of the same repr
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    ]
    keys = [layer_keys(built(nn.Sequential(pool), ["0"]))["0"] for pool in pools]
    assert len(set(keys)) == 4
    assert layer_keys(built(nn.Sequential(nn.MaxPool2d(2)), ["0"]))["0"] == keys[0]


class Functional(nn.Module):
    """A source of functions, operators, a parameter and a method."""

    def __init__(self, power=2):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(1))
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        nn.init.constant_(self.first.weight, 0.1)
        nn.init.constant_(self.first.bias, 0.1)
        self.power = power

    def forward(self, images):
        x = nn.functional.max_pool2d(torch.relu(self.first(images) + self.shift), 2)
        return x.pow(self.power)


def test_keys_cover_functions_and_their_arguments():
    layers = ["pow"]
    keys = [layer_keys(built(Functional(power), layers))["pow"] for power in (2, 2, 3)]
    assert keys[0] == keys[1] != keys[2]


def test_keys_are_the_same_in_another_process():
    folders = [str(folder) for folder in list(Path(__file__).parents)[:2]]
    program = (
        f"import sys; sys.path[:0] = {folders!r}\n"
        "from test_batches import *\n"
        "print(layer_keys(built(TinySource()))['features.5'], "
        "layer_keys(built(Functional(), ['pow']))['pow'])"
    )
    run = [sys.executable, "-c", program]
    printed = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    keys = [layer_keys(built(TinySource()))["features.5"]]
    keys.append(layer_keys(built(Functional(), ["pow"]))["pow"])
    assert_array_equal(printed, keys)
