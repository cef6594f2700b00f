"""The commands of the command line, one function each; the library does the computing."""

from __future__ import annotations

import argparse
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from skmkd._cli.outputs import Failures, about, check_complete, in_threads, map_shape, usable
from skmkd._cli.parts import score_part
from skmkd._cli.paths import counted, good_images, is_within, new_images, output_paths
from skmkd._cli.report import THUMBNAIL, Entry, write_report
from skmkd._cli.tables import FORMATS, SURROGATES, Table, output_stream, to_json
from skmkd._conformal import check_fpr, held_out
from skmkd._ensemble import OWN, DetectorEnsemble
from skmkd._files.archive import check_target
from skmkd._images.image_files import ImageFile
from skmkd._images.inputs import as_images
from skmkd._loading import load
from skmkd._memkd import MemKDDetector
from skmkd._mkd import MKDDetector
from skmkd._regions import regions
from skmkd._scoring import Result
from skmkd.monitoring import drift_test

MAX_PICTURES = 100  # in a report
METHODS: dict[str, Callable[..., Any]] = {"mkd": MKDDetector, "memkd": MemKDDetector}
ATTRIBUTES = (
    "offset_", "map_offset_", "image_shape_", "pixel_range_", "critical_layers_",
    "direction_weight_", "memory_levels_", "precision_", "n_iter_",
)  # fmt: skip
COLUMNS = ("path", "score", "decision", "threshold", "p_value")
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

    With several --source, one detector each is trained, and they judge images together.

    Some of the images are held out of training, and thresholds are set on them, or on the images
    of --calibrate. After the first epoch, Ctrl-C stops training early: the model is still written,
    with a warning. A second Ctrl-C aborts, and nothing is written.
    """
    check_target(args.output)
    good, others = good_images(args.folder), good_images(args.calibrate or [])
    parameters, fpr = args.parameters, 0.05 if args.fpr is None else args.fpr
    if args.calibrate:
        parameters = parameters | {"validation_fraction": 0}
    detector = new_detector(args, {"verbose": int(sys.stderr.isatty())} | parameters)
    detector._validate_params()
    if args.calibrate and detector.on_error == "skip":
        others = [file.path for file in as_images(detector, others, True).usable().items]
    n_held = n_held_out(detector, len(good))
    n_calibration = len(others) if args.calibrate else n_held
    if args.calibrate or args.fpr is not None:
        check_fpr(fpr, n_calibration, "--calibrate" if args.calibrate else "--hold-out")
    calibrated = f", calibrating on {n_calibration}" if n_calibration else ""
    print(f"Training on {len(good) - n_held} images{calibrated}.", flush=True)
    for each in members(detector.fit(good)):
        each.set_params(verbose=parameters.get("verbose", 0))
    if args.calibrate:
        detector.calibrate(others, fpr=fpr)
    elif args.fpr is not None:
        detector.save(args.output)  # if some files cannot be read, there may be too few for that
        detector.set_fpr(fpr)
    detector.save(args.output)


def new_detector(args: argparse.Namespace, parameters: Mapping[str, Any]) -> Any:
    """Return the detector that the options describe; with several sources, an ensemble."""
    method, sources = METHODS[args.method], parameters.get("source", ())
    combine = {} if args.combine is None else {"combine": args.combine}
    if len(sources) > 1:
        each = [(str(source), method(**{**parameters, "source": source})) for source in sources]
        shared = {name: parameters[name] for name in OWN if name in parameters}
        return DetectorEnsemble(each, **combine, **shared)
    if combine:
        raise ValueError("--combine must be given with several --source; got one at most.")
    only = {"source": sources[0]} if sources else {}
    return method(**{**parameters, **only})


def members(detector: Any) -> list[Any]:
    """Return the fitted detectors of an ensemble, or the only one."""
    return getattr(detector, "detectors_", [detector])


def n_held_out(detector: Any, n: int) -> int:
    """Return how many of n images `fit` holds out for the thresholds."""
    if not detector._share_held_out or n < 2:
        return 0
    _, held = held_out(n, detector._share_held_out, None, np.random.default_rng(0))
    return len(held)


def score(args: argparse.Namespace) -> None:
    """Write the path, score, decision, threshold and p-value of each image.

    Higher scores are more normal. The decision is score minus threshold; images with a negative
    decision are anomalies. The p-value is the share of normal images that look at least as
    anomalous; it is nan (null in JSON) for a model without calibration images. An image that cannot
    be scored has no row, and is an error after all others have theirs; with --on-error skip its
    score is nan.

    With --shard, each part of the images is a command of its own, whose rows are written as they
    come, into a file of the folder --output.
    """
    if args.shard is not None or args.resume or args.format not in FORMATS:
        score_part(args)
        return
    for target in filter(None, (args.output, args.report)):
        check_target(target)
    detector, paths = load_model(args), new_images(args.images)
    results = detector.iter_results(paths)
    if args.report:
        detector._threshold("map_offset_")
    if args.drift and detector.calibration_scores_ is None:
        raise ValueError(
            "--drift must be given a model with calibration images; this one has thresholds from "
            "its training images."
        )
    entries: list[Entry] = []
    failures: Failures = []
    rows_on_terminal = args.output is None and sys.stdout.isatty()
    with output_stream(args.output, keep=True) as stream:
        table = Table(stream, args.format, COLUMNS)
        bar = tqdm(results, total=len(paths), disable=True if rows_on_terminal else None)
        for result in usable(bar, failures, detector.on_error == "skip"):
            row = result.score, result.decision, detector.offset_, result.p_value
            table.write([(result.path, *row)])
            entries.append(entry(result))
    if args.report:
        lowest = [each.path for each in lowest_scores(entries)]

        def draw(result: Result) -> Entry:
            return entry(result, drawn_over(detector, result))

        results = detector.iter_results(lowest, maps=True) if lowest else iter(())
        with closing(in_threads(draw, usable(results, [], skip=False), map_pixels)) as drawn:
            pictured = list(tqdm(drawn, total=len(lowest), disable=None))
        save_report(args, detector, entries, pictured)
    if args.drift:
        print_drift(detector, [each.score for each in entries])
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
    find = partial(
        regions, threshold=detector._threshold("map_offset_"), min_area=args.min_area,
        low_threshold=args.low_threshold,
    )  # fmt: skip
    find([])  # checks its parameters before anything is written
    paths = list(targets)

    def write(result: Result) -> tuple[Entry, list[tuple[str | float, ...]]]:
        if result.map is None:
            return entry(result), []
        drawn = drawn_over(detector, result)
        target = targets[paths[result.index]]
        write_files(target, drawn, stored_map(detector, result.map, args.maps))
        found = region_rows(paths[result.index], find([result.map])[0])
        return entry(result, drawn if args.report else None), found

    failures: Failures = []
    entries: list[Entry] = []
    pictured: list[Entry] = []
    computed = detector.iter_results(paths, maps=True)
    results = usable(computed, failures, detector.on_error == "skip")
    args.output.mkdir(parents=True, exist_ok=True)
    with (
        table_path.open("w", encoding="utf-8", errors=SURROGATES, newline="") as stream,
        closing(in_threads(write, results, map_pixels)) as written,
    ):
        table = Table(stream, args.format, REGION_COLUMNS)
        for each, found in tqdm(written, total=len(paths), disable=None):
            table.write(found)
            entries.append(each._replace(overlay=None))
            if args.report:
                pictured = lowest_scores([*pictured, each])
    if args.report:
        save_report(args, detector, entries, pictured)
    check_complete(failures, len(paths))


def evaluate(args: argparse.Namespace) -> None:
    """Print metrics of a model on a labelled data set, as JSON.

    Image metrics: area under the ROC curve (AUROC), average precision, maximum F1, false-positive
    rate at 95 % true-positive rate, and the share of anomalies found and of false alarms at the
    model's threshold. Pixel metrics, if the data set has masks: AUROC, average precision, maximum
    F1, and AUPRO up to a false-positive rate of 0.3.
    """
    detector = load_model(args)
    data = load_dataset(args.layout, args.dataset, args.category)
    if len(set(data.y.tolist())) < 2:
        raise ValueError("dataset must hold normal images and anomalies; got one kind only.")
    with TemporaryDirectory() as folder:
        maps = StoredArrays(Path(folder), "map")
        scores: list[float] = []
        with_maps = data.masks is not None
        results = detector.iter_results(data.paths, maps=with_maps)
        for result in tqdm(results, total=len(data.paths), disable=None):
            if result.error is not None:
                raise ValueError(about(result))
            scores.append(result.score)
            if with_maps:
                maps.append(result.map)
        metrics = image_metrics(data.y, np.array(scores), detector.offset_)
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


def export(args: argparse.Namespace) -> None:
    """Write a model as one ONNX file that takes raw pixels, for programs without torch.

    Before it is written, the answers of the file are compared with the model's in onnxruntime: for
    images of noise, and for the images of --check. If they differ, nothing is written.
    """
    detector = load(args.model, device="cpu")
    images = new_images(args.check) if args.check else None
    parity = detector.export(args.output, check=images, tolerance=args.tolerance)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB.")
    if parity is not None:
        print(
            f"Checked on {counted(parity.n_images, 'image')}: scores differ by at most "
            f"{parity.largest_difference:.1g} of the largest, their rank correlation is "
            f"{parity.rank_correlation:.4f}, and {counted(parity.n_labels_changed, 'label')} "
            f"{'changes' if parity.n_labels_changed == 1 else 'change'}."
        )


def info(args: argparse.Namespace) -> None:
    """Print the class, parameters, thresholds and training of a model, as JSON."""
    print(to_json(facts(load(args.model, device="cpu")), indent=2))


def facts(detector: Any) -> dict[str, Any]:
    """Return what `info` prints of a detector, and of each one of an ensemble."""
    parameters = detector.get_params(deep=False)
    of_each = {}
    if parameters.pop("detectors", None):
        of_each = {name: facts(each) for name, each in detector.named_detectors_.items()}
    if isinstance(weights := parameters.get("source_weights"), Mapping):
        parameters["source_weights"] = f"a dict of {len(weights)} tensors"
    scores = getattr(detector, "calibration_scores_", None)
    return {
        "class": type(detector).__name__,
        **{name: getattr(detector, name) for name in ATTRIBUTES if hasattr(detector, name)},
        "calibration images": 0 if scores is None else len(scores),
        "final loss": {name: float(curve[-1]) for name, curve in detector.loss_curve_.items()},
        "parameters": {k: v for k, v in parameters.items() if not is_deprecated(v)},
        **({"detectors": of_each} if of_each else {}),
    }


def is_deprecated(value: Any) -> bool:
    """Return whether a parameter has the value that marks it as deprecated and not set."""
    return isinstance(value, str) and value == "deprecated"


def load_model(args: argparse.Namespace) -> Any:
    """Load the model with the options `--device`, `--engine` and `--on-error`."""
    detector = load(args.model, device=args.device)
    if args.engine is not None:
        for each in members(detector):
            each.set_params(engine=args.engine)
    return detector if args.on_error is None else detector.set_params(on_error=args.on_error)


def print_drift(detector: Any, scores: Sequence[float]) -> None:
    """Print whether scores are those of calibration, or warn why that cannot be said."""
    try:
        print(drift_test(detector, scores), file=sys.stderr)
    except ValueError as error:  # too few
        warnings.warn(f"Drift was not tested: {error}", UserWarning, stacklevel=2)


def map_pixels(result: Result) -> int:
    """Return the number of pixels of a map."""
    return 0 if result.map is None else result.map.size


def drawn_over(detector: Any, result: Result) -> Image:
    """Return the picture of a map over its image, which is read from its file."""
    image = np.asarray(ImageFile(str(result.path), detector.max_pixels))
    assert result.map is not None
    return picture(image, result.map, detector.map_offset_, detector.pixel_range_)


def stored_map(detector: Any, single: np.ndarray, kind: str) -> np.ndarray | None:
    """Return a map as `--maps` says, or None for no map."""
    if kind == "small":
        return compact_map(single, map_shape(detector, single.shape))
    return single if kind == "full" else None


def entry(result: Result, drawn: Image | None = None) -> Entry:
    """Return the report's entry of an image, with its picture, if any, scaled down in place."""
    if drawn is not None:
        drawn.thumbnail((THUMBNAIL, THUMBNAIL))
    return Entry(str(result.path), result.score, result.p_value, drawn)


def lowest_scores(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with the lowest scores, as many as a report shows pictures of."""
    scored = [each for each in entries if not np.isnan(each.score)]
    return sorted(scored, key=attrgetter("score"))[:MAX_PICTURES]


def save_report(
    args: argparse.Namespace, detector: Any, entries: Sequence[Entry], pictured: Sequence[Entry]
) -> None:
    """Write a report on all entries, with the pictures of some of them."""
    with_picture = {each.path: each for each in pictured}
    merged = [with_picture.get(each.path, each) for each in entries]
    args.report.parent.mkdir(parents=True, exist_ok=True)
    with output_stream(args.report) as stream:
        write_report(stream, merged, detector.offset_, args.model.name, shown=MAX_PICTURES)
