"""The command line: folders in, answers out; the library does the work."""

from __future__ import annotations

import argparse
import ast
import csv
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from skmkd import datasets, metrics
from skmkd._archive import check_target, write_whole
from skmkd._detector import MKDDetector
from skmkd._loading import load
from skmkd._report import THUMBNAIL, Entry, overlay, write_report
from skmkd._validation import check_images
from skmkd._version import __version__
from skmkd.inspection._localization_display import pictures
from skmkd.model_selection._scorers import average_precision, best_f1, fpr95, roc_auc

CHUNK = 64  # images between two steps of the progress bar
FEW = 4  # whole images and maps in memory at once
PICTURED = 100  # of the worst images, in a report
COLUMNS = ("path", "score", "decision", "threshold")
LAYOUTS: dict[str, Callable[..., Any]] = {
    "mvtec_ad": datasets.load_mvtec_ad,
    "visa": datasets.load_visa,
    "mpdd": datasets.load_mpdd,
    "btad": datasets.load_btad,
}
EPILOG = """exit codes: 0 done, 1 an input or a file is wrong (the message says which), 2 the
command line is wrong, 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Words of the command line; None takes those of the process.

    Returns
    -------
    code : int
        0 done, 1 an input or a file is wrong, 130 interrupted. A wrong command line exits with 2.
    """
    given = build_parser().parse_args(arguments)
    try:
        given.run(given)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read standard output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"skmkd: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("skmkd: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of all commands."""
    parser = argparse.ArgumentParser(
        prog="skmkd",
        description="Find which images are wrong, and where, from a folder of good ones.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"skmkd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        text = inspect.getdoc(run) or ""
        name = run.__name__
        sub = commands.add_parser(name, help=text.splitlines()[0], description=text, epilog=EPILOG)
        sub.set_defaults(run=run)
        return sub

    sub = command(fit)
    sub.add_argument("folder", type=Path, help="folder of good images, or files", nargs="+")
    sub.add_argument("-o", "--output", type=Path, required=True, help="file of the model")
    sub.add_argument(
        "--calibrate", type=Path, nargs="+", help="good images held out, to set thresholds from"
    )
    sub.add_argument("--fpr", type=float, default=0.05, help="false-positive rate to calibrate for")
    group = sub.add_argument_group("parameters of the detector")
    for name, (default, text) in parameters().items():
        option = f"--{name.replace('_', '-')}"
        group.add_argument(
            option, dest=name, type=literal, default=argparse.SUPPRESS, metavar="VALUE",
            help=f"{text} (default: {default})".replace("%", "%%"),
        )  # fmt: skip

    for run in (score, localize):
        sub = command(run)
        sub.add_argument("model", type=Path, help="file of the model")
        sub.add_argument("images", type=Path, nargs="+", help="folders of images, or files")
        add_model_options(sub)
        sub.add_argument("--report", type=Path, metavar="HTML", help="page with the worst images")
        if run is score:
            sub.add_argument("-o", "--output", type=Path, help="file (default: standard output)")
            sub.add_argument("--format", choices=["csv", "jsonl"], default="csv")
        else:
            sub.add_argument("-o", "--output", type=Path, required=True, help="folder of the maps")

    sub = command(evaluate)
    sub.add_argument("model", type=Path, help="file of the model")
    sub.add_argument("dataset", type=Path, help="folder of the data set")
    sub.add_argument("--layout", choices=["folder", *LAYOUTS], default="folder")
    sub.add_argument("--category", help="category of the data set, for layouts that have them")
    add_model_options(sub)

    sub = command(info)
    sub.add_argument("model", type=Path, help="file of the model")
    return parser


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add what may differ from when the model was fitted."""
    command.add_argument("--device", help='"cpu", "cuda:0", "mps"; as fitted if not given')
    command.add_argument(
        "--on-error", choices=["raise", "skip"], help="unreadable files; as fitted if not given"
    )


def parameters() -> dict[str, tuple[Any, str]]:
    """Return default and first sentence of the documentation of every detector parameter."""
    text = inspect.getdoc(MKDDetector) or ""
    described = re.findall(r"^(\w+) : .*\n((?:    .*\n)+)", text, re.M)
    sentences = {name: " ".join(lines.split()).split(". ")[0] for name, lines in described}
    signature = inspect.signature(MKDDetector).parameters
    return {name: (each.default, sentences[name].rstrip(".")) for name, each in signature.items()}


