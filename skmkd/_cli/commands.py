"""The commands of the command line, one function each; the library does the computing."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO, TextIOWrapper
from math import ceil
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL.Image import Image
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from skmkd import datasets
from skmkd._cli.evaluation import StoredArrays, image_metrics, pixel_metrics
from skmkd._cli.report import THUMBNAIL, Entry, overlay, write_report
from skmkd._files.archive import check_target, write_whole
from skmkd._images.image_files import readable
from skmkd._loading import load
from skmkd._memkd import MemKDDetector
from skmkd._mkd import MKDDetector
from skmkd._runtime import draw_seed
from skmkd._thresholds import check_fpr
from skmkd.inspection._localization_display import pictures

MAX_PICTURES = 100  # in a report
METHODS: dict[str, Callable[..., Any]] = {"mkd": MKDDetector, "memkd": MemKDDetector}
ATTRIBUTES = (
    "offset_", "map_offset_", "image_shape_", "pixel_range_", "critical_layers_",
    "direction_weight_", "memory_levels_", "precision_", "n_iter_",
)  # fmt: skip
NOT_CALIBRATED = (
    "The thresholds were set on the training images and will give too many false alarms on new "
    "images. Set them on other images: --hold-out SHARE or --calibrate FOLDER."
)
SURROGATES = "surrogateescape"  # writes file names that are not valid text byte for byte
COLUMNS = ("path", "score", "decision", "threshold")
LAYOUTS: dict[str, Callable[..., Any]] = {
    "mvtec_ad": datasets.load_mvtec_ad,
    "visa": datasets.load_visa,
    "mpdd": datasets.load_mpdd,
    "btad": datasets.load_btad,
}


def fit(args: argparse.Namespace) -> None:
    """Train a detector on normal images and save it to a file.

    Thresholds set on the training images give too many false alarms on new images. Use --hold-out
    or --calibrate to set them on other normal images. After the first epoch, Ctrl-C stops training
    early: the model is still written, with a warning. A second Ctrl-C aborts, and nothing is
    written.
    """
    check_target(args.output)
    training, held_out = image_paths(args.folder), image_paths(args.calibrate or [])
    parameters, fpr = args.parameters, 0.05 if args.fpr is None else args.fpr
    detector = METHODS[args.method](**{"verbose": int(sys.stderr.isatty())} | parameters)
    detector._validate_params()
    if args.hold_out:
        training, held_out = split_paths(training, args.hold_out, detector.random_state)
    if held_out:
        if detector.on_error == "skip":
            held_out = readable(held_out)
        check_fpr(fpr, len(held_out), "--hold-out" if args.hold_out else "--calibrate")
    elif args.fpr is not None:
        raise ValueError("--fpr must come with --hold-out or --calibrate.")
    detector.fit(training).set_params(verbose=parameters.get("verbose", 0))
    if held_out:
        detector.calibrate(held_out, fpr=fpr)
    else:
        warnings.warn(NOT_CALIBRATED, UserWarning, stacklevel=2)
    detector.save(args.output)


def split_paths(
    paths: list[Path], share: float, random_state: int | None
) -> tuple[list[Path], list[Path]]:
    """Split paths at random into training images and held-out images."""
    if not 0 < share < 1:
        raise ValueError(f"--hold-out must be a share between 0 and 1; got {share:g}.")
    if (left := len(paths) - ceil(share * len(paths))) < 2:
        raise ValueError(
            f"--hold-out must leave at least 2 images to train on; got {share:g}, which leaves "
            f"{left} of {len(paths)}."
        )
    seed = draw_seed(random_state)
    training, held_out = train_test_split(paths, test_size=share, random_state=seed)
    return sorted(training), sorted(held_out)


def score(args: argparse.Namespace) -> None:
    """Write the path, score, decision and threshold of each image.

    Higher scores are more normal. The decision is score minus threshold; images with a negative
    decision are anomalies. With --on-error skip, the score of an unreadable file is nan (null in
    JSON); otherwise such a file is an error.
    """
    for target in filter(None, (args.output, args.report)):
        check_target(target)
    detector, paths = load_model(args), image_paths(args.images)
    threshold = detector._threshold("offset_")
    if args.report:
        detector._threshold("map_offset_")
    images = detector._check_images(paths)
    entries: list[Entry] = []
    rows_on_terminal = args.output is None and sys.stdout.isatty()
    with output_stream(args.output) as stream:
        table = csv.writer(stream, lineterminator="\n")
        if args.format == "csv":
            table.writerow(COLUMNS)
        outputs = iter_outputs(detector, images, maps=False, show_progress=not rows_on_terminal)
        for path, output in zip(paths, outputs, strict=True):
            row = [str(path), output.score, output.score - threshold, threshold]
            if args.format == "csv":
                table.writerow(row)
            else:
                stream.write(to_json(dict(zip(COLUMNS, row, strict=True))) + "\n")
            entries.append(Entry(str(path), output.score, None))
    if args.report:
        lowest = lowest_scores(entries)
        results = iter_results(detector, [Path(entry.path) for entry in lowest])
        save_report(args, detector, entries, [report_entry(result) for result in results])


def localize(args: argparse.Namespace) -> None:
    """Write the localization map of each image, as an array and as a picture.

    The map is a float32 array of shape (H, W) in NumPy's .npy format, higher = more anomalous. The
    picture is a .png of the image, with pixels above the map threshold coloured from yellow (at the
    threshold) to red (at 1.5 times the threshold).
    """
    if args.report and not is_within(args.report, args.output):
        check_target(args.report)
    detector, targets = load_model(args), output_paths(args)
    entries: list[Entry] = []
    pictured: list[Entry] = []
    for result in iter_results(detector, list(targets)):
        save_result(result, targets[result.path])
        entries.append(Entry(str(result.path), result.score, None))
        if args.report:
            pictured = lowest_scores([*pictured, report_entry(result)])
    if args.report:
        save_report(args, detector, entries, pictured)


def evaluate(args: argparse.Namespace) -> None:
    """Print metrics of a model on a labelled data set, as JSON.

    Image metrics: area under the ROC curve (AUROC), average precision, maximum F1, false-positive
    rate at 95 % true-positive rate, and the share of anomalies found and of false alarms at the
    model's threshold. Pixel metrics, if the data set has masks: AUROC, average precision, maximum
    F1, and AUPRO up to a false-positive rate of 0.3.
    """
    detector = load_model(args)
    threshold = detector._threshold("offset_")
    if args.layout == "folder":
        data = datasets.load_image_folder(args.dataset)
    elif args.category is None:
        raise ValueError(f"--category must be given for --layout {args.layout}.")
    else:
        data = LAYOUTS[args.layout](args.dataset, args.category, subset="test")
    if len(set(data.y.tolist())) < 2:
        raise ValueError("dataset must hold normal images and anomalies; got one kind only.")
    with TemporaryDirectory() as folder:
        maps = StoredArrays(Path(folder), "map")
        images = detector._check_images(data.paths)
        scores = np.empty(len(images))
        for output in iter_outputs(detector, images, maps=data.masks is not None):
            scores[output.index] = output.score
            if output.map is not None:
                maps.append(output.map)
        if np.isnan(scores).any():
            raise ValueError(f"dataset must be readable; got {data.paths[np.isnan(scores)][0]}.")
        metrics = image_metrics(data.y, scores, threshold)
        if data.masks is not None:
            masks = StoredArrays(Path(folder), "mask")  # each metric iterates several times
            for mask in data.masks:
                masks.append(mask)
            metrics |= pixel_metrics(masks, maps)
    print(to_json(metrics, indent=2))


def info(args: argparse.Namespace) -> None:
    """Print the class, parameters, thresholds and training of a model, as JSON."""
    detector = load(args.model, device="cpu")
    parameters = detector.get_params(deep=False)
    if isinstance(weights := parameters.get("source_weights"), Mapping):
        parameters["source_weights"] = f"a dict of {len(weights)} tensors"
    facts = {
        "class": type(detector).__name__,
        **{name: getattr(detector, name) for name in ATTRIBUTES if hasattr(detector, name)},
        "final loss": {name: float(curve[-1]) for name, curve in detector.loss_curve_.items()},
        "parameters": {k: v for k, v in parameters.items() if not is_deprecated(v)},
    }
    print(to_json(facts, indent=2))


def is_deprecated(value: Any) -> bool:
    """Return whether a parameter has the value that marks it as deprecated and not set."""
    return isinstance(value, str) and value == "deprecated"


def to_json(facts: dict[str, Any], indent: int | None = None) -> str:
    """Return JSON, with NaN written as null."""
    plain = {name: None if value != value else value for name, value in facts.items()}
    return json.dumps(plain, indent=indent, default=repr, allow_nan=False)


def load_model(args: argparse.Namespace) -> Any:
    """Load the model with the options `--device` and `--on-error`."""
    detector = load(args.model, device=args.device)
    return detector if args.on_error is None else detector.set_params(on_error=args.on_error)


def image_paths(places: Sequence[Path]) -> list[Path]:
    """Return the given files, and the images in the given folders."""
    if missing := [place for place in places if not place.exists()]:
        raise ValueError(f"{missing[0]} must be a folder or a file; it does not exist.")
    return [
        path
        for place in places
        for path in (datasets.list_images(place) if place.is_dir() else [place])
    ]


def is_within(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder; neither needs to exist."""
    return Path(os.path.abspath(folder)) in Path(os.path.abspath(path)).parents


