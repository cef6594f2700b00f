"""What is learned from and what is judged: the cases of every data set, read from where they are.

A case is one normal class, texture or category. Offline are the images that come with
scikit-image, scikit-learn and Debian's package dataset-fashion-mnist, and plates and gears that
are drawn; the others lie in a folder that the user names, in their published layouts.
"""

from __future__ import annotations

import atexit
import csv
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, NamedTuple

import numpy as np
import skimage
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from benchmarks import fashion_mnist
from benchmarks.accuracy import objects
from skmkd import datasets
from skmkd.datasets import list_images, make_defects


class Case(NamedTuple):
    """One question to a detector.

    Parameters
    ----------
    learn : sequence of images
        Normal images.
    test : sequence of n images
        Normal images and anomalies.
    y : ndarray of shape (n,)
        +1 for normal images, -1 for anomalies.
    masks : sequence of n ndarrays of shape (H, W), or None
        True = anomalous.
    """

    learn: Any
    test: Any
    y: np.ndarray
    masks: Any = None


class DataSet(NamedTuple):
    """Names of cases, and what reads one: by its name, the folder of the data, and a seed."""

    names: Callable[[Path | None], list[str]]
    read: Callable[[str, Path | None, int], Case]


def labels(n_normal: int, n_anomalous: int) -> np.ndarray:
    """Return +1 for normal images, then -1 for anomalies."""
    return np.repeat([1, -1], [n_normal, n_anomalous])


def spaced(indices: np.ndarray, n: int) -> np.ndarray:
    """Choose n of the indices, evenly spaced, or all if there are fewer."""
    return indices[np.linspace(0, len(indices) - 1, min(n, len(indices))).astype(int)]


# Offline

TEXTURES = {  # side of a crop and step between crops, in pixels of the photograph
    "brick": (128, 32),
    "grass": (128, 32),
    "gravel": (128, 32),
    "immunohistochemistry": (128, 32),
    "hubble_deep_field": (128, 64),
    "moon": (128, 32),
    "coins": (64, 24),
}


def texture(name: str, _: Path | None, seed: int) -> Case:
    """Learn crops of a photograph's left part; test those of its right part, whole and spoiled."""
    side, step = TEXTURES[name]
    photograph = getattr(skimage.data, name)()
    half = photograph.shape[1] // 2
    learn, good = (crops(part, side, step) for part in (photograph[:, :half], photograph[:, half:]))
    bad, masks = make_defects(good, random_state=seed)
    truth = np.concatenate([np.zeros_like(masks), masks])
    return Case(learn, np.concatenate([good, bad]), labels(len(good), len(bad)), truth)


def few_crops(name: str, data: Path | None, seed: int) -> Case:
    """Learn twelve of a texture's crops, evenly spaced."""
    case = texture(name, data, seed)
    return case._replace(learn=case.learn[spaced(np.arange(len(case.learn)), 12)])


FEW = {  # crops to learn from, of how many
    f"{name} {n}": (name, n)
    for name in ("brick", "gravel", "immunohistochemistry")
    for n in (2, 5, 10, 20, 40, 80, 160, 500)
}


