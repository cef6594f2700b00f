"""The commands of the command line, one function each; the library does the computing."""

from __future__ import annotations

import argparse
import csv
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO, StringIO, TextIOWrapper
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL.Image import Image
from tqdm import tqdm

from skmkd import datasets
from skmkd._cli.evaluation import StoredArrays, image_metrics, pixel_metrics
from skmkd._cli.outputs import Failures, check_complete, of_each
from skmkd._cli.paths import good_images, is_within, new_images, output_paths, split_paths
from skmkd._cli.report import THUMBNAIL, Entry, overlay, write_report
from skmkd._files.archive import check_target, write_whole
from skmkd._images.inputs import as_images
from skmkd._loading import load
from skmkd._memkd import MemKDDetector
from skmkd._mkd import MKDDetector
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
    "folder": datasets.load_image_folder,
    "mvtec_ad": partial(datasets.load_mvtec_ad, subset="test"),
    "mvtec_ad_2": partial(datasets.load_mvtec_ad_2, subset="test_public"),
    "mvtec_loco": partial(datasets.load_mvtec_loco, subset="test"),
    "mvtec_3d_ad": partial(datasets.load_mvtec_3d_ad, subset="test"),
    "visa": partial(datasets.load_visa, subset="test"),
    "mpdd": partial(datasets.load_mpdd, subset="test"),
    "btad": partial(datasets.load_btad, subset="test"),
    "kolektor_sdd": datasets.load_kolektor_sdd,
    "kolektor_sdd2": partial(datasets.load_kolektor_sdd2, subset="test"),
}


def fit(args: argparse.Namespace) -> None:
    """Train a detector on normal images and save it to a file.

    Thresholds set on the training images give too many false alarms on new images. Use --hold-out
    or --calibrate to set them on other normal images. After the first epoch, Ctrl-C stops training
    early: the model is still written, with a warning. A second Ctrl-C aborts, and nothing is
    written.
    """
    check_target(args.output)
    training, held_out = good_images(args.folder), good_images(args.calibrate or [])
    parameters, fpr = args.parameters, 0.05 if args.fpr is None else args.fpr
    detector = METHODS[args.method](**{"verbose": int(sys.stderr.isatty())} | parameters)
    detector._validate_params()
    if args.hold_out:
        training, held_out = split_paths(training, args.hold_out, detector.random_state)
    if held_out:
        if detector.on_error == "skip":
            held_out = [file.path for file in as_images(detector, held_out, True).usable().items]
        check_fpr(fpr, len(held_out), "--hold-out" if args.hold_out else "--calibrate")
    elif args.fpr is not None:
        raise ValueError("--fpr must come with --hold-out or --calibrate.")
    calibrated = f", calibrating on {len(held_out)}" if held_out else ""
    print(f"Training on {len(training)} images{calibrated}.", flush=True)
    detector.fit(training).set_params(verbose=parameters.get("verbose", 0))
    if held_out:
        detector.calibrate(held_out, fpr=fpr)
    else:
        warnings.warn(NOT_CALIBRATED, UserWarning, stacklevel=2)
    detector.save(args.output)


def score(args: argparse.Namespace) -> None:
    """Write the path, score, decision and threshold of each image.

    Higher scores are more normal. The decision is score minus threshold; images with a negative
    decision are anomalies. An image that cannot be scored has no row, and is an error after all
    others have theirs; with --on-error skip its score is nan (null in JSON).
    """
    for target in filter(None, (args.output, args.report)):
        check_target(target)
    detector, paths = load_model(args), new_images(args.images)
    threshold = detector._threshold("offset_")
    if args.report:
        detector._threshold("map_offset_")
    entries: list[Entry] = []
    failures: Failures = []
    rows_on_terminal = args.output is None and sys.stdout.isatty()
    with output_stream(args.output, keep=True) as stream:
        table = csv.writer(stream, lineterminator="\n")
        if args.format == "csv":
            table.writerow(COLUMNS)
        outputs = iter_outputs(detector, paths, failures, maps=False, bar=not rows_on_terminal)
        for path, output in outputs:
            row = [str(path), output.score, output.score - threshold, threshold]
            if args.format == "csv":
                table.writerow(row)
            else:
                stream.write(to_json(dict(zip(COLUMNS, row, strict=True))) + "\n")
            stream.flush()
            entries.append(Entry(str(path), output.score, None))
    if args.report:
        lowest = [Path(entry.path) for entry in lowest_scores(entries)]
        pictured = [report_entry(result) for result in iter_results(detector, lowest, [])]
        save_report(args, detector, entries, pictured)
    check_complete(failures, len(paths))


