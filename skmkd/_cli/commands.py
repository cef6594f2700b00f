"""What each command of the command line does; the library does the work."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO, TextIOWrapper
from math import ceil
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TextIO, TypeVar

import numpy as np
from PIL.Image import Image
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from skmkd import datasets, metrics
from skmkd._cli.report import THUMBNAIL, Entry, overlay, write_report
from skmkd._files.archive import check_target, write_whole
from skmkd._loading import load
from skmkd._memkd import MemKDDetector
from skmkd._mkd import MKDDetector
from skmkd._runtime import draw_seed
from skmkd._thresholds import check_fpr
from skmkd.inspection._localization_display import pictures
from skmkd.model_selection._scorers import average_precision, best_f1, fpr95, roc_auc

T = TypeVar("T")

BATCHES = 8  # scored between two steps of the progress bar
PICTURED = 100  # of the worst images, in a report
METHODS: dict[str, Callable[..., Any]] = {"mkd": MKDDetector, "memkd": MemKDDetector}
FACTS = (
    "offset_", "map_offset_", "image_shape_", "pixel_range_", "critical_layers_",
    "direction_weight_", "memory_levels_", "precision_", "n_iter_",
)  # fmt: skip
UNCALIBRATED = (
    "The thresholds are those of the images that were learned from, which many new good ones will "
    "exceed. Set them with others: --hold-out SHARE, or --calibrate FOLDER."
)
UNDECODED = "surrogateescape"  # writes the bytes of file names that are no text as they are
COLUMNS = ("path", "score", "decision", "threshold")
LAYOUTS: dict[str, Callable[..., Any]] = {
    "mvtec_ad": datasets.load_mvtec_ad,
    "visa": datasets.load_visa,
    "mpdd": datasets.load_mpdd,
    "btad": datasets.load_btad,
}


def fit(given: argparse.Namespace) -> None:
    """Learn from good images, and write the model to one file.

    Thresholds that are set from the images that were learned from raise too many false alarms on
    new ones; hold some of them out, or give others.
    """
    check_target(given.output)
    learn, held_out = files(given.folder), files(given.calibrate or [])
    chosen, fpr = given.parameters, 0.05 if given.fpr is None else given.fpr
    detector = METHODS[given.method](**{"verbose": int(sys.stderr.isatty())} | chosen)
    detector._validate_params()
    if given.hold_out:
        learn, held_out = divided(learn, given.hold_out, detector.random_state)
    if held_out:
        held_out = detector._without_unreadable(held_out)
        check_fpr(fpr, len(held_out), "--hold-out" if given.hold_out else "--calibrate")
    elif given.fpr is not None:
        raise ValueError("--fpr must come with --hold-out or --calibrate.")
    detector.fit(learn).set_params(verbose=chosen.get("verbose", 0))
    if held_out:
        detector.calibrate(held_out, fpr=fpr)
    else:
        print(UNCALIBRATED, file=sys.stderr)
    detector.save(given.output)


def divided(
    paths: list[Path], share: float, random_state: int | None
) -> tuple[list[Path], list[Path]]:
    """Draw which images are to be held out of learning."""
    if not 0 < share < 1:
        raise ValueError(f"--hold-out must be a share between 0 and 1; got {share:g}.")
    if (left := len(paths) - ceil(share * len(paths))) < 2:
        raise ValueError(
            f"--hold-out must leave at least 2 images to learn from; got {share:g}, which leaves "
            f"{left} of {len(paths)}."
        )
    learn, held_out = train_test_split(paths, test_size=share, random_state=draw_seed(random_state))
    return sorted(learn), sorted(held_out)


def score(given: argparse.Namespace) -> None:
    """Write a line for each image: path, score, decision and threshold.

    The score is higher for normal images; images with a score below the threshold, which are those
    with a negative decision, are anomalies. A file that cannot be read has no score (nan, or null
    in JSON) with --on-error skip, and else ends the command.
    """
    for target in filter(None, (given.output, given.report)):
        check_target(target)
    detector, paths = loaded(given), files(given.images)
    threshold = detector._threshold("offset_")
    if given.report:
        detector._threshold("map_offset_")
    entries: list[Entry] = []
    rows_are_seen = given.output is None and sys.stdout.isatty()
    with written(given.output) as stream:
        table = csv.writer(stream, lineterminator="\n")
        if given.format == "csv":
            table.writerow(COLUMNS)
        for path, each in scored(detector, paths, silent=rows_are_seen):
            row = [str(path), each, each - threshold, threshold]
            if given.format == "csv":
                table.writerow(row)
            else:
                stream.write(json_of(dict(zip(COLUMNS, row, strict=True))) + "\n")
            entries.append(Entry(str(path), each, None))
    if given.report:
        shown = worst(entries)
        answers = localized(detector, [Path(entry.path) for entry in shown])
        report(given, detector, entries, [thumbnail(answer) for answer in answers])


def localize(given: argparse.Namespace) -> None:
    """Write two files for each image: its map, and the map over the image.

    The map is a float32 array (H, W) in numpy's format (.npy), higher = more anomalous. In the
    picture (.png) the image is left as it is up to the threshold of maps; above it, yellow turns to
    red at one and a half times the threshold.
    """
    if given.report and not is_within(given.report, given.output):
        check_target(given.report)
    detector, places = loaded(given), destinations(given)
    entries: list[Entry] = []
    shown: list[Entry] = []
    for answer in localized(detector, list(places)):
        save_answer(answer, places[answer.path])
        entries.append(Entry(str(answer.path), answer.score, None))
        if given.report:
            shown = worst([*shown, thumbnail(answer)])
    if given.report:
        report(given, detector, entries, shown)


def evaluate(given: argparse.Namespace) -> None:
    """Print the metrics of a model on a data set with good and bad images, as JSON.

    Images: area under the ROC curve, average precision and best F1 of anomalies, false-positive
    rate where 95 % of them are found. Pixels, where there are masks: area under the ROC curve,
    average precision, best F1, and AUPRO up to a false-positive rate of 0.3.
    """
    detector = loaded(given)
    threshold = detector._threshold("offset_")
    if given.layout == "folder":
        data = datasets.load_image_folder(given.dataset)
    elif given.category is None:
        raise ValueError(f"--category must be given for --layout {given.layout}.")
    else:
        data = LAYOUTS[given.layout](given.dataset, given.category, subset="test")
    if len(set(data.y.tolist())) < 2:
        raise ValueError("dataset must hold normal images and anomalies; got one kind only.")
    with TemporaryDirectory() as folder:
        maps = StoredMaps(Path(folder))
        if data.masks is None:
            scores = np.array([each for _, each in scored(detector, data.paths.tolist())])
        else:
            images = detector._take_in(data.paths)
            scores = np.empty(len(images))
            answers = progressing(detector._scores_and_maps(images), len(images))
            for i, (each, single) in enumerate(answers):
                scores[i] = each
                maps.append(single)
        if np.isnan(scores).any():
            raise ValueError(f"dataset must be readable; got {data.paths[np.isnan(scores)][0]}.")
        figures = image_figures(data.y, scores, threshold)
        if data.masks is not None:
            figures |= pixel_figures(data.masks, maps)
    print(json_of(figures, indent=2))


def info(given: argparse.Namespace) -> None:
    """Print what a model is: its class, parameters, thresholds and training, as JSON."""
    detector = load(given.model, device="cpu")
    facts = {
        "class": type(detector).__name__,
        **{name: getattr(detector, name) for name in FACTS if hasattr(detector, name)},
        "final loss": {name: float(curve[-1]) for name, curve in detector.loss_curve_.items()},
        "parameters": detector.get_params(deep=False),
    }
    if isinstance(weights := facts["parameters"].get("source_weights"), Mapping):
        facts["parameters"]["source_weights"] = f"a dict of {len(weights)} tensors"
    print(json_of(facts, indent=2))


def json_of(facts: dict[str, Any], indent: int | None = None) -> str:
    """Return JSON, which knows no NaN: null stands for it."""
    plain = {name: None if value != value else value for name, value in facts.items()}
    return json.dumps(plain, indent=indent, default=repr, allow_nan=False)


class StoredMaps(Sequence[np.ndarray]):
    """Localization maps in files of a folder, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._n = 0

    def append(self, single: np.ndarray) -> None:
        """Write one more map."""
        np.save(self._folder / f"{self._n}.npy", single)
        self._n += 1

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._n:
            raise IndexError(index)
        return np.load(self._folder / f"{index}.npy")


