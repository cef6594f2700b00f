"""Accuracy protocols: cases are what they should be, runs are resumed and not repeated."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
import torchvision
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import baselines, cases, cost, objects, render, runner
from benchmarks.accuracy.cases import DATA_SETS, Case
from benchmarks.accuracy.variants import BothSources, MapScores
from skmkd import MKDDetector

pytestmark = pytest.mark.benchmarks

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (9, 9), dtype=np.uint8)


NAMED = {  # what a method of a name must be, written out
    "the default": {
        "value_weight": 0.0, "direction_weight": 1.0, "direction": "position",
        "image_score": "map_max", "localization": "discrepancy", "normalization": "source",
        "score_layers": None, "localization_params": None, "layer_weights": "auto",
    },
    "layers weighed alike": {"image_score": "map_max", "layer_weights": None},
    "the paper's setting": {
        "value_weight": 1.0, "direction_weight": "auto", "direction": "vector",
        "image_score": "loss", "localization": "gradient", "normalization": None,
        "score_layers": None, "localization_params": None, "layer_weights": None,
    },
    "the authors' settings": {
        "direction_weight": 1.0, "direction": "vector", "image_score": "loss",
        "localization": "gradient", "score_layers": 3, "layer_weights": None,
    },
}  # fmt: skip
TRAINING = ("max_iter", "tol", "batch_size", "learning_rate", "schedule")
AUTHORS = {  # the rest, and epochs, of the protocols that are run with these
    "mnist": (51, 0.01, None), "ablation_authors": (51, 0.01, None),
    "cifar10": (201, 0.01, "source"), "mvtec_ad": (601, 0.5, None),
}  # fmt: skip


# Cases


@pytest.mark.parametrize("name", cases.TEXTURES)
def test_textures_are_learned_on_one_side_and_tested_on_the_other(name):
    case = DATA_SETS["textures"].read(name, None, 0)
    n = len(case.test) // 2
    side = cases.TEXTURES[name][0]
    assert len(case.learn) >= 30
    assert case.learn.shape[1:3] == case.test.shape[1:3] == case.masks.shape[1:] == (side, side)
    assert_array_equal(case.y, np.repeat([1, -1], n))
    assert not case.masks[:n].any()
    assert case.masks[n:].any((1, 2)).all()
    changed = np.not_equal(case.test[:n], case.test[n:])
    changed = changed.any(-1) if changed.ndim == 4 else changed
    assert_array_equal(changed, case.masks[n:])


def test_no_pixel_is_both_learned_and_tested(monkeypatch):
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    monkeypatch.setattr(cases.skimage.data, "brick", lambda: every)
    case = DATA_SETS["textures"].read("brick", None, 0)
    assert not np.isin(case.learn, case.test[case.y == 1]).any()


def test_few_textures_are_some_of_all():
    few, case = (DATA_SETS[name].read("coins", None, 0) for name in ("few_textures", "textures"))
    inside = {image.tobytes() for image in case.learn}
    assert len({image.tobytes() for image in few.learn} & inside) == len(few.learn) == 12
    assert_array_equal(few.test, case.test)


def test_fewer_crops_are_the_first_of_more_and_are_tested_on_the_same():
    names = DATA_SETS["few"].names(None)
    assert [name for name in names if name.startswith("brick")] == [
        f"brick {n}" for n in (2, 5, 10, 20, 40, 80, 160, 500)
    ]
    few, more, other = (
        DATA_SETS["few"].read(name, None, seed)
        for name, seed in (("brick 5", 1), ("brick 500", 1), ("brick 5", 0))
    )
    assert more.learn.shape == (500, 128, 128)
    assert_array_equal(few.learn, more.learn[:5])
    assert (few.learn != other.learn).any()
    assert len({crop.tobytes() for crop in more.learn}) > 450
    case = DATA_SETS["textures"].read("brick", None, 1)
    for one in (few, more):
        for found, expected in zip(one[1:], case[1:], strict=True):
            assert_array_equal(found, expected)


def test_no_pixel_of_random_crops_is_tested(monkeypatch):
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    monkeypatch.setattr(cases.skimage.data, "brick", lambda: every)
    case = DATA_SETS["few"].read("brick 20", None, 0)
    assert len(np.unique(case.learn[:, 0, 0])) > 10  # not all at one place
    assert not np.isin(case.learn, case.test[case.y == 1]).any()


def test_solar_cells_are_polycrystalline_with_sure_labels(tmp_path):
    kinds = [("0.0", "poly")] * 10 + [("1.0", "poly")] * 3 + [("0.33", "poly"), ("0.0", "mono")]
    rows = [f"images/cell{i}.png   {label}   {kind}" for i, (label, kind) in enumerate(kinds)]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    case, other = (DATA_SETS["solar_cells"].read("", tmp_path, seed) for seed in (0, 1))
    numbers = [[int(path.stem[4:]) for path in part] for part in (case.learn, case.test)]
    assert sorted(numbers[0] + numbers[1]) == list(range(13))
    assert len(numbers[0]) == 7  # of ten intact ones
    assert_array_equal(case.y, [1, 1, 1, -1, -1, -1])
    assert numbers[1][3:] == [10, 11, 12]
    assert case.learn != other.learn


@pytest.fixture(scope="module")
def few_plates():
    """A few photographs of the plate of seed 0, the same again, and some of another plate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "PLATES", (1, 1, 2))
        return [DATA_SETS["plates"].read("plates", None, seed) for seed in (0, 0, 1)]


