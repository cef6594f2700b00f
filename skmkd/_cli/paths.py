"""Which images a command reads, and where it writes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from skmkd.datasets import list_images
from skmkd.datasets._mixtures import check_good_images, label_images
from skmkd.distributed._shards import read_list

LISTS = (".txt", ".parquet")  # suffixes of files that list images


def images_of(place: Path) -> list[Path]:
    """Return the images in a folder or a list, or the file itself."""
    if not place.exists():
        raise ValueError(f"{place} must be a folder or a file; it does not exist.")
    if place.suffix in LISTS:
        return [Path(path) for path in read_list(place)]
    return list_images(place).tolist() if place.is_dir() else [place]


def good_images(places: Sequence[Path]) -> list[Path]:
    """Return images to learn from, refuse folders of others, and print how many there are."""
    found = {place: images_of(place) for place in places}
    folders = [place for place in places if place.is_dir()]
    for folder in folders:
        check_good_images(folder, found[folder])
    given = [place for place in places if not place.is_dir()]
    if labels := label_images(given):
        raise ValueError(f"{labels[0]} is a label image, not a good image. Leave it out.")
    for folder in folders:
        print(f"Found {counted(len(found[folder]), 'image')} in {folder}.")
    if given:
        print(f"Got {counted(len(given), 'file')} by name.")
    return [path for place in places for path in found[place]]


def new_images(places: Sequence[Path]) -> list[Path]:
    """Return images to judge, with a warning of label images among them."""
    found = {place: images_of(place) for place in places}
    for folder in filter(Path.is_dir, places):
        if labels := label_images(found[folder], folder):
            warnings.warn(
                f"{folder} holds {counted(len(labels), 'label image')}, such as {labels[0]}, which "
                "will be judged like the others. Give the folders of the images only.",
                UserWarning,
                stacklevel=2,
            )
    return [path for place in places for path in found[place]]


def counted(n: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def is_within(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder; neither needs to exist."""
    return Path(os.path.abspath(folder)) in Path(os.path.abspath(path)).parents


def output_paths(places: Sequence[Path], output: Path, table: Path) -> dict[Path, Path]:
    """Return the output path of each image in an output folder, without suffix.

    Output paths mirror the folder of the images. With several folders, the name of each folder
    comes first. Files in the output folder are earlier results, and are not read as images.

    Raises
    ------
    ValueError
        If two images have the same output path, one is beside an output of its name, or the table
        would replace one.
    """
    output = Path(os.path.abspath(output))
    targets: dict[Path, Path] = {}
    owners: dict[Path, Path] = {}
    for place in places:
        absolute = Path(os.path.abspath(place))
        root = absolute if place.is_dir() and len(places) == 1 else absolute.parent
        for path in new_images([place]):
            image = Path(os.path.abspath(path))
            if absolute in output.parents and output in image.parents:
                continue
            target = output / image.relative_to(root).with_suffix("")
            if (other := owners.setdefault(target, path)) != path:
                raise ValueError(
                    "images must have distinct names, apart from folder and suffix; got "
                    f"{other} and {path}."
                )
            targets[path] = target
    inputs = {path.resolve(): path for path in targets}
    stems = {resolved.with_suffix(""): path for resolved, path in inputs.items()}
    for target in targets.values():
        for name in (f"{target.name}.jpg", f"{target.name}.npy"):
            written = target.with_name(name)
            if (beside := stems.get(written.resolve().with_suffix(""))) is not None:
                raise ValueError(
                    f"--output must not be the folder of the images; {written} would be written "
                    f"beside, or over, {beside}."
                )
    if (replaced := inputs.get(table.resolve())) is not None:
        raise ValueError(
            f"--output must be another folder; {table} would be written over {replaced}."
        )
    return targets
