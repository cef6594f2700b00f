"""What a folder to learn from must not hold, told by names; published layouts among them."""

from __future__ import annotations

import pytest

from skmkd.datasets import list_images
from skmkd.datasets._mixtures import check_good_images, label_images


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


MIXED = {
    "MVTec AD": (
        ["train/good/0.png", "test/good/0.png", "test/hole/0.png", "ground_truth/hole/0_mask.png"],
        r"holds the test images of \S*/test, too\. Give \S*/train/good\.",
    ),
    "all categories": (
        ["screw/train/good/0.png", "screw/test/good/0.png"],
        r"holds the test images of \S*screw/test, too\. Give \S*screw/train/good\.",
    ),
    "MVTec AD 2": (
        ["train/good/0.png", "validation/good/0.png", "test_public/bad/0.png"],
        r"the test images of \S*/test_public, too\. Give \S*/train/good\.",
    ),
    "BTAD": (["train/ok/0.bmp", "test/ko/0.bmp"], r"Give \S*/train/ok\."),
    "DAGM": (["Train/1.PNG", "Test/1.PNG"], r"images of \S*/Test, too\. Give \S*/Train\."),
    "part of DAGM": (
        ["0001.PNG", "0002.PNG", "Label/0002_label.PNG"],
        r"0002_label.PNG is a label image\. Give .* good images\.$",
    ),
    "KolektorSDD": (
        ["kos01/Part0.jpg", "kos01/Part0_label.bmp"],
        r"is a label image\. .*datasets\.load_kolektor_sdd selects",
    ),
    "part of KolektorSDD2": (["10000.png", "10000_GT.png"], "load_kolektor_sdd2 selects"),
    "MVTec 3D-AD": (["rgb/0.png", "xyz/0.tiff"], r"the positions of \S*/xyz, too. Give \S*/rgb\."),
    "VisA": (
        ["Images/Anomaly/0.JPG", "Images/Normal/0.JPG"],
        r"the images of \S*/Anomaly, too. Give \S*/Images/Normal\.",
    ),
    "own images": (["OK/1/0.png", "dent/0.png"], r"the images of \S*/dent, too\. Give \S*/OK\."),
    "masks of own images": (["a/0.png", "ground_truth/a/0.png"], "ground_truth/a/0.png is a label"),
}  # fmt: skip
PURE = {
    "loose": ["0.png", "1.png", "b_mask.png", "my_label.png"],
    "by day": ["2024-05-01/0.png", "2024-05-02/0.png", "test/1.png"],
    "parts": ["train/good/0.png", "validation/good/0.png"],
    "one class": ["good/0.png", "good/line1/1.png"],
    "two names": ["good/0.png", "OK/1.png"],
    "parts of a bottle": ["label/0.png", "cap/0.png"],
    "training only": ["train/0.png", "more/1.png"],
}


@pytest.mark.parametrize("case", MIXED)
def test_mixed_folders_are_refused_with_what_to_give(tmp_path, case):
    names, message = MIXED[case]
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=message) as error:
        check_good_images(tmp_path, list_images(tmp_path))
    assert str(error.value).startswith(f"{tmp_path} must hold good images only; ")


@pytest.mark.parametrize("case", MIXED)
def test_the_folder_to_give_is_accepted(tmp_path, case):
    names, message = MIXED[case]
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=message) as error:
        check_good_images(tmp_path, list_images(tmp_path))
    _, found, folder = str(error.value).rpartition(". Give ")
    if found and folder.startswith(str(tmp_path)):
        folder = tmp_path / folder.rstrip(".")
        check_good_images(folder, list_images(folder))


@pytest.mark.parametrize("case", PURE)
def test_folders_of_good_images_are_accepted(tmp_path, case):
    touch(tmp_path, *PURE[case])
    check_good_images(tmp_path, list_images(tmp_path))


def test_a_folder_may_itself_have_the_name_of_test_images_or_masks(tmp_path):
    touch(tmp_path, "train/0.png", "test/ground_truth/0.png")
    check_good_images(tmp_path / "test/ground_truth", list_images(tmp_path / "test/ground_truth"))


def test_labels_are_told_by_the_image_that_they_belong_to(tmp_path):
    touch(tmp_path, "1.png", "1_mask.png", "2_mask.png", "3_GT.bmp", "deep/3.jpg", "4_label_b.png")
    assert [path.name for path in label_images(list_images(tmp_path))] == ["1_mask.png", "3_GT.bmp"]