def literal(text: str) -> Any:
    """Read a value as Python writes it, such as 3, None or [1, 2]; everything else is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def fit(given: argparse.Namespace) -> None:
    """Learn from good images, and write the model to one file."""
    check_target(given.output)
    chosen = {name: getattr(given, name) for name in parameters() if hasattr(given, name)}
    detector = MKDDetector(**{"verbose": int(sys.stderr.isatty())} | chosen)
    detector.fit(files(given.folder)).set_params(verbose=chosen.get("verbose", 0))
    if given.calibrate:
        detector.calibrate(files(given.calibrate), fpr=given.fpr)
    detector.save(given.output)


def score(given: argparse.Namespace) -> None:
    """Write a line for each image: path, score, decision and threshold.

    The score is higher for normal images; images with a score below the threshold, which are those
    with a negative decision, are anomalies. A file that cannot be read has no score (nan, or null
    in JSON) with --on-error skip, and else ends the command.
    """
    for target in filter(None, (given.output, given.report)):
        check_target(target)
    detector, paths = loaded(given), files(given.images)
    scores: list[float] = []
    with written(given.output) as stream:
        table = csv.writer(stream, lineterminator="\n")
        if given.format == "csv":
            table.writerow(COLUMNS)
        for chunk in chunks(paths):
            scores += detector.score_samples(chunk).tolist()
            for path, each in zip(chunk, scores[-len(chunk) :], strict=True):
                row = [str(path), each, each - detector.offset_, detector.offset_]
                if given.format == "csv":
                    table.writerow(row)
                else:
                    plain = [None if value != value else value for value in row]  # NaN is no JSON
                    stream.write(json.dumps(dict(zip(COLUMNS, plain, strict=True))) + "\n")
    if given.report:
        report(detector, paths, np.array(scores), given)


def localize(given: argparse.Namespace) -> None:
    """Write two files for each image: its map, and the map over the image.

    The map is a float32 array (H, W) in numpy's format (.npy), higher = more anomalous. In the
    picture (.png) the image is left as it is up to the threshold of maps; above it, yellow turns to
    red at one and a half times the threshold.
    """
    if given.report:
        check_target(given.report)
    detector, places = loaded(given), destinations(given)
    for chunk in chunks(list(places)):
        for path, single, picture in localized(detector, chunk):
            target = places[path]
            target.parent.mkdir(parents=True, exist_ok=True)
            array, image = BytesIO(), BytesIO()
            np.save(array, single)
            picture.save(image, "PNG")
            write_whole(target.with_name(f"{target.name}.npy"), array.getvalue())
            write_whole(target.with_name(f"{target.name}.png"), image.getvalue())
    if given.report:
        scores = [detector.score_samples(chunk) for chunk in chunks(list(places))]
        report(detector, list(places), np.concatenate(scores), given)


def evaluate(given: argparse.Namespace) -> None:
    """Print the metrics of a model on a data set with good and bad images, as JSON.

    Images: area under the ROC curve, average precision and best F1 of anomalies, false-positive
    rate where 95 % of them are found. Pixels, where there are masks: area under the ROC curve,
    average precision, best F1, and AUPRO up to a false-positive rate of 0.3.
    """
    detector = loaded(given)
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
        scores = []
        for chunk in chunks(data.paths.tolist()):
            scores.append(detector.score_samples(chunk))
            if data.masks is not None:
                for few in parts(chunk, FEW):
                    maps.extend(detector.localize(few))
        whole = np.concatenate(scores)
        if np.isnan(whole).any():
            raise ValueError(f"dataset must be readable; got {data.paths[np.isnan(whole)][0]}.")
        figures = image_figures(data.y, whole, detector.offset_)
        if data.masks is not None:
            figures |= pixel_figures(data.masks, maps)
    print(json.dumps(figures, indent=2))


def info(given: argparse.Namespace) -> None:
    """Print what a model is: its class, parameters, thresholds and training, as JSON."""
    detector = load(given.model, device="cpu")
    facts = {
        "class": type(detector).__name__,
        "offset_": detector.offset_,
        "map_offset_": detector.map_offset_,
        "image_shape_": detector.image_shape_,
        "pixel_range_": detector.pixel_range_,
        "critical_layers_": detector.critical_layers_,
        "direction_weight_": detector.direction_weight_,
        "precision_": detector.precision_,
        "n_iter_": detector.n_iter_,
        "final loss": {name: float(curve[-1]) for name, curve in detector.loss_curve_.items()},
        "parameters": detector.get_params(deep=False),
    }
    print(json.dumps(facts, indent=2, default=repr))


class StoredMaps(Sequence[np.ndarray]):
    """Localization maps in files of a folder, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._n = 0

    def extend(self, maps: Iterable[np.ndarray]) -> None:
        """Write more maps."""
        for single in maps:
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
        raise ValueError(f"images must be folders or files; there is nothing at {missing[0]}.")
    return [
        path
        for place in places
        for path in (datasets.list_images(place) if place.is_dir() else [place])
    ]


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


def localized(detector: Any, paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray, Any]]:
    """Yield each path with its map and the map over its image, a few in memory at a time."""
    for few in parts(paths, FEW):
        images = pictures(check_images(detector, few, reset=False))
        for path, image, single in zip(few, images, detector.localize(few), strict=True):
            yield path, single, overlay(image, single, detector.map_offset_)


def report(
    detector: Any, paths: Sequence[Path], scores: np.ndarray, given: argparse.Namespace
) -> None:
    """Write a page of the scores and of the maps of the worst images."""
    worst = np.argsort(scores, kind="stable")[:PICTURED]
    shown = [paths[i] for i in worst if np.isfinite(scores[i])]
    drawn = {}
    for path, _, picture in localized(detector, shown):
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        drawn[path] = picture
    entries = [
        Entry(str(path), each, drawn.get(path))
        for path, each in zip(paths, scores.tolist(), strict=True)
    ]
    with written(given.report) as stream:
        write_report(stream, entries, detector.offset_, given.model.name, shown=PICTURED)


def parts(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    """Cut a sequence into parts of a size; the last may be smaller."""
    return (paths[start : start + size] for start in range(0, len(paths), size))


def chunks(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """Yield some paths at a time; a terminal shows how far it is."""
    with tqdm(total=len(paths), unit="image", disable=None) as progress:
        for chunk in parts(paths, CHUNK):
            yield chunk
            progress.update(len(chunk))


@contextmanager
def written(path: Path | None) -> Iterator[TextIO]:
    """Give standard output, or what becomes a file when all is there."""
    if path is None:
        yield sys.stdout
        return
    content = StringIO()
    yield content
    write_whole(path, content.getvalue().encode(errors="surrogateescape"))
