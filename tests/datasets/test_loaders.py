"""The loaders, on small trees in the layouts of the published datasets."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from skmkd.datasets import (
    load_btad,
    load_mpdd,
    load_mvtec_3d_ad,
    load_mvtec_ad,
    load_mvtec_ad_2,
    load_mvtec_loco,
    load_visa,
)
from skmkd.metrics import aupro_score
from skmkd.model_selection import NormalOnlySplit

SIZE = (20, 12)  # width and height


def save(root, *names, mode="RGB"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, SIZE).save(root / name)


def save_mask(root, *names, value=255):
    """Save masks of which the left half is anomalous."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        mask = Image.new("L", SIZE)
        mask.paste(value, (0, 0, 10, 12))
        mask.save(root / name)


def mvtec_tree(root):
    save(root, *(f"bottle/train/good/{i:03}.png" for i in range(4)))
    save(root, "bottle/test/good/000.png", "bottle/test/good/001.png")
    for kind in ("broken_large", "contamination"):
        save(root, *(f"bottle/test/{kind}/{i:03}.png" for i in range(2)))
        save_mask(root, *(f"bottle/ground_truth/{kind}/{i:03}_mask.png" for i in range(2)))
    save(root, "cable/train/good/000.png")
    (root / "license.txt").touch()
    return load_mvtec_ad, "bottle"


def mpdd_tree(root):
    _, bottle = mvtec_tree(root)
    (root / bottle).rename(root / "tubes")
    return load_mpdd, "tubes"


def btad_tree(root):
    save(root, *(f"03/train/ok/{i:04}.bmp" for i in range(4)))
    save(root, "03/test/ok/0000.bmp", "03/test/ok/0001.bmp")
    save(root, *(f"03/test/ko/{i:04}.bmp" for i in range(4)))
    save_mask(root, *(f"03/ground_truth/ko/{i:04}.png" for i in range(2)))
    save_mask(root, *(f"03/ground_truth/ko/{i:04}.bmp" for i in range(2, 4)))
    save(root, "01/train/ok/0000.bmp")
    return load_btad, "03"


def visa_tree(root):
    normal = [f"candle/Data/Images/Normal/{i:04}.JPG" for i in (3, 1, 5, 0, 2, 4)]
    bad = [f"candle/Data/Images/Anomaly/{i:03}.JPG" for i in range(4)]
    masks = [f"candle/Data/Masks/Anomaly/{i:03}.png" for i in range(4)]
    save(root, *normal, *bad)
    save_mask(root, *masks, value=1)
    splits = [f"candle,{part},normal,{path},\r\n" for part, path in zip(
        ["train"] * 4 + ["test"] * 2, normal, strict=True
    )]  # fmt: skip
    pairs = list(zip(bad, masks, strict=True))
    splits += [f"candle,test,anomaly,{path},{mask}\r\n" for path, mask in pairs]
    splits += ["pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,\r\n"]
    (root / "split_csv").mkdir()
    header = "object,split,label,image,mask\r\n"
    (root / "split_csv" / "1cls.csv").write_text(header + "".join(splits), newline="")
    rows = [f"{path},normal,\r\n" for path in normal]
    rows += [f'{path},"wax missing,dent",{mask}\r\n' for path, mask in pairs]
    header = "image,label,mask\r\n"
    (root / "candle" / "image_anno.csv").write_text(header + "".join(rows), newline="")
    return load_visa, "candle"


def converted_visa_tree(root):
    save(root, *(f"candle/train/good/{i:04}.JPG" for i in range(4)))
    save(root, "candle/test/good/0004.JPG", "candle/test/good/0005.JPG")
    save(root, *(f"candle/test/bad/{i:03}.JPG" for i in range(4)))
    save_mask(root, *(f"candle/ground_truth/bad/{i:03}.png" for i in range(4)), value=1)
    return load_visa, "candle"


def loco_tree(root):
    save(root, *(f"juice_bottle/train/good/{i:03}.png" for i in range(4)))
    save(root, *(f"juice_bottle/{part}/good/{i:03}.png" for part in ("validation", "test")
                 for i in range(2)))  # fmt: skip
    for kind in ("logical_anomalies", "structural_anomalies"):
        save(root, *(f"juice_bottle/test/{kind}/{i:03}.png" for i in range(2)))
        masks = [f"juice_bottle/ground_truth/{kind}/{i:03}" for i in range(2)]
        save_mask(root, *(f"{folder}/000.png" for folder in masks), value=252)
        save(root, f"{masks[1]}/001.png", mode="L")  # black
    return load_mvtec_loco, "juice_bottle"