def pixels(paths):
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def test_plates_are_photographs_of_a_plate_with_a_scratch_on_the_bad_ones(few_plates):
    case = few_plates[0]
    images = pixels([*case.learn, *case.test])
    assert images.shape == (4, 2048, 2448, 3)
    assert len({image.tobytes() for image in images}) == 4
    assert_array_equal(case.y, [1, -1, -1])
    assert {mask.shape for mask in case.masks} == {(2048, 2448)}
    assert not case.masks[0].any()
    for image, mask in zip(images[2:].astype(float), case.masks[1:], strict=True):
        regions = skimage.measure.regionprops(skimage.measure.label(mask, connectivity=2))
        assert len(regions) == 1
        height, width = np.ptp(regions[0].coords, axis=0) + 1
        assert 13 <= np.hypot(height, width) <= 33
        assert 25 <= regions[0].area <= 130
        around = ndimage.binary_dilation(mask, iterations=8) ^ ndimage.binary_dilation(
            mask, iterations=3
        )
        assert abs(image[mask].mean() - image[around].mean()) > 30
        assert image[around].min() > 80  # metal, not a hole or the background


def test_plates_are_drawn_from_the_seed_alone(few_plates):
    first, again, other = few_plates
    for found, expected in zip(again.masks, first.masks, strict=True):
        assert_array_equal(found, expected)
    for name in ("learn", "test"):
        assert_array_equal(pixels(getattr(again, name)), pixels(getattr(first, name)))
    means = [pixels(case.learn).mean((0, 3)) for case in (first, other)]
    assert np.abs(means[0] - means[1]).max() > 80  # its holes are elsewhere


@pytest.fixture
def few_gears(monkeypatch):
    """Read a few gears of a kind and seed."""
    monkeypatch.setattr(cases.objects, "GEARS", (4, 3, 8))
    return lambda kind, seed=0: DATA_SETS["moving_objects"].read(kind, None, seed)


@pytest.mark.parametrize("kind", objects.KINDS)
def test_gears_are_whole_or_have_one_small_defect_that_is_plain_to_see(kind, few_gears):
    case = few_gears(kind)
    images = np.concatenate([case.learn, case.test])
    assert images.shape == (15, 256, 256)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 15
    assert_array_equal(case.y, np.repeat([1, -1], [3, 8]))
    assert case.masks.shape == (11, 256, 256)
    assert not case.masks[:3].any()
    for mask in case.masks[3:]:
        assert skimage.measure.label(mask).max() == 1
        assert 30 <= mask.sum() <= 600
        assert mask[1:-1, 1:-1].sum() == mask.sum()


def toothed_rim(image):
    """Whether there is metal at 1440 angles of a circle through the teeth of a gear."""
    smooth = ndimage.gaussian_filter(image.astype(float), 1.5)
    level = skimage.filters.threshold_otsu(smooth)
    y, x = ((smooth > level).any(axis).nonzero()[0] for axis in (1, 0))
    middle, radius = [(a[0] + a[-1]) / 2 for a in (y, x)], (np.ptp(y) + np.ptp(x)) / 4 - 6
    angles = np.linspace(0, 2 * np.pi, 1440, endpoint=False)
    at = [middle[0] + radius * np.sin(angles), middle[1] + radius * np.cos(angles)]
    return ndimage.map_coordinates(smooth, at, order=1) > level