def image_figures(y: np.ndarray, scores: np.ndarray, offset: float) -> dict[str, float]:
    """Return the metrics of image scores, anomalies being positive."""
    anomalous = y == -1
    return {
        "images": len(y),
        "image AUROC": roc_auc(y, scores),
        "image average precision": average_precision(y, scores),
        "image F1 max": best_f1(y, scores),
        "image FPR at 95 % TPR": fpr95(y, scores),
        "anomalies found": float(np.mean(scores[anomalous] < offset)),
        "false alarms": float(np.mean(scores[~anomalous] < offset)),
    }


def pixel_figures(masks: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the metrics of localization maps."""
    return {
        "pixel AUROC": metrics.pixel_roc_auc_score(masks, maps, exact=False),
        "pixel average precision": metrics.pixel_average_precision_score(masks, maps, exact=False),
        "pixel F1 max": metrics.pixel_f1_max_score(masks, maps, exact=False),
        "AUPRO": metrics.aupro_score(masks, maps, exact=False),
    }


def loaded(given: argparse.Namespace) -> Any:
    """Return the model, on the device and with the answer to unreadable files that were given."""
    detector = load(given.model, device=given.device)
    return detector if given.on_error is None else detector.set_params(on_error=given.on_error)


def files(places: Sequence[Path]) -> list[Path]:
    """Return files as they are, and the images of folders."""
    if missing := [place for place in places if not place.exists()]:
        raise ValueError(f"{missing[0]} must be a folder or a file; there is nothing of that name.")
    return [
        path
        for place in places
        for path in (datasets.list_images(place) if place.is_dir() else [place])
    ]


def is_within(path: Path, folder: Path) -> bool:
    """Tell whether a path lies in a folder, whether or not they are there."""
    return Path(os.path.abspath(folder)) in Path(os.path.abspath(path)).parents


def destinations(given: argparse.Namespace) -> dict[Path, Path]:
    """Return for each image where its results go, without suffix.

    As it lies in its folder; of several folders, each has one of its own. What lies in the folder
    of results is a result, and no image.
    """
    output = Path(os.path.abspath(given.output))
    found: dict[Path, Path] = {}
    owners: dict[Path, Path] = {}
    for place in given.images:
        whole = Path(os.path.abspath(place))
        root = whole if place.is_dir() and len(given.images) == 1 else whole.parent
        for path in files([place]):
            lies = Path(os.path.abspath(path))
            if whole in output.parents and output in lies.parents:
                continue
            target = output / lies.relative_to(root).with_suffix("")
            if (other := owners.setdefault(target, path)) != path:
                raise ValueError(
                    "images must have names of their own, apart from folder and suffix; got "
                    f"{other} and {path}."
                )
            found[path] = target
    inputs = {path.resolve() for path in found}
    for target in found.values():
        for name in (f"{target.name}.png", f"{target.name}.npy"):
            if (overwritten := target.with_name(name)).resolve() in inputs:
                raise ValueError(
                    f"--output must not be where the images are; {overwritten} would be replaced."
                )
    return found


class Answer(NamedTuple):
    """What a detector says of an image."""

    path: Path
    score: float
    map: np.ndarray  # (H, W)
    picture: Image  # of the map over the image


def scored(
    detector: Any, paths: Sequence[Path], silent: bool = False
) -> Iterator[tuple[Path, float]]:
    """Yield each path with its score, some batches at a time."""
    size = BATCHES * detector._batch_size
    starts = progressing(range(0, len(paths), size), silent=silent)
    for chunk in (paths[start : start + size] for start in starts):
        yield from zip(chunk, detector.score_samples(chunk).tolist(), strict=True)


def localized(detector: Any, paths: Sequence[Path]) -> Iterator[Answer]:
    """Yield what the detector says of each image; a batch of them is in memory at a time."""
    if not paths:
        return
    images, threshold = detector._take_in(paths), detector._threshold("map_offset_")
    answers = zip(paths, detector._scores_and_maps(images), pictures(images), strict=True)
    for path, (each, single), image in progressing(answers, len(images)):
        yield Answer(path, each, single, overlay(image, single, threshold))


def save_answer(answer: Answer, target: Path) -> None:
    """Write the map of an image, and the picture of it."""
    array, image = BytesIO(), BytesIO()
    np.save(array, answer.map)
    answer.picture.save(image, "PNG")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target.with_name(f"{target.name}.npy"), array.getvalue())
    write_whole(target.with_name(f"{target.name}.png"), image.getvalue())


def thumbnail(answer: Answer) -> Entry:
    """Return what a report keeps of an image."""
    answer.picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return Entry(str(answer.path), answer.score, answer.picture)


def worst(entries: Sequence[Entry]) -> list[Entry]:
    """Return those of the lowest scores, as many as a report pictures."""
    known = [entry for entry in entries if np.isfinite(entry.score)]
    return sorted(known, key=attrgetter("score"))[:PICTURED]


def report(
    given: argparse.Namespace, detector: Any, entries: Sequence[Entry], shown: Sequence[Entry]
) -> None:
    """Write a page of all images, some of them with their pictures."""
    pictured = {entry.path: entry for entry in shown}
    every = [pictured.get(entry.path, entry) for entry in entries]
    given.report.parent.mkdir(parents=True, exist_ok=True)
    with written(given.report) as stream:
        threshold = detector._threshold("offset_")
        write_report(stream, every, threshold, given.model.name, shown=PICTURED)


def progressing(work: Iterable[T], total: int | None = None, silent: bool = False) -> Iterator[T]:
    """Yield from work; a terminal shows how far it is."""
    return iter(tqdm(work, total=total, disable=True if silent else None))


@contextmanager
def written(path: Path | None) -> Iterator[TextIO]:
    """Give standard output, or what becomes a file when all is there."""
    if path is None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors=UNDECODED)
        yield sys.stdout
        return
    content = StringIO()
    yield content
    write_whole(path, content.getvalue().encode(errors=UNDECODED))
