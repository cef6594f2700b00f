"""What the loaders share: items, tables, and the errors of a wrong layout."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from skmkd.datasets._layouts import (
    SUBSETS,
    Item,
    Layout,
    as_bunch,
    category_folder,
    check_category,
    is_normal,
    items_of,
    load_category,
    parts_of,
    read_table,
)


def saved(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 4), colour).save(path)
    return path


def test_a_bunch_keeps_the_order_of_its_items(tmp_path):
    mask = saved(tmp_path / "mask.png", 255)
    bad, good = (saved(tmp_path / name) for name in ("b.png", "a.png"))
    items = [Item(bad, "dent", (tmp_path / "none.png", mask)), Item(good, "good")]
    bunch = as_bunch(iter(items), "text")
    assert bunch.paths.tolist() == [bad, good]
    assert bunch.y.tolist() == [-1, 1]
    assert bunch.y.dtype.kind == "i"
    assert bunch.defect_types.dtype.kind == "U"
    assert [mask.mean() for mask in bunch.masks] == [1, 0]
    assert bunch.DESCR == "text"


def test_files_that_are_not_there_are_named(tmp_path):
    image = saved(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"There is no image at .*gone.png\."):
        as_bunch([Item(image, "good"), Item(tmp_path / "gone.png", "good")], "")
    absent = (tmp_path / "x.png", tmp_path / "x.bmp")
    with pytest.raises(FileNotFoundError, match=r"a.png must have a mask; .*x.png or .*x.bmp\."):
        as_bunch([Item(image, "dent", absent)], "")
    assert as_bunch([Item(image, "dent", absent)], "", with_masks=False).masks is None


def test_several_masks_of_an_image_are_merged(tmp_path):
    images = [saved(tmp_path / f"{n}.png") for n in range(2)]
    for n, column in enumerate([0, 5]):
        path = saved(tmp_path / "masks" / "1" / f"{n}.png")
        with Image.open(path) as mask:
            mask.putpixel((column, 2), 250 + n)
            mask.save(path)
    items = [Item(images[0], "good"), Item(images[1], "dent", (tmp_path / "masks" / "1",))]
    masks = as_bunch(items, "").masks
    assert np.argwhere(masks[1]).tolist() == [[2, 0], [2, 5]]
    assert not masks[0].any()
    assert [mask.sum() for mask in masks[::-1]] == [2, 0]


def test_items_of_a_folder(tmp_path):
    first, tenth = (saved(tmp_path / "dent" / f"{n}.png") for n in (1, 10))
    deeper = saved(tmp_path / "dent" / "day" / "2.png")
    items = items_of(tmp_path / "dent", "dent", tmp_path / "m", ("{stem}.bmp", "{stem}_mask.png"))
    assert [item.image for item in items] == [first, tenth, deeper]
    masks = (tmp_path / "m" / "10.bmp", tmp_path / "m" / "10_mask.png")
    assert items[1] == Item(tenth, "dent", masks)
    assert items[2].masks[0] == tmp_path / "m" / "day" / "2.bmp"


@pytest.mark.parametrize("name", ["good", "Good", "OK", "ok", "Normal"])
def test_names_of_normal_images(tmp_path, name):
    assert is_normal(name)
    saved(tmp_path / name / "1.png")
    assert items_of(tmp_path / name, name, tmp_path, ())[0].defect_type == "good"


@pytest.mark.parametrize("name", ["bad", "no good", "not_ok", "abnormal", ""])
def test_names_of_other_images(name):
    assert not is_normal(name)


def test_subsets_of_a_category(tmp_path):
    for name in ("train/ok/2", "train/ok/1", "test/ko/3", "test/ok/4"):
        saved(tmp_path / "c" / f"{name}.png")

    def stems(subset):
        return "".join(path.stem for path in load_category(tmp_path, "c", subset, layout).paths)

    layout = Layout("text")
    assert [stems(subset) for subset in ("train", "test", "all")] == ["12", "34", "1234"]


def test_without_ground_truth_there_are_no_masks(tmp_path):
    for name in ("train/good/1", "test/good/1", "test/dent/1"):
        saved(tmp_path / "c" / f"{name}.png")
    for subset in ("train", "test"):
        assert load_category(tmp_path, "c", subset, Layout("text")).masks is None
    (tmp_path / "c/ground_truth").mkdir()
    assert len(load_category(tmp_path, "c", "train", Layout("text")).masks) == 1
    with pytest.raises(FileNotFoundError, match=r"dent.1.png must have a mask; there is none at"):
        load_category(tmp_path, "c", "test", Layout("text"))


def test_a_part_without_folders_is_refused(tmp_path):
    saved(tmp_path / "c/train/1.png")
    with pytest.raises(ValueError, match="the train set must hold folders of images; .*c has none"):
        load_category(tmp_path, "c", "train", Layout("text"))


@pytest.mark.parametrize("subset", ["val", None, ["train"], 0])
def test_bad_subsets_are_refused(subset):
    with pytest.raises(ValueError, match="subset must be 'train', 'test' or 'all'; got"):
        parts_of(subset, SUBSETS)


@pytest.mark.parametrize("category", ["cap", "", ".", "..", ".git", None, "bottle/train"])
def test_unknown_categories_are_refused(tmp_path, category):
    for name in ("bottle/train", "cable", ".git"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="category must be .*: bottle, cable; got"):
        category_folder(tmp_path, category)
    with pytest.raises(ValueError, match="category must be"):
        check_category(category, ["bottle"], tmp_path)


def test_a_root_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="root must be a folder; there is none at .*gone"):
        category_folder(tmp_path / "gone", "bottle")


def test_tables(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(FileNotFoundError, match=r"must have a table at .*table.csv; there is none"):
        read_table(path, ("image",))
    path.write_bytes(b'image,label\r\na.JPG,"dent,scratch"\r\n')
    assert read_table(path, ("label",)) == [{"image": "a.JPG", "label": "dent,scratch"}]
    with pytest.raises(ValueError, match=r"table.csv must have the columns mask; got image, label"):
        read_table(path, ("mask",))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="must have the columns mask; got"):
        read_table(path, ("mask",))