def output_paths(args: argparse.Namespace) -> dict[Path, Path]:
    """Return the output path of each image, without suffix.

    Output paths mirror the folder of the images. With several folders, the name of each folder
    comes first. Files in the output folder are earlier results, and are not read as images.
    """
    output = Path(os.path.abspath(args.output))
    targets: dict[Path, Path] = {}
    owners: dict[Path, Path] = {}
    for place in args.images:
        absolute = Path(os.path.abspath(place))
        root = absolute if place.is_dir() and len(args.images) == 1 else absolute.parent
        for path in image_paths([place]):
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
    inputs = {path.resolve() for path in targets}
    for target in targets.values():
        for name in (f"{target.name}.png", f"{target.name}.npy"):
            if (overwritten := target.with_name(name)).resolve() in inputs:
                raise ValueError(
                    "--output must not be the folder of the images; "
                    f"{overwritten} would be overwritten."
                )
    return targets


class Result(NamedTuple):
    """Score and localization map of one image."""

    path: Path
    score: float
    map: np.ndarray  # (H, W)
    picture: Image  # the map over the image


def iter_outputs(
    detector: Any, images: Any, *, maps: bool = True, show_progress: bool = True
) -> Iterator[Any]:
    """Yield the output of each image in order, with a progress bar if stderr is a terminal."""
    outputs = detector._outputs(images, maps=maps)
    return iter(tqdm(outputs, total=len(images), disable=None if show_progress else True))


