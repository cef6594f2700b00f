"""The Kolektor datasets: labels beside their images say what is normal."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from skmkd.datasets import load_kolektor_sdd, load_kolektor_sdd2


def save(root, name, label, defect):
    for path, colour in ((name, 90), (label, 0)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("L", (20, 12), colour)
        if path == label and defect:
            image.paste(255, (0, 0, 10, 12))
        image.save(root / path)


def sdd_tree(root):
    for item, defect in ((2, True), (10, False)):
        for part in range(2):
            name = f"kos{item:02}/Part{part}"
            save(root, f"{name}.jpg", f"{name}_label.bmp", defect and part == 1)


def sdd2_tree(root):
    for part, defects in (("train", [0, 1, 0]), ("test", [1, 0])):
        for i, defect in enumerate(defects):
            save(root, f"{part}/1000{i}.png", f"{part}/1000{i}_GT.png", defect)


def check(dataset, y):
    assert dataset.y.tolist() == y
    assert len(dataset.paths) == len(dataset.masks) == len(y)
    assert dataset.defect_types.tolist() == ["good" if label == 1 else "defect" for label in y]
    assert [float(mask.mean()) for mask in dataset.masks] == [0.5 * (label == -1) for label in y]
    assert not any("label" in path.stem or "GT" in path.stem for path in dataset.paths)
    assert "Layout" in dataset.DESCR


def test_kolektor_sdd(tmp_path):
    sdd_tree(tmp_path)
    dataset = load_kolektor_sdd(tmp_path)
    check(dataset, [1, -1, 1, 1])
    assert [path.relative_to(tmp_path).as_posix() for path in dataset.paths[:2]] == [
        "kos02/Part0.jpg", "kos02/Part1.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("subset", "y"), [("train", [1, 1]), ("test", [-1, 1]), ("all", [1, -1, 1, -1, 1])]
)
def test_kolektor_sdd2(tmp_path, subset, y):
    sdd2_tree(tmp_path)
    check(load_kolektor_sdd2(tmp_path, subset=subset), y)


def test_a_label_that_is_not_there_is_named(tmp_path):
    sdd_tree(tmp_path)
    (tmp_path / "kos10/Part1_label.bmp").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"must have a label; .* at .*kos10.Part1_label.bmp"
    ):
        load_kolektor_sdd(tmp_path)


def test_what_is_not_the_dataset_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="root must be a folder; there is none at .*gone"):
        load_kolektor_sdd(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="the train set must be a folder"):
        load_kolektor_sdd2(tmp_path)
    with pytest.raises(ValueError, match="subset must be 'train', 'test' or 'all'; got 'val'"):
        load_kolektor_sdd2(tmp_path, subset="val")


def test_labels_select_what_to_learn(tmp_path):
    sdd_tree(tmp_path)
    dataset = load_kolektor_sdd(tmp_path)
    good = dataset.masks[np.flatnonzero(dataset.y == 1)]
    assert not any(mask.any() for mask in good)
