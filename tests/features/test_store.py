from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Counting, TinySource, tiny_detector
from numpy.testing import assert_array_equal
from sklearn.model_selection import KFold
from torch import nn

from skmkd._features.batches import ImageDataset
from skmkd._features.store import CHECKSUM_BYTES, FeatureStore, checksum, layer_keys
from skmkd._images.checks import Images, PixelRange
from skmkd._images.preparation import Preprocessing
from skmkd._images.tiles import Tiles, Tiling
from skmkd._networks.layers import REDUCTIONS
from skmkd._networks.sources import IDENTITY, build_source

CPU = torch.device("cpu")


def built(source, layers=2, precision="float32"):
    return build_source(source, "auto", layers, REDUCTIONS, (8, 8), CPU, precision, 0).network


def some(n=4, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def stored(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


# One entry per image and layer


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stored_features_are_the_source_s(tmp_path, precision):
    source = Counting(built(TinySource(), precision=precision))
    images = some()
    with torch.no_grad():
        fresh = FeatureStore(tmp_path, source, "x")(images)
        assert source.passes == [4]  # one pass for both layers
        read = FeatureStore(tmp_path, source, "x")(images)
        assert source.passes == [4]
        expected = source(images)
    assert list(read) == list(expected)
    for layer, activations in expected.items():
        assert read[layer].dtype == activations.dtype == getattr(torch, precision)
        assert torch.equal(fresh[layer], activations)
        assert torch.equal(read[layer], activations)
        assert read[layer].is_contiguous(memory_format=torch.channels_last)


def test_orders_batches_subsets_folds_and_single_images_share_entries(tmp_path):
    n = 10
    source = Counting(built(TinySource()))
    X = np.random.default_rng(0).random((n, 8, 8, 3), dtype=np.float32)
    prepare = Preprocessing((8, 8), PixelRange(0.0, 1.0, "float"), *IDENTITY)

    def read(indices, size, batches):
        """Compare features of some images of X, in batches, with the source's."""
        store = FeatureStore(tmp_path, source, "x")
        tiles = Tiles.cut(Images(X[indices], (8, 8, 3)), Tiling())
        data = ImageDataset(tiles, prepare, store, CPU, size)
        for batch in data.batches(batches):
            for layer, activations in source.source(batch.images).items():
                torch.testing.assert_close(batch.target[layer], activations, rtol=1e-5, atol=1e-5)

    read(range(n), 4, [range(4), range(4, 8), range(8, 10)])
    assert source.passes == [4, 4, 2]
    source.passes.clear()
    everything = np.arange(n)
    read(everything[::-1], 4, [range(4), range(4, 8), range(8, 10)])
    read(everything, 7, [range(7), range(7, 10)])
    read(everything, 1, [[i] for i in range(n)])
    read(everything, 4, [[9, 2, 2, 0]])
    for learned, held_out in KFold(3, shuffle=True, random_state=0).split(X):
        read(learned, 4, [range(len(learned))])
        read(held_out, 4, [range(len(held_out))])
    assert source.passes == []
    assert len(stored(tmp_path)) == 2 * n  # two layers


def test_images_without_an_entry_are_computed_together(tmp_path):
    source = Counting(built(TinySource()))
    store = FeatureStore(tmp_path, source, "x")
    images = some(6)
    store(images[[1, 4]])
    source.passes.clear()
    features = store(images[[0, 1, 2, 0, 4, 5]])
    assert source.passes == [3]
    for layer, activations in source.source(images[[0, 1, 2, 0, 4, 5]]).items():
        torch.testing.assert_close(features[layer], activations)


def test_other_images_sources_and_conditions_share_nothing(tmp_path):
    images = some()
    source = Counting(built(TinySource()))
    FeatureStore(tmp_path, source, "x")(images)
    for other, changed, conditions in [
        (source, images + 1e-6, "x"),
        (source, images.transpose(2, 3), "x"),
        (source, images[:, :, :, :4], "x"),
        (source, images, "y"),
        (Counting(built(TinySource(seed=1))), images, "x"),
        (Counting(built(TinySource(), precision="bfloat16")), images, "x"),
    ]:
        other.passes.clear()
        before = len(stored(tmp_path))
        features = FeatureStore(tmp_path, other, conditions)(changed)
        assert other.passes == [4]
        assert len(stored(tmp_path)) == before + 8
        for layer, activations in other.source(changed).items():
            assert torch.equal(features[layer], activations)


def test_layers_are_shared_between_choices_of_layers(tmp_path):
    images = some()
    FeatureStore(tmp_path, built(TinySource(), 1), "x")(images)
    assert len(stored(tmp_path)) == 4
    more = Counting(built(TinySource(), 2))
    features = FeatureStore(tmp_path, more, "x")(images)
    assert more.passes == [4]
    assert len(stored(tmp_path)) == 8
    fewer = Counting(built(TinySource(), 1))
    read = FeatureStore(tmp_path, fewer, "x")(images)
    assert fewer.passes == []
    assert list(read) == ["features.5"]
    assert torch.equal(read["features.5"], features["features.5"])


def test_detectors_of_any_training_share_entries(images, tmp_path):
    for changes in [{}, {"max_iter": 3, "batch_size": 5}, {"critical_layers": 1}, {"cache": None}]:
        detector = tiny_detector(feature_store=tmp_path, **changes).fit(images[:9])
        assert len(stored(tmp_path)) == 2 * 9
    plain = tiny_detector().fit(images[:9])
    detector = tiny_detector(feature_store=tmp_path).fit(images[:9])
    detector.score_samples(images[4:6])
    assert len(stored(tmp_path)) == 2 * 9
    scores = [detector.score_samples(images[::-1]) for _ in range(2)]
    assert len(stored(tmp_path)) == 2 * 12
    assert_array_equal(*scores)
    np.testing.assert_allclose(scores[0], plain.score_samples(images)[::-1], rtol=1e-5)


# What is in the way


class Bomb:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]


def array_file(array):
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


DAMAGES = {
    "empty": lambda _: b"",
    "half a header": lambda whole: whole[:40],
    "a header": lambda whole: whole[:128],
    "truncated": lambda whole: whole[:-1],
    "half": lambda whole: whole[: len(whole) // 2],
    "text": lambda _: b"not an array",
    "zip": lambda whole: b"PK\x03\x04" + whole[4:],
    "magic": lambda whole: flipped(whole, 1),
    "version": lambda whole: flipped(whole, 6),
    "length of the header": lambda whole: flipped(whole, 8),
    "bracket of the header": lambda whole: flipped(whole, 10),
    "type": lambda whole: whole.replace(b"<f4", b"<x4"),
    "shape": lambda whole: whole.replace(b"(4, 4, 4)", b"(4, 4, 9)"),
    "huge shape": lambda whole: whole.replace(b"(4, 4, 4), }   ", b"(4, 4, 4000000)}"),
    "key": lambda whole: whole.replace(b"'descr'", b"'descx'"),
    "quote": lambda whole: whole.replace(b"'descr'", b"'descr "),
    "no checksum": lambda whole: whole[:-CHECKSUM_BYTES],
    "checksum": lambda whole: flipped(whole, len(whole) - 1),
    "number": lambda whole: flipped(whole, 200),
    "other shape": lambda _: array_file(np.zeros((4, 4, 5), np.float32)),
    "other type": lambda _: array_file(np.zeros((4, 4, 4))),
    "brackets": lambda whole: whole.replace(b"(4, 4, 4)", b"(4, 4, 4["),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_computed_and_written_again(tmp_path, damage):
    source = Counting(built(TinySource()))
    images = some()
    expected = FeatureStore(tmp_path, source, "x")(images)
    shapes = {layer: tuple(activations.shape[1:]) for layer, activations in expected.items()}
    assert shapes == {"features.2": (4, 4, 4), "features.5": (8, 2, 2)}
    contents = {path: path.read_bytes() for path in stored(tmp_path)}
    first = next(path for path, content in contents.items() if b"(4, 4, 4)" in content)
    first.write_bytes(DAMAGES[damage](contents[first]))
    assert first.read_bytes() != contents[first]
    source.passes.clear()
    with pytest.warns(UserWarning, match=f"damaged file, .*{first.name}.*computed and") as caught:
        features = FeatureStore(tmp_path, source, "x")(images)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert source.passes == [1]
    for layer, activations in expected.items():
        torch.testing.assert_close(features[layer], activations)
    assert stored(tmp_path) == list(contents)
    assert_array_equal(np.load(first).shape, (4, 4, 4))
    source.passes.clear()
    FeatureStore(tmp_path, source, "x")(images)
    assert source.passes == []


def test_no_flipped_bit_changes_scores(images, tmp_path):
    detector = tiny_detector(feature_store=tmp_path).fit(images)
    scores = detector.score_samples(images)
    contents = {path: path.read_bytes() for path in stored(tmp_path)}
    rng = np.random.default_rng(0)
    n_flips = 0
    while n_flips < 250:
        for path, content in contents.items():
            damaged = bytearray(content)
            damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            n_flips += 1
        with pytest.warns(UserWarning, match="damaged file") as caught:
            assert_array_equal(detector.score_samples(images), scores)
        assert len(caught) == 1  # a call
        assert {path: path.read_bytes() for path in stored(tmp_path)} == contents


@pytest.mark.parametrize("across", ["images", "layers"])
def test_files_that_are_swapped_are_noticed(tmp_path, across):
    source = Counting(built(nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), ["0", "1"]))
    images = some()
    expected = FeatureStore(tmp_path, source, "x")(images)
    files = stored(tmp_path)
    contents = {path: path.read_bytes() for path in files}
    other = next(
        path for path in files[1:] if (path.parent == files[0].parent) == (across == "images")
    )
    files[0].write_bytes(contents[other])
    other.write_bytes(contents[files[0]])
    with pytest.warns(UserWarning, match="damaged file") as caught:
        features = FeatureStore(tmp_path, source, "x")(images)
    assert len(caught) == 1
    assert all(torch.equal(features[layer], a) for layer, a in expected.items())
    assert {path: path.read_bytes() for path in stored(tmp_path)} == contents


def test_a_folder_in_the_place_of_a_file_stays(tmp_path):
    source = Counting(built(TinySource()))
    images = some()
    expected = FeatureStore(tmp_path, source, "x")(images)
    first, second, *_ = stored(tmp_path)
    first.unlink()
    first.mkdir()
    second.unlink()
    with pytest.warns(UserWarning, match="damaged file") as caught:
        features = FeatureStore(tmp_path, source, "x")(images)
    assert len(caught) == 1
    for layer, activations in expected.items():
        torch.testing.assert_close(features[layer], activations)
    assert first.is_dir()
    assert second.is_file()
    assert len(list(tmp_path.rglob("*"))) == 2 + 2 * 4  # nothing else is left


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_named_pipe_in_the_place_of_a_file_is_replaced(tmp_path):
    source = Counting(built(TinySource()))
    images = some()
    expected = FeatureStore(tmp_path, source, "x")(images)
    contents = {path: path.read_bytes() for path in stored(tmp_path)}
    for path in contents:
        path.unlink()
        os.mkfifo(path)
    with pytest.warns(UserWarning, match=r"damaged file, .*named pipe.*computed and") as caught:
        features = FeatureStore(tmp_path, source, "x")(images)
    assert len(caught) == 1
    assert all(torch.equal(features[layer], a) for layer, a in expected.items())
    assert {path: path.read_bytes() for path in stored(tmp_path) if path.is_file()} == contents


def test_a_forged_checksum_runs_no_code(tmp_path):
    folder, trace = tmp_path / "store", tmp_path / "trace"
    source = Counting(built(TinySource()))
    images = some()
    expected = FeatureStore(folder, source, "x")(images)
    file = BytesIO()
    np.save(file, np.array([Bomb(trace)], dtype=object), allow_pickle=True)
    for path in stored(folder):
        path.write_bytes(file.getvalue() + checksum([file.getvalue()], path))
    with pytest.warns(UserWarning, match="damaged file"):
        features = FeatureStore(folder, source, "x")(images)
    assert not trace.exists()
    assert all(torch.equal(features[layer], a) for layer, a in expected.items())


@pytest.mark.parametrize("as_array", [True, False])
def test_pickles_are_neither_read_nor_written(tmp_path, as_array):
    folder, trace = tmp_path / "store", tmp_path / "trace"
    source = Counting(built(TinySource()))
    images = some()
    expected = FeatureStore(folder, source, "x")(images)
    for path in stored(folder):
        assert path.read_bytes().startswith(b"\x93NUMPY")
        assert np.load(path, allow_pickle=False).dtype == np.float32
        if as_array:
            np.save(path, np.array([Bomb(trace)], dtype=object), allow_pickle=True)
        else:
            path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.warns(UserWarning, match="damaged file"):
        features = FeatureStore(folder, source, "x")(images)
    assert source.passes == [4, 4]
    assert not trace.exists()
    for layer, activations in expected.items():
        assert torch.equal(features[layer], activations)


def test_folder_that_cannot_be_written_warns_once(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    source = Counting(built(TinySource()))
    store = FeatureStore(blocked, source, "x")
    with pytest.warns(UserWarning, match="feature store cannot be written.*file") as caught:
        features = store(some())
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = store(some())
    assert source.passes == [4, 4]
    for layer, activations in source.source(some()).items():
        assert torch.equal(features[layer], activations)
        assert torch.equal(again[layer], activations)


def test_scores_without_a_store_that_can_be_written(images, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    detector = tiny_detector().fit(images)
    expected = detector.score_samples(images)
    detector.set_params(feature_store=blocked)
    with pytest.warns(UserWarning, match="feature store cannot be written") as caught:
        assert_array_equal(detector.score_samples(images), expected)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="feature store cannot be written") as caught:
        assert_array_equal(detector.fit(images).score_samples(images), expected)
    assert len(caught) == 2  # one for fit, one for the scores


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_half_written_is_removed(tmp_path, monkeypatch, error):
    def fill(file, *_):
        file.write(b"\x93NUMPY")
        raise error

    monkeypatch.setattr("skmkd._atomic._fill", fill)
    source = Counting(built(TinySource()))
    expected = source.source(some())
    if isinstance(error, OSError):
        with pytest.warns(UserWarning, match="No space left on device"):
            features = FeatureStore(tmp_path, source, "x")(some())
        assert all(torch.equal(features[layer], a) for layer, a in expected.items())
    else:
        with pytest.raises(KeyboardInterrupt):
            FeatureStore(tmp_path, source, "x")(some())
    assert stored(tmp_path) == []


# Keys


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


PROCESS = """
import sys
sys.path[:0] = {folders!r}
from test_store import *
keys = layer_keys(built(TinySource())) | layer_keys(built(Functional(), ["pow"]))
print(keys["features.5"], keys["pow"])
print("ready", flush=True)
sys.stdin.readline()
source = Counting(built(TinySource()))
for images in some(100).split(2):
    features = FeatureStore(sys.argv[1], source, "x")(images)
    for layer, activations in source.source(images).items():
        torch.testing.assert_close(features[layer], activations)
print(sum(source.passes))
"""


@pytest.mark.slow
def test_two_processes_at_once_have_the_same_keys_and_share_a_folder(tmp_path):
    folders = [str(folder) for folder in list(Path(__file__).parents)[:2]]
    run = [sys.executable, "-W", "error", "-c", PROCESS.format(folders=folders), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(run, **pipes) for _ in range(2)]
    keys = [layer_keys(built(TinySource()))["features.5"]]
    keys.append(layer_keys(built(Functional(), ["pow"]))["pow"])
    for process in processes:
        assert_array_equal(process.stdout.readline().split(), keys)
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # both are ready, and start
        process.stdin.write("go\n")
        process.stdin.flush()
    computed = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert 100 <= sum(computed) <= 200
    assert {path.suffix for path in stored(tmp_path)} == {".npy"}
    assert len(stored(tmp_path)) == 2 * 100
    source = Counting(built(TinySource()))
    FeatureStore(tmp_path, source, "x")(some(100))
    assert source.passes == []