def test_teeth_are_24_or_one_is_missing(few_gears):
    case = few_gears("missing tooth")
    for image, y in zip(case.test, case.y, strict=True):
        rim = toothed_rim(image)
        assert (rim > np.roll(rim, 1)).sum() == (24 if y == 1 else 23)
    for kind in objects.KINDS[1:]:
        for image in few_gears(kind).test:
            rim = toothed_rim(image)
            assert (rim > np.roll(rim, 1)).sum() == 24


def test_smudges_are_darker_and_misprints_are_where_the_print_is(few_gears):
    case = few_gears("smudge")
    for image, mask in zip(case.test[3:], case.masks[3:], strict=True):
        around = ndimage.binary_dilation(mask, iterations=6) & ~mask
        assert np.median(image[mask]) < np.median(image[around]) - 15
    case = few_gears("misprint")
    for image, mask in zip(case.test[3:], case.masks[3:], strict=True):
        metal = image > skimage.filters.threshold_otsu(image)
        top, bottom = (metal.any(1).nonzero()[0][i] for i in (0, -1))
        off = abs(ndimage.center_of_mass(mask)[0] - (top + bottom) / 2)
        assert 30 <= off <= 60


def test_gears_move_and_their_light_varies(few_gears):
    learn = few_gears("smudge").learn
    metal = [image > skimage.filters.threshold_otsu(image) for image in learn]
    assert np.ptp([ndimage.center_of_mass(each) for each in metal], axis=0).min() > 2
    assert np.ptp([np.median(i[m]) for i, m in zip(learn, metal, strict=True)]) > 5


def test_gears_are_drawn_from_the_seed_and_kinds_share_the_good_ones(few_gears):
    smudge, again, misprint = map(few_gears, ["smudge", "smudge", "misprint"])
    for found, expected in zip(again, smudge, strict=True):
        assert_array_equal(found, expected)
    assert_array_equal(misprint.learn, smudge.learn)
    assert_array_equal(misprint.test[:3], smudge.test[:3])
    assert (misprint.test[3:] != smudge.test[3:]).any((1, 2)).all()
    assert (few_gears("smudge", 1).learn != smudge.learn).any((1, 2)).all()


@pytest.mark.parametrize(("data", "n_learn", "n_test"), [("digits", 89, 1708), ("faces", 70, 130)])
def test_small_sets(data, n_learn, n_test):
    data_set = DATA_SETS[data]
    name = data_set.names(None)[0]
    case = data_set.read(name, None, 0)
    assert (len(case.learn), len(case.test), len(case.y)) == (n_learn, n_test, n_test)
    again, other = (data_set.read(name, None, seed).learn for seed in (0, 1))
    assert_array_equal(case.learn, again)
    assert (case.learn != other).any()
    inside = {image.tobytes() for image in case.learn}
    assert sum(image.tobytes() in inside for image in case.test) == 0


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(head + array.tobytes())


def mnist(folder):
    for part, n in (("train", 20), ("t10k", 10)):
        images = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))


def cifar10(folder):
    base = folder / "cifar-10-batches-py"
    base.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        content = {
            "data": RNG.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10)),
        }  # fmt: skip
        (base / name).write_bytes(pickle.dumps(content))
    meta = {"label_names": [f"class {i}" for i in range(10)]}
    (base / "batches.meta").write_bytes(pickle.dumps(meta))


def pictures(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY).save(path)


def brain_mri(folder):  # grey and in colour
    pictures(folder, [f"no/{i}.png" for i in range(13)] + [f"yes/{i}.png" for i in range(4)])
    Image.fromarray(np.stack([GREY] * 3, axis=2)).save(folder / "no" / "3.png")


def head_ct(folder):
    pictures(folder, [f"head_ct/head_ct/{i:03}.png" for i in range(17)])
    rows = ["id, hemorrhage", *(f"{i}, {int(i < 4)}" for i in range(17))]
    (folder / "labels.csv").write_text("\n".join(rows))


def retinal_oct(folder):
    pictures(folder, [f"train/NORMAL/{i}.jpeg" for i in range(3)])
    kinds = ("NORMAL", "CNV", "DME", "DRUSEN")
    pictures(folder, [f"test/{kind}/{i}.jpeg" for kind in kinds for i in range(2)])