def ad_2_tree(root):
    save(root, *(f"can/train/good/{i:03}_regular.png" for i in range(4)))
    save(root, *(f"can/{part}/good/{i:03}_regular.png" for part in ("validation", "test_public")
                 for i in range(2)))  # fmt: skip
    save(root, *(f"can/test_public/bad/{i:03}_regular.png" for i in range(4)))
    masks = "can/test_public/ground_truth/bad"
    save_mask(root, *(f"{masks}/{i:03}_regular_mask.png" for i in range(4)))
    save(root, "can/test_private/000_regular.png")
    return load_mvtec_ad_2, "can"


def three_d_tree(root):
    save(root, *(f"bagel/train/good/rgb/{i:03}.png" for i in range(4)))
    save(root, *(f"bagel/{part}/good/rgb/{i:03}.png" for part in ("validation", "test")
                 for i in range(2)))  # fmt: skip
    save(root, *(f"bagel/test/crack/rgb/{i:03}.png" for i in range(4)))
    save_mask(root, *(f"bagel/test/crack/gt/{i:03}.png" for i in range(4)))
    save(root, *(f"bagel/{part}/xyz/{i:03}.tiff" for part in ("train/good", "test/crack")
                 for i in range(4)))  # fmt: skip
    return load_mvtec_3d_ad, "bagel"


TREES = [
    mvtec_tree, mpdd_tree, btad_tree, visa_tree, converted_visa_tree, loco_tree, ad_2_tree,
    three_d_tree,
]  # fmt: skip
TEST = {load_mvtec_ad_2: "test_public"}  # names of the test set; "test" otherwise
OF_THREE = [loco_tree, ad_2_tree, three_d_tree]


@pytest.mark.parametrize("tree", TREES)
def test_subsets_hold_what_they_promise(tmp_path, tree):
    load, category = tree(tmp_path)
    subsets = ("train", TEST.get(load, "test"), "all")
    train, test, both = (load(tmp_path, category, subset=subset) for subset in subsets)
    assert train.paths.tolist() == load(str(tmp_path), category).paths.tolist()
    assert train.y.tolist() == [1] * 4
    assert sorted(test.y.tolist()) == [-1] * 4 + [1] * 2
    between = load(tmp_path, category, subset="validation").paths if tree in OF_THREE else []
    assert both.paths.tolist() == [*train.paths, *between, *test.paths]
    for dataset in (train, test, both):
        assert set(dataset) == {"paths", "y", "masks", "defect_types", "DESCR"}
        assert dataset.paths.dtype == object
        assert (dataset.y == np.where(dataset.defect_types == "good", 1, -1)).all()
        assert "Layout" in dataset.DESCR
        assert all(path.is_file() for path in dataset.paths)
        assert len(dataset.masks) == len(dataset.paths)
        for mask, label in zip(dataset.masks, dataset.y, strict=True):
            assert (mask.dtype, mask.shape) == (bool, (12, 20))
            assert mask[:, :10].all() == (label == -1)
            assert not mask[:, 10:].any()


@pytest.mark.parametrize("tree", OF_THREE)
def test_validation_images_are_normal(tmp_path, tree):
    load, category = tree(tmp_path)
    dataset = load(tmp_path, category, subset="validation")
    assert dataset.y.tolist() == [1, 1]
    assert {path.relative_to(tmp_path / category).parts[0] for path in dataset.paths} == {
        "validation"
    }


def test_layouts_of_its_successors_are_told_from_that_of_mvtec_ad(tmp_path):
    for tree in OF_THREE:
        tree(tmp_path)
    loco = load_mvtec_loco(tmp_path, "juice_bottle", subset="test")
    same = load_mvtec_ad(tmp_path, "juice_bottle", subset="test")
    assert [mask.sum() for mask in same.masks] == [mask.sum() for mask in loco.masks]
    with pytest.raises(FileNotFoundError, match=r"there is \S*test_public, .*load_mvtec_ad_2\."):
        load_mvtec_ad(tmp_path, "can", subset="test")
    with pytest.raises(ValueError, match=r"train.good holds colours and .*load_mvtec_3d_ad\."):
        load_mvtec_ad(tmp_path, "bagel")


@pytest.mark.parametrize("name", ["Good", "OK", "normal"])
def test_normal_images_are_found_by_several_names(tmp_path, name):
    load, category = mvtec_tree(tmp_path)
    for part in ("train", "test"):
        (tmp_path / category / part / "good").rename(tmp_path / category / part / name)
    dataset = load(tmp_path, category, subset="all")
    assert sorted(dataset.y.tolist()) == [-1] * 4 + [1] * 6


def test_without_ground_truth_labels_are_all_there_is(tmp_path):
    load, category = mvtec_tree(tmp_path)
    shutil.rmtree(tmp_path / category / "ground_truth")
    dataset = load(tmp_path, category, subset="test")
    assert dataset.masks is None
    assert sorted(dataset.y.tolist()) == [-1] * 4 + [1] * 2


