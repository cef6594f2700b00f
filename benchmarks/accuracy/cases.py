"""What is learned from and what is judged: the cases of every data set, read from where they are.

A case is one normal class, texture or category. Offline are the images that come with
scikit-image, scikit-learn and Debian's package dataset-fashion-mnist; the others lie in a folder
that the user names, in their published layouts.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skimage
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from benchmarks import fashion_mnist
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
    "digits": DataSet(ten, digits),
    "faces": DataSet(one("faces"), faces),
    "fashion_mnist": DataSet(ten, mnist),
    "mnist": DataSet(ten, lambda name, data, seed: mnist(name, folder_of(data), seed)),
    "cifar10": DataSet(ten, cifar10),
    "mvtec_ad": industrial(datasets.load_mvtec_ad),
    "visa": industrial(datasets.load_visa),
    "mpdd": industrial(datasets.load_mpdd),
    "btad": industrial(datasets.load_btad),
    "brain_mri": DataSet(one("brain_mri"), brain_mri),
    "head_ct": DataSet(one("head_ct"), head_ct),
    "retinal_oct": DataSet(one("retinal_oct"), retinal_oct),
}