def mvtec_ad(folder):
    pictures(folder, [f"thing/{p}.png" for p in ("train/good/0", "train/good/1", "test/good/0")])
    pictures(folder, ["thing/test/hole/0.png", "thing/ground_truth/hole/0_mask.png"])


def btad(folder):
    pictures(folder, [f"01/{p}.png" for p in ("train/ok/0", "train/ok/1", "test/ok/0")])
    pictures(folder, ["01/test/ko/0.png", "01/ground_truth/ko/0.png"])


def visa(folder):
    images = [f"candle/Data/Images/Normal/{i}.JPG" for i in range(3)]
    bad, mask = "candle/Data/Images/Anomaly/0.JPG", "candle/Data/Masks/Anomaly/0.png"
    pictures(folder, [*images, bad, mask, "split_csv/no_category.png"])
    splits = [f"candle,{part},normal,{path}," for part, path in zip(
        ("train", "train", "test"), images, strict=True
    )]  # fmt: skip
    splits = ["object,split,label,image,mask", *splits, f"candle,test,anomaly,{bad},{mask}"]
    (folder / "split_csv" / "1cls.csv").write_text("\n".join(splits))
    kinds = ["image,label,mask", *(f"{path},normal," for path in images), f"{bad},dent,{mask}"]
    (folder / "candle" / "image_anno.csv").write_text("\n".join(kinds))


@pytest.mark.parametrize(
    ("make", "name", "n_cases", "n_learn", "n_normal", "n_anomalous"),
    [
        (mnist, "3", 10, 2, 1, 9),
        (cifar10, "3", 10, 5, 1, 9),
        (brain_mri, "brain_mri", 1, 3, 10, 4),
        (head_ct, "head_ct", 1, 3, 10, 4),
        (retinal_oct, "retinal_oct", 1, 3, 2, 6),
        (mvtec_ad, "thing", 1, 2, 1, 1),
        (btad, "01", 1, 2, 1, 1),
        (visa, "candle", 1, 2, 1, 1),
    ],
)
def test_data_sets_in_their_published_layouts(
    make, name, n_cases, n_learn, n_normal, n_anomalous, tmp_path, monkeypatch
):
    make(tmp_path)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    data_set = DATA_SETS[make.__name__]
    names = data_set.names(tmp_path)
    assert name in names
    assert len(names) == n_cases
    case = data_set.read(name, tmp_path, 0)
    assert len(case.learn) == n_learn
    assert len(case.test) == len(case.y) == n_normal + n_anomalous
    assert ((case.y == 1).sum(), (case.y == -1).sum()) == (n_normal, n_anomalous)
    assert (case.masks is not None) == (make in (mvtec_ad, btad, visa))
    assert len({np.ndim(np.asarray(image)) for image in case.learn}) == 1  # all grey, or paths


@pytest.mark.parametrize("name", ["mnist", "cifar10", "mvtec_ad", "brain_mri", "retinal_oct"])
def test_data_that_nothing_brings_is_asked_for(name):
    with pytest.raises(ValueError, match="--data must name the folder"):
        DATA_SETS[name].read("0", None, 0)


def test_a_folder_without_categories_is_told(tmp_path):
    (tmp_path / "split_csv").mkdir()
    with pytest.raises(ValueError, match="--data must hold a folder for every category; .* none"):
        DATA_SETS["visa"].names(tmp_path)


def test_thinned_cases_keep_both_kinds_and_their_masks():
    case = DATA_SETS["textures"].read("coins", None, 0)
    few = runner.thinned(case, 3)
    assert (len(few.learn), len(few.test), len(few.masks)) == (3, 6, 6)
    assert_array_equal(few.y, np.repeat([1, -1], 3))
    assert [mask.any() for mask in few.masks] == [False] * 3 + [True] * 3
    assert runner.thinned(case, None) is case


# Baselines


