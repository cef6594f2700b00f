"""The commands of the command line, one function each; the library does the computing."""

from __future__ import annotations

import argparse
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL.Image import Image
from tqdm import tqdm

from skmkd import datasets
from skmkd._cli.evaluation import StoredArrays, image_metrics, pixel_metrics
from skmkd._cli.localization import COLUMNS as REGION_COLUMNS
from skmkd._cli.localization import compact_map, picture, region_rows, write_files
from skmkd._cli.outputs import Failures, check_complete, in_threads, map_shape, of_each
from skmkd._cli.paths import good_images, is_within, new_images, output_paths, split_paths
from skmkd._cli.report import THUMBNAIL, Entry, write_report
from skmkd._cli.tables import SURROGATES, Table, output_stream, to_json
from skmkd._files.archive import check_target
from skmkd._images.images import Images
from skmkd._images.inputs import as_images
from skmkd._loading import load
from skmkd._maps.finishing import Output
from skmkd._memkd import MemKDDetector
from skmkd._mkd import MKDDetector
from skmkd._regions import regions
from skmkd._thresholds import check_fpr

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
        table = Table(stream, args.format, COLUMNS)
        outputs = iter_outputs(detector, paths, failures, maps=False, bar=not rows_on_terminal)
        for path, output in outputs:
            table.write([(str(path), output.score, output.score - threshold, threshold)])
            entries.append(Entry(str(path), output.score, None))
    if args.report:
        lowest = [Path(entry.path) for entry in lowest_scores(entries)]
        map_threshold = detector._threshold("map_offset_")

        def draw(result: Result) -> Entry:
            path, (images, output) = result
            return report_entry(path, output, picture(images, output, map_threshold))

        with closing(in_threads(draw, iter_results(detector, lowest, []), map_pixels)) as drawn:
            pictured = list(tqdm(drawn, total=len(lowest), disable=None))
        save_report(args, detector, entries, pictured)
    check_complete(failures, len(paths))


def localize(args: argparse.Namespace) -> None:
    """Write the localization map of each image, a picture of it, and a table of all regions.

    The map is an array in NumPy's .npy format, higher = more anomalous. The picture is a .jpg of
    the image, at most 1024 pixels wide and high, with pixels above the map threshold coloured from
    yellow (at the threshold) to red (at 1.5 times the threshold). The table, regions.csv, has a row
    for each connected region above the map threshold, largest first: the path and the number of the
    region within the image; its box (top, left, bottom, right; the last two are the first row and
    column outside), area and centroid (row, column) in pixels of the image; peak and mean of the
    map.
    """
    if args.report and not is_within(args.report, args.output):
        check_target(args.report)
    table_path = args.output / f"regions.{args.format}"
    detector, targets = load_model(args), output_paths(args.images, args.output, table_path)
    threshold = detector._threshold("map_offset_")
    find = partial(
        regions, threshold=threshold, min_area=args.min_area, low_threshold=args.low_threshold
    )
    find([])  # checks its parameters before anything is written

    def write(result: Result) -> tuple[Entry, list[tuple[str | float, ...]]]:
        path, (images, output) = result
        drawn = picture(images, output, threshold)
        write_files(targets[path], drawn, stored_map(detector, output.map, args.maps))
        found = region_rows(path, find([output.map])[0])
        if args.report:
            return report_entry(path, output, drawn), found
        return Entry(str(path), output.score, None), found

    failures: Failures = []
    entries: list[Entry] = []
    pictured: list[Entry] = []
    results = iter_results(detector, list(targets), failures)
    args.output.mkdir(parents=True, exist_ok=True)
    with (
        table_path.open("w", encoding="utf-8", errors=SURROGATES, newline="") as stream,
        closing(in_threads(write, results, map_pixels)) as written,
    ):
        table = Table(stream, args.format, REGION_COLUMNS)
        for entry, found in tqdm(written, total=len(targets), disable=None):
            table.write(found)
            entries.append(entry._replace(overlay=None))
            if args.report:
                pictured = lowest_scores([*pictured, entry])
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


def load_model(args: argparse.Namespace) -> Any:
    """Load the model with the options `--device` and `--on-error`."""
    detector = load(args.model, device=args.device)
    return detector if args.on_error is None else detector.set_params(on_error=args.on_error)


Result = tuple[Path, tuple[Images, Output]]  # the images are those that the output is of one of


def iter_outputs(
    detector: Any, paths: Sequence[Path], failures: Failures, *, maps: bool = True, bar: bool = True
) -> Iterator[tuple[Path, Any]]:
    """Yield the output of each image in order, with a progress bar if stderr is a terminal."""

    def outputs(part: Sequence[Path]) -> Iterator[Any]:
        return detector._outputs(detector._check_images(part), maps=maps)

    each = of_each(outputs, paths, failures)
    return iter(tqdm(each, total=len(paths), disable=None if bar else True))


def iter_results(detector: Any, paths: Sequence[Path], failures: Failures) -> Iterator[Result]:
    """Yield score and map of each image, with the images; one batch of maps is held in memory."""

    def results(part: Sequence[Path]) -> Iterator[tuple[Images, Output]]:
        images = detector._check_images(part)
        return ((images, output) for output in detector._outputs(images))

    return of_each(results, paths, failures)


def map_pixels(result: Result) -> int:
    """Return the number of pixels of a map."""
    _, (_, output) = result
    return output.map.size


def stored_map(detector: Any, single: np.ndarray, kind: str) -> np.ndarray | None:
    """Return a map as `--maps` says, or None for no map."""
    if kind == "small":
        return compact_map(single, map_shape(detector, single.shape))
    return single if kind == "full" else None


def report_entry(path: Path, output: Output, drawn: Image) -> Entry:
    """Return the report's entry of an image, with its picture scaled down in place."""
    drawn.thumbnail((THUMBNAIL, THUMBNAIL))
    return Entry(str(path), output.score, drawn)


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