def iter_results(detector: Any, paths: Sequence[Path]) -> Iterator[Result]:
    """Yield the result of each image; only one batch is held in memory."""
    if not paths:
        return
    images, threshold = detector._check_images(paths), detector._threshold("map_offset_")
    outputs = iter_outputs(detector, images)
    for path, output, image in zip(paths, outputs, pictures(images), strict=True):
        picture = overlay(image, output.map, threshold)
        yield Result(path, output.score, output.map, picture)


def save_result(result: Result, target: Path) -> None:
    """Write the map of an image as .npy and its picture as .png."""
    array, image = BytesIO(), BytesIO()
    np.save(array, result.map)
    result.picture.save(image, "PNG")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target.with_name(f"{target.name}.npy"), array.getvalue())
    write_whole(target.with_name(f"{target.name}.png"), image.getvalue())


def report_entry(result: Result) -> Entry:
    """Return the report's entry of a result, with its picture scaled down in place."""
    result.picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return Entry(str(result.path), result.score, result.picture)


def lowest_scores(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with the lowest scores, as many as a report shows pictures of."""
    finite = [entry for entry in entries if np.isfinite(entry.score)]
    return sorted(finite, key=attrgetter("score"))[:MAX_PICTURES]


def save_report(
    args: argparse.Namespace, detector: Any, entries: Sequence[Entry], pictured: Sequence[Entry]
) -> None:
    """Write a report on all entries, with the pictures of some of them."""
    with_picture = {entry.path: entry for entry in pictured}
    merged = [with_picture.get(entry.path, entry) for entry in entries]
    args.report.parent.mkdir(parents=True, exist_ok=True)
    with output_stream(args.report) as stream:
        threshold = detector._threshold("offset_")
        write_report(stream, merged, threshold, args.model.name, shown=MAX_PICTURES)


@contextmanager
def output_stream(path: Path | None) -> Iterator[TextIO]:
    """Yield standard output, or a buffer that is written to the file at the end."""
    if path is None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors=SURROGATES)
        yield sys.stdout
        return
    buffer = StringIO()
    yield buffer
    write_whole(path, buffer.getvalue().encode(errors=SURROGATES))