def spotted(n, seed):
    """Synthetic smooth images (n, 32, 32), each with a bright spot; and the same without."""
    rng = np.random.default_rng(seed)
    plain = np.linspace(60, 120, 32)[None, :, None] + rng.normal(0, 3, (n, 32, 32))
    bad = plain.copy()
    bad[:, 12:20, 4:12] += 110
    return plain.clip(0, 255).astype(np.uint8), bad.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("PatchNeighbours", {"smoothing_sigma": 1.0}),
        ("PatchNeighbours", {"smoothing_sigma": 1.0, "layers": [0, 1, 2]}),
        ("PositionGaussians", {"smoothing_sigma": 1.0}),
        ("PooledForest", {}),
        ("PooledSVM", {}),
    ],
)
def test_baselines_find_what_is_plain_to_see(name, parameters):
    learn, (good, bad) = spotted(24, 0)[0], spotted(6, 1)
    model = getattr(baselines, name)(image_size=32, precision="float32", **parameters)
    scores = model.fit(learn).score_samples(np.concatenate([good, bad]))
    assert roc_auc_score(np.repeat([1, -1], 6), scores) > 0.95
    if hasattr(model, "localize"):
        maps = model.localize(np.concatenate([good, bad]))
        assert {single.shape for single in maps} == {(32, 32)}
        inside = np.zeros((32, 32), bool)
        inside[12:20, 4:12] = True
        assert all(single[inside].mean() > 1.1 * single[~inside].mean() for single in maps[6:])


def test_neighbours_of_what_was_learned_are_itself():
    learn = spotted(4, 0)[0]
    model = baselines.PatchNeighbours(image_size=32, precision="float32").fit(learn)
    assert_allclose(model.score_samples(learn), 0, atol=0.05)


# Variants


def test_both_sources_are_in_an_ensemble_that_learns_from_all_images():
    learn, (good, bad) = spotted(12, 0)[0], spotted(4, 1)
    both = BothSources(image_size=32, precision="float32").fit(learn)
    scores = both.score_samples(np.concatenate([good, bad]))
    assert scores[:4].min() > scores[4:].max()
    assert both.localize(bad).shape == (4, 32, 32)
    ensemble = both._ensemble
    assert [d.source for d in ensemble.detectors_] == ["vgg16", "efficientnet_lite0"]
    assert ensemble.calibration_scores_ is None


def test_map_scores_sum_up_what_the_default_finds():
    learn, (good, bad) = spotted(8, 0)[0], spotted(4, 1)
    test = np.concatenate([good, bad])
    settings = {"image_size": 32, "random_state": 0, "precision": "float32"}
    constant = {"batch_size": 64, "learning_rate": 1e-3, "schedule": "constant"}
    default = MKDDetector(
        layer_weights=None, max_iter=2, contamination=0.05, **settings, **constant
    ).fit(learn)
    plain = MapScores(share=0.0, standardise="nothing", epochs=2, **settings).fit(learn)
    expected = default.score_samples(test)
    assert_allclose(plain.score_samples(test), expected, rtol=1e-5)
    whole = MapScores(share=1.0, standardise="nothing", epochs=2, **settings).fit(learn)
    maps = default.set_params(opening_size=1).localize(test)
    assert_allclose(whole.score_samples(test), -maps.mean((1, 2)), rtol=1e-4)
    for how in ("layer", "position"):
        usual = MapScores(share=1.0, standardise=how, epochs=2, **settings).fit(learn)
        assert abs(usual.score_samples(learn).mean()) < 1e-3  # training images are usual
        assert usual.score_samples(bad).mean() < usual.score_samples(good).mean()


# Runs


PROTOCOL = """
title = "Toy"
data = "toy"
seeds = [0, 1]
epochs = [1, 2]
[settings]
image_size = 32
precision = "float32"
[methods.MKD]
localization = "discrepancy"
views = { loss = {}, "last layer" = { score_layers = 1 } }
[methods.forest]
estimator = "PooledForest"
[quick]
seeds = [0]
"""


def set_up(folder, patch):
    """Put the toy protocol into a folder, and its data set among the others; return its case."""
    learn, (good, bad) = spotted(6, 0)[0], spotted(3, 1)
    masks = np.zeros((6, 32, 32), bool)
    masks[3:, 12:20, 4:12] = True
    case = Case(learn, np.concatenate([good, bad]), np.repeat([1, -1], 3), masks)
    patch.setitem(DATA_SETS, "toy", cases.DataSet(lambda _: ["a"], lambda *_: case))
    patch.setattr(runner, "PROTOCOLS", folder)
    (folder / "toy.toml").write_text(PROTOCOL)
    return case