def localize(args: argparse.Namespace) -> None:
    """Write the localization map of each image, as an array and as a picture.

    The map is a float32 array of shape (H, W) in NumPy's .npy format, higher = more anomalous. The
    picture is a .png of the image, with pixels above the map threshold coloured from yellow (at the
    threshold) to red (at 1.5 times the threshold).
    """
    if args.report and not is_within(args.report, args.output):
        check_target(args.report)
    detector, targets = load_model(args), output_paths(args.images, args.output)
    failures: Failures = []
    entries: list[Entry] = []
    pictured: list[Entry] = []
    for result in iter_results(detector, list(targets), failures):
        save_result(result, targets[result.path])
        entries.append(Entry(str(result.path), result.score, None))
        if args.report:
            pictured = lowest_scores([*pictured, report_entry(result)])
    if args.report:
        save_report(args, detector, entries, pictured)
    check_complete(failures, len(targets))


def evaluate(args: argparse.Namespace) -> None:
    """Print metrics of a model on a labelled data set, as JSON.

    Image metrics: area under the ROC curve (AUROC), average precision, maximum F1, false-positive
    rate at 95 % true-positive rate, and the share of anomalies found and of false alarms at the
    model's threshold. Pixel metrics, if the data set has masks: AUROC, average precision, maximum
    F1, and AUPRO up to a false-positive rate of 0.3.
    """
    detector = load_model(args)
    threshold = detector._threshold("offset_")
    data = load_dataset(args.layout, args.dataset, args.category)
    if len(set(data.y.tolist())) < 2:
        raise ValueError("dataset must hold normal images and anomalies; got one kind only.")
    with TemporaryDirectory() as folder:
        maps = StoredArrays(Path(folder), "map")
        scores: list[float] = []
        failures: Failures = []
        with_maps = data.masks is not None
        for path, output in iter_outputs(detector, data.paths, failures, maps=with_maps):
            check_complete(failures, len(data.paths))
            if np.isnan(output.score):
                raise ValueError(f"dataset must be readable; got {path}.")
            scores.append(output.score)
            if with_maps:
                maps.append(output.map)
        check_complete(failures, len(data.paths))
        metrics = image_metrics(data.y, np.array(scores), threshold)
        if with_maps:
            masks = StoredArrays(Path(folder), "mask")  # each metric iterates several times
            for mask in data.masks:
                masks.append(mask)
            metrics |= pixel_metrics(masks, maps)
    print(to_json(metrics, indent=2))


def load_dataset(layout: str, folder: Path, category: str | None) -> Any:
    """Load the images and labels of a dataset that a detector is evaluated on."""
    load = LAYOUTS[layout]
    has_categories = "category" in inspect.signature(load).parameters
    if has_categories and category is None:
        raise ValueError(f"--category must be given for --layout {layout}.")
    if category is not None and not has_categories:
        raise ValueError(f"--category must not be given for --layout {layout}, which has none.")
    return load(folder, category) if has_categories else load(folder)


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


class Result(NamedTuple):
    """Score and localization map of one image."""

    path: Path
    score: float
    map: np.ndarray  # (H, W)
    picture: Image  # the map over the image


def iter_outputs(
    detector: Any, paths: Sequence[Path], failures: Failures, *, maps: bool = True, bar: bool = True
) -> Iterator[tuple[Path, Any]]:
    """Yield the output of each image in order, with a progress bar if stderr is a terminal."""

    def outputs(part: Sequence[Path]) -> Iterator[Any]:
        return detector._outputs(detector._check_images(part), maps=maps)

    each = of_each(outputs, paths, failures)
    return iter(tqdm(each, total=len(paths), disable=None if bar else True))


def iter_results(detector: Any, paths: Sequence[Path], failures: Failures) -> Iterator[Result]:
    """Yield the result of each image; only one batch is held in memory."""
    threshold = detector._threshold("map_offset_")

    def results(part: Sequence[Path]) -> Iterator[tuple[Any, Any]]:
        images = detector._check_images(part)
        return zip(detector._outputs(images), pictures(images), strict=True)

    each = of_each(results, paths, failures)
    for path, (output, image) in tqdm(each, total=len(paths), disable=None):
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
def output_stream(path: Path | None, *, keep: bool = False) -> Iterator[TextIO]:
    """Yield standard output, or a buffer that is written to the file at the end.

    With `keep`, what was written before an error is kept, too.
    """
    if path is None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors=SURROGATES)
        yield sys.stdout
        return
    buffer = StringIO()
    try:
        yield buffer
    except Exception:
        if keep:
            write_whole(path, buffer.getvalue().encode(errors=SURROGATES))
        raise
    write_whole(path, buffer.getvalue().encode(errors=SURROGATES))