def random_crops(name: str, data: Path | None, seed: int) -> Case:
    """Learn the first n crops at random places of a photograph's left part; test as `texture`."""
    name, n = FEW[name]
    side = TEXTURES[name][0]
    photograph = getattr(skimage.data, name)()
    left = photograph[:, : photograph.shape[1] // 2]
    rng = np.random.default_rng(seed)
    last = np.array(left.shape[:2]) - side  # top and left of the crop in the corner
    places = rng.integers(0, last, (n, 2), endpoint=True)
    learn = np.stack([left[y : y + side, x : x + side] for y, x in places])
    return texture(name, data, seed)._replace(learn=learn)


def crops(photograph: np.ndarray, side: int, step: int) -> np.ndarray:
    """Cut square crops, one every step: (n, side, side) or (n, side, side, C)."""
    tops, lefts = (range(0, length - side + 1, step) for length in photograph.shape[:2])
    return np.stack([photograph[y : y + side, x : x + side] for y in tops for x in lefts])


def digits(name: str, _: Path | None, seed: int) -> Case:
    """Learn a half of one digit; test its other half and all other digits."""
    images, digit = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    inside = np.random.default_rng(seed).permutation(images[digit == int(name)])
    half = len(inside) // 2
    outside = images[digit != int(name)]
    test = np.concatenate([inside[half:], outside])
    return Case(inside[:half], test, labels(len(inside) - half, len(outside)))


def faces(_: str, __: Path | None, seed: int) -> Case:
    """Learn 70 faces of LFW; test 30 others and 100 crops of no face."""
    images = skimage.data.lfw_subset()
    faces = np.random.default_rng(seed).permutation(images[:100])
    return Case(faces[:70], np.concatenate([faces[70:], images[100:]]), labels(30, 100))


def mnist(name: str, data: Path | None, _: int) -> Case:
    """Learn one class of (Fashion-)MNIST; test the whole test set."""
    folder = fashion_mnist.DEBIAN if data is None else data
    parts = (fashion_mnist.load(folder, part) for part in ("train", "t10k"))
    return one_class(int(name), *next(parts), *next(parts))


def one_class(
    normal: int, images: np.ndarray, classes: np.ndarray, test: np.ndarray, truth: np.ndarray
) -> Case:
    """Learn one class of the training images; test all test images."""
    return Case(images[classes == normal], test, np.where(truth == normal, 1, -1))


# Drawn

PLATE = (2048, 2448)  # height and width of a photograph, in pixels
PLATES = (40, 20, 20)  # photographs to learn from, good ones to test, bad ones to test
SHIFT = 4  # of the plate between photographs, in pixels at most
CONTRAST = (80, 110)  # between a scratch and the metal, in grey levels
LIGHT = 0.02  # standard deviation of the light, as a share of it
TINT = (np.arange(256)[:, None] * [1.0, 0.98, 0.94]).astype(np.uint8)  # RGB of each grey level


def plates(
    _: str,
    __: Path | None,
    seed: int,
    contrasts: tuple[float, float] = CONTRAST,
    light: float = LIGHT,
) -> Case:
    """Learn photographs of a metal plate; test others, good ones and ones with a scratch."""
    folder = Path(mkdtemp(prefix="plates"))
    atexit.register(rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(seed)
    plate, metal = metal_plate(rng)
    n_learn, n_good, n_bad = PLATES
    paths, masks = [], []
    for i in range(sum(PLATES)):
        cover = np.zeros(PLATE, np.float32)
        if i >= n_learn + n_good:
            add_scratch(cover, metal, rng)
        contrast = rng.choice([-1, 1]) * rng.uniform(*contrasts)
        shift = rng.integers(-SHIFT, SHIFT, 2, endpoint=True)
        grey = photograph_of(plate + contrast * cover, metal, light, rng)
        paths.append(folder / f"{i:03}.jpg")
        Image.fromarray(TINT[np.roll(grey, shift, (0, 1))]).save(paths[-1], quality=90)
        masks.append(np.roll(cover >= 0.5, shift, (0, 1)))
    return Case(paths[:n_learn], paths[n_learn:], labels(n_good, n_bad), masks[n_learn:])


def metal_plate(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a plate with twelve screw holes: its grey levels, and True at its bare metal."""
    height, width = PLATE
    grey = np.full(PLATE, 40, np.float32)
    grey[100:-100, 100:-100] = 130
    metal = grey == 130
    for row in range(3):
        for column in range(4):
            centre = height * (row + 1) / 4, width * (column + 1) / 5
            top, left = centre + rng.uniform(-60, 60, 2)
            radius = rng.uniform(40, 70)
            around = np.s_[int(top) - 100 : int(top) + 100, int(left) - 100 : int(left) + 100]
            y, x = np.ogrid[around]
            distance = np.hypot(y - top, x - left)
            for outer, level in ((1.35 * radius, 165), (radius, 30)):  # its chamfer, its inside
                grey[around] += (level - grey[around]) * np.clip(outer - distance, 0, 1)
            metal[around] &= distance > 1.35 * radius
    return grey, metal


def add_scratch(cover: np.ndarray, metal: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a scratch somewhere on the bare metal: the share of each pixel that it covers."""
    y, x = np.mgrid[-20:20, -20:20]
    while not cover.any():
        length, width, angle = rng.uniform((15, 2, 0), (30, 4, np.pi))
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        beyond = np.maximum(np.abs(along) - (length - width) / 2, 0)  # its ends are round
        drawn = np.clip(width / 2 + 0.5 - np.hypot(beyond, across), 0, 1)
        top, left = rng.integers(0, np.subtract(PLATE, 40))
        window = np.s_[top : top + 40, left : left + 40]
        if metal[window][drawn > 0].all():
            cover[window] = drawn


def photograph_of(
    plate: np.ndarray, metal: np.ndarray, light: float, rng: np.random.Generator
) -> np.ndarray:
    """Light and brush a plate, and add noise."""
    lit = 1 + light * objects.smooth_noise(rng, (3, 3), PLATE)
    brushed = 3 * metal * objects.smooth_noise(rng, (PLATE[0], 16), PLATE)
    noise = 3 * rng.standard_normal(PLATE, dtype=np.float32)
    return np.clip(lit * (plate + brushed) + noise, 0, 255).astype(np.uint8)


def moving_objects(kind: str, _: Path | None, seed: int) -> Case:
    """Learn gears that lie where they happen to; test others, good ones and ones with a defect.

    The cases are kinds of defects. They share the gears to learn from and the good ones, so that
    the mean of their areas under ROC curves is the area of all kinds together.
    """
    learn, test, masks = objects.gears(kind, seed)
    n_bad = objects.GEARS[2]
    return Case(learn, test, labels(len(test) - n_bad, n_bad), masks)


# Where the data is


def cifar10(name: str, data: Path | None, _: int) -> Case:
    """Learn one class of CIFAR-10; test the whole test set."""
    parts = [CIFAR10(folder_of(data), train=train) for train in (True, False)]
    arrays = [(part.data, np.array(part.targets)) for part in parts]
    return one_class(int(name), *arrays[0], *arrays[1])


def folder_of(data: Path | None) -> Path:
    """Return the folder of a data set that does not come with any package."""
    if data is None:
        raise ValueError("--data must name the folder of this data set, which nothing downloads.")
    return data


PARTS = ("train", "Data")  # a folder of each category, of MVTec AD's layout and of VisA's


def industrial(load: Callable[..., Any]) -> DataSet:
    """Take every category of a data set with masks, as its loader reads it."""

    def names(data: Path | None) -> list[str]:
        folder = folder_of(data)
        found = [path for path in folder.iterdir() if any((path / p).is_dir() for p in PARTS)]
        if found:
            return sorted(path.name for path in found)
        raise ValueError(f"--data must hold a folder for every category; {folder} holds none.")

    def read(name: str, data: Path | None, _: int) -> Case:
        learn, test = (load(folder_of(data), name, subset=s) for s in ("train", "test"))
        return Case(learn.paths, test.paths, test.y, test.masks)

    return DataSet(names, read)


def held_out(normal: list[Path], anomalous: list[Path], seed: int) -> Case:
    """Learn all normal images but ten at random; test these and all anomalies.

    Images are brought to grey, since some files are in colour and some are not.
    """
    order = np.random.default_rng(seed).permutation(len(normal))
    test, learn = ([normal[i] for i in part] for part in (order[:10], order[10:]))
    return Case(greys(learn), greys([*test, *anomalous]), labels(10, len(anomalous)))


def greys(paths: list[Path]) -> list[np.ndarray]:
    """Read images as grey ones."""
    found = []
    for path in paths:
        with Image.open(path) as image:
            found.append(np.asarray(image.convert("L")))
    return found


def brain_mri(_: str, data: Path | None, seed: int) -> Case:
    """Read the folders "no" and "yes" (tumour)."""
    folder = folder_of(data)
    return held_out(list_images(folder / "no"), list_images(folder / "yes"), seed)


def head_ct(_: str, data: Path | None, seed: int) -> Case:
    """Read the folder "head_ct", which may lie in one of its name, and "labels.csv".

    There 1 is a haemorrhage.
    """
    folder = folder_of(data)
    images = folder / "head_ct"
    if (images / "head_ct").is_dir():
        images /= "head_ct"
    with (folder / "labels.csv").open() as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file)][1:]
    parts: dict[str, list[Path]] = {"0": [], "1": []}
    for number, label in rows:
        parts[label].append(images / f"{int(number):03}.png")
    return held_out(parts["0"], parts["1"], seed)


def solar_cells(_: str, data: Path | None, seed: int) -> Case:
    """Learn 70 % of the intact polycrystalline cells; test the others, and all with defects.

    They are those of PyPI's elpv-dataset that its labels are sure of. A folder, if one is given,
    is that of the package's data.
    """
    if data is None:
        if (package := find_spec("elpv_dataset")) is None or package.origin is None:
            raise ValueError("The solar cells need a package: pip install elpv-dataset")
        data = Path(package.origin).parent / "data"
    parts: dict[str, list[Path]] = {"0.0": [], "1.0": []}
    for line in (data / "labels.csv").read_text().splitlines():
        name, probability, kind = line.split()
        if kind == "poly" and probability in parts:
            parts[probability].append(data / name)
    intact, defect = parts.values()
    order = np.random.default_rng(seed).permutation(len(intact))
    learn, good = ([intact[i] for i in part] for part in np.split(order, [7 * len(order) // 10]))
    return Case(learn, [*good, *defect], labels(len(good), len(defect)))


def retinal_oct(_: str, data: Path | None, __: int) -> Case:
    """Read "train/NORMAL", and the folders of "test": NORMAL, CNV, DME and DRUSEN."""
    folder = folder_of(data)
    normal = list_images(folder / "test" / "NORMAL")
    bad = [p for kind in ("CNV", "DME", "DRUSEN") for p in list_images(folder / "test" / kind)]
    learn = list_images(folder / "train" / "NORMAL")
    return Case(learn, [*normal, *bad], labels(len(normal), len(bad)))


def one(name: str) -> Callable[[Path | None], list[str]]:
    """Name the only case of a data set."""
    return lambda _: [name]


def ten(_: Path | None) -> list[str]:
    """Name ten classes."""
    return [str(i) for i in range(10)]


DATA_SETS = {
    "textures": DataSet(lambda _: list(TEXTURES), texture),
    "few_textures": DataSet(lambda _: list(TEXTURES), few_crops),
    "few": DataSet(lambda _: list(FEW), random_crops),
    "plates": DataSet(one("plates"), plates),
    "moving_objects": DataSet(lambda _: list(objects.KINDS), moving_objects),
    "digits": DataSet(ten, digits),
    "faces": DataSet(one("faces"), faces),
    "fashion_mnist": DataSet(ten, mnist),
    "mnist": DataSet(ten, lambda name, data, seed: mnist(name, folder_of(data), seed)),
    "cifar10": DataSet(ten, cifar10),
    "mvtec_ad": industrial(datasets.load_mvtec_ad),
    "visa": industrial(datasets.load_visa),
    "mpdd": industrial(datasets.load_mpdd),
    "btad": industrial(datasets.load_btad),
    "solar_cells": DataSet(one("polycrystalline"), solar_cells),
    "brain_mri": DataSet(one("brain_mri"), brain_mri),
    "head_ct": DataSet(one("head_ct"), head_ct),
    "retinal_oct": DataSet(one("retinal_oct"), retinal_oct),
}
