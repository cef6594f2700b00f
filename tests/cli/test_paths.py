"""Which images commands take: good ones to learn from, and notices of labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from skmkd._cli.paths import good_images, images_of, new_images, output_paths


@pytest.fixture
def folder(tmp_path):
    for name in ("good/10.png", "good/2.png", "Label/2_label.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_images_of_a_folder_or_a_file(folder):
    assert [path.name for path in images_of(folder / "good")] == ["2.png", "10.png"]
    assert images_of(folder / "good/2.png") == [folder / "good/2.png"]
    with pytest.raises(ValueError, match=r"gone must be a folder or a file; it does not exist"):
        images_of(folder / "gone")


def test_good_images_are_counted(folder, capsys):
    single = folder / "good/10.png"
    assert [path.name for path in good_images([single, folder / "good"])] == [
        "10.png", "2.png", "10.png",
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        f"Found 2 images in {folder / 'good'}.", "Got 1 file by name.",
    ]  # fmt: skip
    assert good_images([]) == []
    assert capsys.readouterr().out == ""


def test_labels_are_no_good_images(folder, capsys):
    with pytest.raises(ValueError, match="must hold good images only; .*2_label.png is a label"):
        good_images([folder])
    with pytest.raises(ValueError, match=r"2_label.png is a label image, not a good image"):
        good_images([folder / "good/2.png", folder / "Label/2_label.png"])
    assert capsys.readouterr().out == ""


def test_labels_among_new_images_are_noticed(folder):
    with pytest.warns(UserWarning, match=r"holds 1 label images?, such as \S*2_label.png, which"):
        assert len(new_images([folder])) == 3
    assert len(new_images([folder / "good"])) == 2  # without a warning


TABLE = Path("maps/regions.csv")


def test_outputs_mirror_the_folder_of_the_images(folder):
    targets = output_paths([folder / "good"], Path("maps"), TABLE)
    assert list(targets.values()) == [Path("maps/2").absolute(), Path("maps/10").absolute()]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".npy"])
def test_outputs_are_not_among_the_images(folder, suffix):
    image = (folder / "good/2.png").rename(folder / f"good/2{suffix}")
    with pytest.raises(ValueError, match="--output must not be the folder of the images"):
        output_paths([image], folder / "good", TABLE)
    (folder / "linked").symlink_to(folder / "good")
    with pytest.raises(ValueError, match=r"beside, or over, \S*2\.(png|jpg|npy)\.$"):
        output_paths([image], folder / "linked", TABLE)
    assert list(output_paths([image], folder, TABLE)) == [image]


def test_outputs_do_not_follow_links_to_images(folder):
    (folder / "maps").mkdir()
    (folder / "maps/2.jpg").symlink_to(folder / "good/10.png")
    with pytest.raises(ValueError, match=r"maps/2\.jpg would be written beside, or over, \S*10"):
        output_paths([folder / "good"], folder / "maps", TABLE)


def test_the_table_replaces_no_image(folder):
    image = (folder / "good/2.png").rename(folder / "good/regions.csv")
    with pytest.raises(ValueError, match=r"regions\.csv would be written over \S*regions\.csv\."):
        output_paths([image], folder, image)


def test_images_of_a_list(folder):
    (folder / "images.txt").write_text("b.png\n\na c.png\n")
    assert images_of(folder / "images.txt") == [Path("b.png"), Path("a c.png")]
    assert new_images([folder / "good", folder / "images.txt"])[2:] == [
        Path("b.png"), Path("a c.png"),
    ]  # fmt: skip