def test_thumbnails_are_no_defects(tmp_path):
    load, category = mvtec_tree(tmp_path)
    expected = load(tmp_path, category, subset="all").paths.tolist()
    save(tmp_path, f"{category}/test/@eaDir/t.jpg", f"{category}/test/good/@eaDir/000.png/t.jpg")
    assert load(tmp_path, category, subset="all").paths.tolist() == expected


@pytest.mark.parametrize(
    ("tree", "kinds"),
    [(mvtec_tree, {"broken_large", "contamination"}), (btad_tree, {"ko"}),
     (visa_tree, {"wax missing,dent"}), (converted_visa_tree, {"bad"}),
     (loco_tree, {"logical_anomalies", "structural_anomalies"}), (ad_2_tree, {"bad"}),
     (three_d_tree, {"crack"})],
)  # fmt: skip
def test_defect_types(tmp_path, tree, kinds):
    load, category = tree(tmp_path)
    assert set(load(tmp_path, category, subset="all").defect_types) == kinds | {"good"}


def test_order_is_that_of_folders_or_of_the_table(tmp_path):
    load, category = mvtec_tree(tmp_path / "mvtec")
    paths = load(tmp_path / "mvtec", category, subset="test").paths
    assert [f"{path.parent.name[0]}{path.stem}" for path in paths] == [
        "b000", "b001", "c000", "c001", "g000", "g001",
    ]  # fmt: skip
    (tmp_path / "visa").mkdir()
    load, category = visa_tree(tmp_path / "visa")
    assert [p.stem for p in load(tmp_path / "visa", category).paths] == [
        "0003", "0001", "0005", "0000",
    ]  # fmt: skip


@pytest.mark.parametrize("tree", TREES)
def test_a_wrong_category_or_subset_is_refused(tmp_path, tree):
    load, category = tree(tmp_path)
    with pytest.raises(ValueError, match=f"category must be .*{category}.*; got 'shoe'"):
        load(tmp_path, "shoe")
    with pytest.raises(ValueError, match="subset must be 'train', .* or 'all'; got 'val'"):
        load(tmp_path, category, subset="val")
    with pytest.raises(FileNotFoundError, match="root must be a folder; there is none at .*gone"):
        load(tmp_path / "gone", category)


@pytest.mark.parametrize("tree", TREES)
def test_a_mask_that_is_not_there_is_named(tmp_path, tree):
    load, category = tree(tmp_path)
    truth = ("ground_truth", "gt", "Masks")
    for mask in (tmp_path / category).glob("**/*001*"):
        if set(truth) & set(mask.parts):
            shutil.rmtree(mask) if mask.is_dir() else mask.unlink()
    load(tmp_path, category)  # normal images need none
    with pytest.raises(FileNotFoundError, match=r"001\w*\.\w+ must have a mask; .* at .*001"):
        load(tmp_path, category, subset="all")


@pytest.mark.parametrize(
    ("tree", "gone", "error", "message"),
    [
        (mvtec_tree, "bottle/test", FileNotFoundError, "the test set must be .* none at .*test"),
        (mvtec_tree, "bottle/test/good/*", ValueError, "must hold images .* none in .*good"),
        (btad_tree, "03/train", FileNotFoundError, "the train set must be .* none at .*train"),
        (visa_tree, "split_csv/1cls.csv", FileNotFoundError, "a table at .*1cls.csv"),
        (visa_tree, "candle/image_anno.csv", FileNotFoundError, "a table at .*image_anno.csv"),
        (visa_tree, "candle/Data/Images/Normal/0003.JPG", FileNotFoundError, "image at .*0003"),
    ],
)
def test_a_wrong_layout_is_named(tmp_path, tree, gone, error, message):
    load, category = tree(tmp_path)
    for path in tmp_path.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(error, match=message):
        load(tmp_path, category, subset="all")


def test_an_anomaly_that_visa_does_not_annotate_is_named(tmp_path):
    load, category = visa_tree(tmp_path)
    table = tmp_path / category / "image_anno.csv"
    kept = [line for line in table.read_text().splitlines() if "Anomaly/002" not in line]
    table.write_text("\n".join(kept))
    with pytest.raises(ValueError, match=r"image_anno.csv must have a row for .*Anomaly/002.JPG"):
        load(tmp_path, category, subset="test")


def test_splitters_and_metrics_take_a_dataset(tmp_path):
    load, category = mvtec_tree(tmp_path)
    dataset = load(tmp_path, category, subset="all")
    cv = NormalOnlySplit(3, random_state=0)
    for train, test in cv.split(dataset.paths, dataset.y):
        assert (dataset.y[train] == 1).all()
        assert not set(dataset.paths[train]) & set(dataset.paths[test])
        masks = dataset.masks[test]
        assert aupro_score(masks, [mask.astype(float) for mask in masks]) == 1
