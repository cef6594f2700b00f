"""The loader of your own images: which folders count, and where masks are looked for."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from skmkd.datasets import list_images, load_image_folder

SIZE = (20, 12)  # width and height


def save(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(root / name)


def save_mask(root, *names):
    """Save masks of which the left half is anomalous."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        mask = Image.new("L", SIZE)
        mask.paste(255, (0, 0, 10, 12))
        mask.save(root / name)


def folder_tree(root):
    save(root, "good/2.png", "good/10.jpg", "good/1.png")
    save(root, "dent/1.jpg", "scratch/1.png", "notes/.hidden.png")
    shutil.rmtree(root / "notes")


def test_image_folders_need_no_masks(tmp_path):
    folder_tree(tmp_path)
    dataset = load_image_folder(tmp_path)
    assert [path.stem for path in dataset.paths] == ["1", "2", "10", "1", "1"]
    assert dataset.defect_types.tolist() == ["good"] * 3 + ["dent", "scratch"]
    assert dataset.y.tolist() == [1, 1, 1, -1, -1]
    assert dataset.masks is None


@pytest.mark.parametrize("name", ["1.png", "1_mask.png", "1.tif", "1_mask.bmp"])
@pytest.mark.parametrize("folder", ["ground_truth", "outlines"])
def test_image_folders_may_have_masks(tmp_path, name, folder):
    folder_tree(tmp_path)
    save_mask(tmp_path, f"{folder}/dent/{name}", f"{folder}/scratch/{name}")
    masks = None if folder == "ground_truth" else folder
    dataset = load_image_folder(tmp_path, masks=masks)
    assert dataset.defect_types.tolist() == ["good"] * 3 + ["dent", "scratch"]
    assert [float(mask.mean()) for mask in dataset.masks] == [0, 0, 0, 0.5, 0.5]


def test_folders_may_have_other_names(tmp_path):
    folder_tree(tmp_path)
    dataset = load_image_folder(tmp_path, good="dent", bad=["scratch"])
    assert dataset.defect_types.tolist() == ["good", "scratch"]
    assert load_image_folder(tmp_path, bad=[]).y.tolist() == [1, 1, 1]
    save(tmp_path, "train/ok/1.png")
    nested = load_image_folder(tmp_path, good="train/ok", bad=["dent"])
    assert nested.defect_types.tolist() == ["good", "dent"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"good": "ok"}, FileNotFoundError, "good must be a folder; there is none at .*ok"),
        ({"bad": ["gone"]}, FileNotFoundError, "bad must be a folder; there is none at .*gone"),
        ({"bad": "dent"}, ValueError, r"bad must be a sequence of folder names; got 'dent'"),
        ({"good": "dent"}, ValueError, "bad must not hold 'good', a name of normal images; got"),
        ({"bad": ["good"]}, ValueError, r"bad must not hold .*; got \['good'\]"),
        ({"masks": "gone"}, FileNotFoundError, "masks must be a folder; there is none at .*gone"),
        ({"masks": "good"}, FileNotFoundError, "dent.1.jpg must have a mask; .*good.dent.1.png or"),
    ],
)
def test_bad_image_folders_are_refused(tmp_path, options, error, message):
    folder_tree(tmp_path)
    with pytest.raises(error, match=message):
        load_image_folder(tmp_path, **options)


@pytest.mark.parametrize("name", ["Good", "OK", "ok", "Normal"])
def test_normal_images_have_one_of_several_names(tmp_path, name):
    folder_tree(tmp_path)
    (tmp_path / "good").rename(tmp_path / name)
    assert load_image_folder(tmp_path).defect_types.tolist() == ["good"] * 3 + ["dent", "scratch"]


def test_folders_of_normal_images_add_up(tmp_path):
    save(tmp_path, "good/1.png", "OK/2.png", "Bad/3.png")
    assert load_image_folder(tmp_path).y.tolist() == [1, 1, -1]


def test_images_sorted_by_day_are_those_that_a_list_has(tmp_path):
    days = ["2024-05-01", "2024-05-02/morning"]
    save(tmp_path, *(f"{kind}/{day}/{i}.png" for kind in ("good", "dent") for day in days
                     for i in range(2)))  # fmt: skip
    save(tmp_path, "good/loose.png")
    masks = [f"ground_truth/dent/{day}/{i}_mask.png" for day in days for i in range(2)]
    save_mask(tmp_path, *masks)
    dataset = load_image_folder(tmp_path)
    assert dataset.paths[dataset.y == 1].tolist() == list_images(tmp_path / "good").tolist()
    assert dataset.paths[dataset.y == -1].tolist() == list_images(tmp_path / "dent").tolist()
    assert [float(mask.mean()) for mask in dataset.masks] == [0] * 5 + [0.5] * 4


def test_folders_without_images_and_those_of_tools_are_ignored(tmp_path):
    folder_tree(tmp_path)
    expected = load_image_folder(tmp_path).paths.tolist()
    save(tmp_path, "@eaDir/1.png", "good/@eaDir/1.png/small.jpg", ".ipynb_checkpoints/1.png")
    (tmp_path / "__MACOSX/good").mkdir(parents=True)
    (tmp_path / "__MACOSX/good/._1.png").write_bytes(b"no image")
    (tmp_path / "crack/of/monday").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/notes.txt").touch()
    assert load_image_folder(tmp_path).paths.tolist() == expected
    with pytest.raises(ValueError, match="must hold images .* none in .*crack"):
        load_image_folder(tmp_path, bad=["crack"])


def test_folders_may_be_links(tmp_path):
    save(tmp_path / "nas", "lot/1.png", "others/2.png", "others/deep/3.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/good").symlink_to(tmp_path / "nas/lot")
    (tmp_path / "set/bad").symlink_to(tmp_path / "nas/others")
    assert load_image_folder(tmp_path / "set").y.tolist() == [1, -1, -1]


def test_masks_may_be_below_a_folder(tmp_path):
    folder_tree(tmp_path)
    save_mask(tmp_path, "drawn/masks/dent/1.png", "drawn/masks/scratch/1.png")
    dataset = load_image_folder(tmp_path, masks="drawn/masks")
    assert dataset.defect_types.tolist() == ["good"] * 3 + ["dent", "scratch"]
    assert np.mean([mask.mean() for mask in dataset.masks]) == pytest.approx(0.2)


def test_defects_may_be_below_a_folder(tmp_path):
    folder_tree(tmp_path)
    save(tmp_path, "line1/burr/1.png")
    save_mask(tmp_path, "ground_truth/line1/burr/1.png", "ground_truth/dent/1.png")
    dataset = load_image_folder(tmp_path, bad=["line1/burr", "dent"])
    assert dataset.defect_types.tolist() == ["good"] * 3 + ["burr", "dent"]
    assert [float(mask.mean()) for mask in dataset.masks] == [0, 0, 0, 0.5, 0.5]


def test_labels_beside_their_images_are_refused(tmp_path):
    folder_tree(tmp_path)
    save_mask(tmp_path, "scratch/1_mask.png")
    with pytest.raises(ValueError, match=r"label images in a folder of their own; .*1_mask.png"):
        load_image_folder(tmp_path)


def test_a_folder_without_normal_images_is_refused(tmp_path):
    save(tmp_path, "bottle/train/good/1.png")
    message = "root must have a folder of normal images, named good, ok, normal or .* has none"
    with pytest.raises(FileNotFoundError, match=message):
        load_image_folder(tmp_path)