@pytest.fixture
def toy(tmp_path, monkeypatch):
    return set_up(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def toy_results(tmp_path_factory):
    """Whole and quick results of the toy protocol."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        set_up(folder, patch)
        return [runner.run("toy", None, folder, quick) for quick in (False, True)]


@pytest.fixture
def whole_file(toy, toy_results, tmp_path):
    return Path(shutil.copy(toy_results[0], tmp_path))


@pytest.fixture
def quick_file(toy, toy_results, tmp_path):
    return Path(shutil.copy(toy_results[1], tmp_path))


def test_runs_are_recorded_and_not_repeated(toy, tmp_path, monkeypatch):
    file = runner.run("toy", None, tmp_path / "results", quick=False)
    runs = json.loads(file.read_text())["runs"]
    assert [(one["method"], one["seed"]) for one in runs] == [
        ("MKD", 0), ("forest", 0), ("MKD", 1), ("forest", 1),
    ]  # fmt: skip
    first = runs[0]["records"]
    assert [(record["view"], record["epoch"]) for record in first] == [
        ("loss", 1), ("last layer", 1), ("loss", 2), ("last layer", 2),
    ]  # fmt: skip
    detector = MKDDetector(
        image_size=32, precision="float32", localization="discrepancy", max_iter=2, tol=None,
        contamination=0.05, random_state=0,
    ).fit(toy.learn)  # fmt: skip
    auroc = 100 * roc_auc_score(toy.y, detector.score_samples(toy.test))
    assert first[2]["image AUROC"] == pytest.approx(auroc)
    maps = np.stack(list(detector.localize(toy.test)))
    pixels = 100 * roc_auc_score(toy.masks.ravel(), maps.ravel())
    assert first[2]["pixel AUROC"] == pytest.approx(pixels)
    assert first[3]["pixel AUROC"] != first[2]["pixel AUROC"]  # of fewer layers
    assert first[2]["epochs run"] == 2
    assert {"pixel AUROC", "AUPRO", "fit s", "score s"} < set(first[2])
    assert [record["epoch"] for record in runs[1]["records"]] == [0]

    def fail(*_):
        raise AssertionError("run again")

    monkeypatch.setattr(runner, "follow", fail)
    assert runner.run("toy", None, tmp_path / "results", quick=False) == file
    assert json.loads(file.read_text())["runs"] == runs


def test_an_interrupted_protocol_goes_on_and_changed_settings_run_again(toy, tmp_path, monkeypatch):
    follow, calls = runner.follow, []

    def interrupted(one, *rest):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(one["method"])
        return follow(one, *rest)

    monkeypatch.setattr(runner, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run("toy", None, tmp_path, quick=False)
    assert calls == ["MKD", "forest"]
    calls = []
    (tmp_path / "toy.toml").write_text(PROTOCOL.replace("[0, 1]", "[1]"))
    runner.run("toy", None, tmp_path, quick=False)
    assert calls == ["MKD", "forest"]
    calls = []
    changed = PROTOCOL.replace('"PooledForest"', '"PooledSVM"')
    (tmp_path / "toy.toml").write_text(changed)
    file = runner.run("toy", None, tmp_path, quick=False)
    assert calls == ["forest", "forest"]
    runs = json.loads(file.read_text())["runs"]
    kinds = ["MKDDetector", "MKDDetector", "PooledSVM", "PooledSVM"]  # seeds of both were kept
    assert [one["settings"]["estimator"] for one in runs] == kinds
    assert [one["seed"] for one in runs] == [0, 1, 0, 1]


def test_runs_side_by_side_find_the_same(tmp_path, monkeypatch):
    (tmp_path / "short.toml").write_text("""
title = "Short"
data = "faces"
seeds = [0, 1]
limit = 6
settings = { image_size = 32 }
methods = { forest = { estimator = "PooledForest" } }
""")
    monkeypatch.setattr(runner, "PROTOCOLS", tmp_path)
    files = [runner.run("short", None, tmp_path / str(n), quick=False, jobs=n) for n in (1, 2)]
    alone, beside = (json.loads(file.read_text())["runs"] for file in files)
    assert [one["seed"] for one in alone] == [one["seed"] for one in beside] == [0, 1]
    for each, other in zip(alone, beside, strict=True):
        assert each["records"][0]["image AUROC"] == other["records"][0]["image AUROC"]


def test_tables_hold_means_of_what_was_run(whole_file, tmp_path, monkeypatch, capsys):
    rows = render.rows_of(whole_file)
    chosen = [r for r in rows if r["method"] == "MKD, loss" and r["epoch"] == 2]
    assert len(chosen) == 2
    mean = np.mean([row["image AUROC"] for row in chosen])
    monkeypatch.setattr(command, "PROTOCOLS", tmp_path)
    arguments = ["accuracy", "toy", "--tables", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    printed = capsys.readouterr().out
    assert "Of a:" in printed
    deviation = np.std([row["image AUROC"] for row in chosen], ddof=1)
    assert f"| MKD, loss | 2 | 2 | {mean:.2f} ± {deviation:.2f} |" in printed
    assert "| forest |  | 2 |" in printed


def test_seeds_that_saw_some_cases_only_wait_for_the_others(quick_file, tmp_path):
    content = json.loads(quick_file.read_text())
    forest = content["runs"][1]
    for case, seed, auroc in (("a", 0, 40.0), ("a", 1, 60.0), ("b", 0, 90.0)):
        records = [forest["records"][0] | {"image AUROC": auroc}]
        content["runs"].append(
            {**forest, "method": "m", "case": case, "seed": seed, "records": records}
        )
    quick_file.write_text(json.dumps(content))
    (tmp_path / "toy.toml").write_text("methods.m = {}\n" + PROTOCOL)
    means, single = render.table(quick_file).split("Image AUROC of each case")
    assert "| m |  | 1 | 65.00 |" in means
    assert "| m | 40.00 | 90.00 |" in single


def test_cases_that_defaults_were_not_chosen_with_stand_apart(quick_file, tmp_path):
    content = json.loads(quick_file.read_text())
    forest = content["runs"][1]
    content["runs"] = [
        {**forest, "case": case, "records": [forest["records"][0] | {"image AUROC": auroc}]}
        for case, auroc in (("a", 40.0), ("b", 90.0), ("c", 80.0))
    ]
    quick_file.write_text(json.dumps(content))
    (tmp_path / "toy.toml").write_text('chosen_with = ["a"]\n' + PROTOCOL)
    means, apart = render.table(quick_file).split("The default was chosen with a at hand.")
    assert "| forest |  | 1 | 70.00 |" in means
    assert "| forest |  | 1 | 85.00 |" in apart


def test_the_readme_quotes_the_best_of_the_baselines(quick_file, tmp_path, monkeypatch):
    content = json.loads(quick_file.read_text())
    mkd, forest = content["runs"]
    named = {"the default": (mkd, 70.0), "the paper's setting": (mkd, 60.0),
             "forest": (forest, 50.04), "MKD": (forest, 40.0)}  # fmt: skip
    content["runs"] = [
        {**one, "method": method, "records": [forest["records"][0] | {"image AUROC": auroc}]}
        for method, (one, auroc) in named.items()
    ]
    (tmp_path / "toy.json").write_text(json.dumps(content))
    methods = [f'methods."{method}" = {{}}\n' for method in named if method.startswith("the")]
    (tmp_path / "toy.toml").write_text("".join(methods) + PROTOCOL)
    monkeypatch.setattr(render, "QUOTED", {"toy": "toys"})
    assert "| toys | image AUROC | 70.0 |  |  | 60.0 | 50.0 forest |" in render.quoted(tmp_path)


def test_a_method_of_fewer_cases_has_no_mean(quick_file):
    content = json.loads(quick_file.read_text())
    content["runs"].append({**content["runs"][1], "case": "b"})
    quick_file.write_text(json.dumps(content))
    means, single = render.table(quick_file).split("Image AUROC of each case")
    assert "Means over 2 cases:" in means
    assert "| forest |" in means
    assert "| MKD, loss |" not in means
    assert "| MKD, loss |" in single


PROTOCOL_NAMES = sorted(path.stem for path in runner.PROTOCOLS.glob("*.toml"))


@pytest.mark.parametrize("name", PROTOCOL_NAMES)
def test_named_settings_are_what_they_are_called(name):
    protocol = runner.read_protocol(name, quick=False)
    for method in protocol["methods"]:
        settings = runner.settings_of(protocol, method)["parameters"]
        for words, expected in NAMED.items():
            if method.removeprefix("MKD, ").startswith(words):
                assert {key: settings[key] for key in expected} == expected
                free = {"device", "image_size", "augmentation", "contamination", *expected}
                if protocol["epochs"] or "epochs" in protocol["methods"][method]:
                    free |= {"max_iter", "tol"}
                if words != "the default" or method.endswith(("one rate", "loss")):
                    free |= set(TRAINING)
                if method.endswith("EfficientNet-Lite0"):
                    free |= {"source"}
                if "registered" in method:
                    free |= {"pose"}
                if words == "the authors' settings":
                    free |= {"value_weight", "normalization", "localization_params"}
                others = {k: v for k, v in MKDDetector().get_params().items() if k in settings}
                assert {k for k in others if settings[k] != others[k]} <= free


@pytest.mark.parametrize("file", sorted(runner.RESULTS.glob("*.json")), ids=lambda f: f.stem)
def test_saved_results_are_of_the_settings_of_today(file):
    protocol = runner.read_protocol(file.stem, quick=False)
    for one in runner.runs_in(file):
        assert one["settings"] == runner.settings_of(protocol, one["method"])


def test_where_features_are_stored_does_not_change_what_a_run_is():
    protocol = runner.read_protocol("textures", quick=False)
    plain = runner.settings_of(protocol, "the default")
    protocol["methods"]["the default"] |= {"feature_store": "a folder"}
    assert runner.settings_of(protocol, "the default") == plain


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_settings_are_those_of_their_program(name):
    protocol = runner.read_protocol(name, quick=False)
    settings = runner.settings_of(protocol, "the authors' settings")
    epochs, weight, normalization = AUTHORS[name]
    assert settings["epochs"] == [epochs]
    assert settings["parameters"]["value_weight"] == weight
    assert settings["parameters"]["normalization"] == normalization


def test_the_page_says_what_the_results_say():
    assert render.PAGE.read_text() == render.page(render.RESULTS)
    readme = render.README.read_text()
    assert readme == render.with_quotes(readme, render.RESULTS)
    table = readme.split(render.MARKS[0])[1].split(render.MARKS[1])[0]
    assert table.count("image AUROC") == len(render.QUOTED)


def test_the_page_leaves_out_what_has_not_run_yet(whole_file, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "PROTOCOLS", tmp_path)
    assert "python -m benchmarks.accuracy toy" in render.page(tmp_path)
    runner.write(whole_file, {"protocol": "toy", "runs": []})
    assert render.page(tmp_path) == render.TITLE


def test_pictures_are_drawn(quick_file, tmp_path):
    render.draw(quick_file, tmp_path / "toy.png")
    with Image.open(tmp_path / "toy.png") as picture:
        assert picture.width > 500


def test_quick_figures_do_not_mix_with_real_ones(whole_file, tmp_path):
    before = whole_file.read_bytes()
    quick = runner.run("toy", None, tmp_path, quick=True)
    assert (quick.stem, whole_file.read_bytes()) == ("toy_quick", before)
    assert len(json.loads(quick.read_text())["runs"]) == 2


def test_results_that_are_not_there_are_asked_for(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "PROTOCOLS", tmp_path)
    arguments = ["accuracy", "toy", "--tables", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        command.main()
    assert "no results of toy yet" in capsys.readouterr().err


@pytest.mark.parametrize("name", PROTOCOL_NAMES)
def test_protocols_name_what_there_is(name):
    for quick in (False, True):
        protocol = runner.read_protocol(name, quick)
        data_set = DATA_SETS[protocol["data"]]
        if "cases" in protocol:
            assert set(protocol["cases"]) <= set(data_set.names(Path(__file__)))
        assert len(protocol["title"]) > 5
        for method in protocol["methods"]:
            settings = runner.settings_of(protocol, method)
            estimator = runner.ESTIMATORS[settings["estimator"]](**settings["parameters"])
            for view in ({}, *settings["views"].values()):
                estimator.set_params(**view)
                if settings["estimator"] in runner.FOLLOWED:
                    estimator._validate_params()
                    estimator._check_options()


# What scoring costs


def test_cost_is_measured_in_time_and_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "METHODS", {"default": MKDDetector})
    file = tmp_path / "cost.json"
    arguments = ["cost", "--runs", "1", "--images", "4", "--side", "32", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.chdir(runner.FOLDER.parents[1])
    cost.main()
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["method"], row["images"], row["ratio"]) == ("default", 4, 1.0)
    assert row["ms an image"] > 0
    assert 1 < row["memory MB"] < 2000
    assert "memory MB" in capsys.readouterr().out
