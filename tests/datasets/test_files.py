"""Listing images: which files, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import KFold, train_test_split

from skmkd.datasets import list_images
from skmkd.datasets._files import IMAGE_SUFFIXES, sub_folders
from skmkd.model_selection import NormalOnlySplit


@pytest.fixture
def folder(tmp_path):
    names = [
        "img10.png", "img2.PNG", "img2.jpg", "b.webp", "a/z.tif", "a/y.TIFF", "c.jpeg", "d.bmp",
        "e.pgm", "f.ppm", "g.DCM", "notes.txt", "Thumbs.db", ".hidden.png", ".cache/x.png",
        "a/.ipynb/x.png", "png",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_images_come_in_natural_order(folder):
    paths = list_images(folder)
    assert paths.shape == (11,)
    assert paths.dtype == object
    assert all(isinstance(path, Path) for path in paths)
    assert [path.relative_to(folder).as_posix() for path in paths] == [
        "a/y.TIFF", "a/z.tif", "b.webp", "c.jpeg", "d.bmp", "e.pgm", "f.ppm", "g.DCM",
        "img2.PNG", "img2.jpg", "img10.png",
    ]  # fmt: skip
    assert [path.name for path in list_images(str(folder), recursive=False)][:2] == [
        "b.webp", "c.jpeg",
    ]  # fmt: skip
    assert [path.name for path in list_images(folder, extensions=[".PNG"])] == [
        "img2.PNG", "img10.png",
    ]  # fmt: skip


def test_folders_may_be_relative_or_hidden_themselves(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert list_images(".cache").tolist() == [Path(".cache/x.png")]
    assert len(list_images(".")) == 11


def test_linked_folders_are_followed(folder, tmp_path_factory):
    lots = tmp_path_factory.mktemp("nas")
    for name in ("one/2.png", "one/deep/1.png", "two/3.png"):
        (lots / name).parent.mkdir(parents=True, exist_ok=True)
        (lots / name).touch()
    (folder / "lot1").symlink_to(lots / "one")
    (folder / "a/lot2").symlink_to(lots / "two")
    names = [path.relative_to(folder).as_posix() for path in list_images(folder)]
    assert len(names) == 14
    assert {"lot1/2.png", "lot1/deep/1.png", "a/lot2/3.png"} < set(names)
    assert len(list_images(folder, recursive=False)) == 9
    (lots / "only").symlink_to(lots / "two")
    assert [path.name for path in list_images(lots / "only")] == ["3.png"]


def test_links_that_loop_end(folder):
    expected = list_images(folder).tolist()
    (folder / "a/up").symlink_to(folder)
    (folder / "a/here").symlink_to(".")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "nowhere").symlink_to(folder / "gone")
    assert list_images(folder).tolist() == expected
    (folder / "twice").symlink_to(folder / "a")  # no loop: its images have two names
    assert len(list_images(folder)) == len(expected) + 2


TOOLS = ["@eaDir", "@EADIR", "__MACOSX", ".ipynb_checkpoints", "#recycle", "$RECYCLE.BIN"]


@pytest.mark.parametrize("tool", TOOLS)
def test_folders_of_tools_are_ignored(folder, tool):
    expected = list_images(folder).tolist()
    for place in (folder, folder / "a"):
        (place / tool / "img2.png").mkdir(parents=True)
        (place / tool / "img2.png/THUMB_S.jpg").touch()
        (place / tool / "._img2.png").touch()
    assert list_images(folder).tolist() == expected
    assert [path.name for path in sub_folders(folder)] == ["a", "folder.png"]
    assert len(list_images(folder / tool)) == 1  # on request


def test_splitters_take_them(folder):
    paths = list_images(folder)
    y = np.repeat([1, -1], [6, 5])
    for cv in (KFold(2), NormalOnlySplit(2, random_state=0)):
        for train, test in cv.split(paths, y):
            assert set(paths[train]) & set(paths[test]) == set()
    train, test = train_test_split(paths, random_state=0)
    assert {*train, *test} == set(paths)


def test_what_is_no_folder_of_images_is_refused(folder):
    with pytest.raises(FileNotFoundError, match="folder must be a folder; there is none at .*gone"):
        list_images(folder / "gone")
    with pytest.raises(NotADirectoryError, match="folder must be a folder; .*c.jpeg is a file"):
        list_images(folder / "c.jpeg")
    message = r"must hold images \(.png, .jpg, .jpeg, .bmp, .tif, .tiff, .webp, .pgm, .ppm, .dcm\)"
    with pytest.raises(ValueError, match=f"{message}; there is none in .*folder.png"):
        list_images(folder / "folder.png")


@pytest.mark.parametrize("extensions", [".png", ["png"], [1]])
def test_bad_extensions_are_refused(folder, extensions):
    with pytest.raises(ValueError, match="extensions must be several suffixes .* dot; got"):
        list_images(folder, extensions=extensions)


def test_default_is_what_the_docstring_says():
    assert ", ".join(f'"{suffix}"' for suffix in IMAGE_SUFFIXES) in list_images.__doc__
