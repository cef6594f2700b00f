"""The command line: options, exit codes, errors and warnings."""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from sklearn.utils._param_validation import StrOptions
from tqdm import tqdm

from skmkd._cli.commands import (
    LAYOUTS,
    METHODS,
    evaluate,
    export,
    fit,
    info,
    is_deprecated,
    localize,
    score,
)
from skmkd._cli.parts import PARTS
from skmkd._cli.tables import FORMATS
from skmkd._ensemble import COMBINATIONS
from skmkd._packages import MissingExtraError
from skmkd._runtime import ENGINES
from skmkd._version import __version__

EPILOG = """exit codes: 0 success; 1 error (see the message), or, without a message, standard
output was closed before all was written; 2 invalid command line; 130 interrupted"""
HELD_OUT = "validation_fraction"
USER_ERRORS = (
    ValueError, OSError, MemoryError, MissingExtraError, torch.cuda.OutOfMemoryError,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Command line, without the name of the program; None for that of the process.

    Returns
    -------
    code : int
        0 success, 1 error, or nobody reads the standard output any more; 130 interrupted. An
        invalid command line exits with 2.
    """
    with ExitStack() as stack:
        for name, redirect in (("stdout", redirect_stdout), ("stderr", redirect_stderr)):
            if getattr(sys, name) is None:  # closed by whoever started the program
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(redirect(nowhere))
        try:
            try:
                return parse_and_run(arguments)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:  # such as `| head`, which has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1


def parse_and_run(arguments: Sequence[str] | None) -> int:
    """Run the command that the arguments name, and return the exit code."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    for option in foreign_options(args):
        parser.error(f"{option} is not an option of --method {args.method}")
    with warnings.catch_warnings():
        warnings.showwarning = print_warning
        return run_command(args)


def run_command(args: argparse.Namespace) -> int:
    """Run the chosen command, print its error if it fails, and return the exit code."""
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print("skmkd: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(error_message(error, args.debug), file=sys.stderr)
        return 1
    return 0


def error_message(error: Exception, debug: bool) -> str:
    """Return what to print for an error; unexpected ones ask for a report."""
    if isinstance(error, USER_ERRORS):
        return f"skmkd: error: {str(error) or type(error).__name__}"
    action = (
        "Please report it to the developers of skmkd, with the traceback above."
        if debug
        else "Run the command again with --debug to see the full traceback, and please report it "
        "to the developers of skmkd."
    )
    return (
        f"skmkd: error: unexpected {type(error).__name__}: {error}\n"
        f"This may be a bug in skmkd. {action}"
    )


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning on one line of stderr; replaces `warnings.showwarning`."""
    text = " ".join(str(message).split())
    tqdm.write(f"skmkd: warning: {text}", file=sys.stderr)  # keeps progress bars intact


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with a subparser for each command."""
    parser = argparse.ArgumentParser(
        prog="skmkd",
        allow_abbrev=False,
        description="Image anomaly detection: train on a folder of normal images, then score new "
        "images and locate their defects.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"skmkd {__version__}")
    add_debug_option(parser, default=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        text = inspect.getdoc(run) or ""
        name = run.__name__
        sub = commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            epilog=EPILOG,
            allow_abbrev=False,  # --memory must not be read as --memory-size
        )
        sub.set_defaults(run=run)
        add_debug_option(sub, default=argparse.SUPPRESS)
        return sub

    sub = command(fit)
    sub.add_argument("folder", type=Path, nargs="+", help="folders of normal images, or files")
    sub.add_argument(
        "-o", "--output", type=Path, required=True, metavar="MODEL", help="model file to write"
    )
    thresholds = sub.add_mutually_exclusive_group()
    texts = parameters()
    thresholds.add_argument(
        "--hold-out", option_of(HELD_OUT), dest=HELD_OUT, action=Parameter, type=literal,
        metavar="VALUE", default=argparse.SUPPRESS, help=texts.pop(HELD_OUT).replace("%", "%%"),
    )  # fmt: skip
    thresholds.add_argument(
        "--calibrate", type=Path, nargs="+", metavar="FOLDER",
        help="other normal images, as folders or files, to set the thresholds on; none are held "
        "out then",
    )  # fmt: skip
    sub.add_argument(
        "--fpr", type=float,
        help="false-positive rate of the thresholds (default: 0.05, or the lowest that the images "
        "held out allow)",
    )  # fmt: skip
    sub.add_argument(
        "--method", choices=list(METHODS), default="mkd",
        help="detector: MKDDetector or MemKDDetector (default: mkd)",
    )  # fmt: skip
    sub.add_argument(
        "--combine", choices=list(COMBINATIONS),
        help="how several --source judge together: by the mean of their scores, and of their maps "
        "at each place, or by the most anomalous one (default: mean)",
    )  # fmt: skip
    sub.set_defaults(parameters={})
    texts["source"] += "; may be given several times, for a detector of each source"
    group = sub.add_argument_group("parameters of the detector")
    for name, text in texts.items():
        group.add_argument(
            option_of(name), dest=name, action=Repeated if name == "source" else Parameter,
            type=literal, metavar="VALUE", default=argparse.SUPPRESS,
            help=text.replace("%", "%%"),
        )  # fmt: skip

    for run in (score, localize):
        sub = command(run)
        sub.add_argument("model", type=Path, help="model file")
        sub.add_argument(
            "images", type=Path, nargs="+",
            help="folders of images, files, or lists of files: .txt, a path in each line, or "
            ".parquet with a column path",
        )  # fmt: skip
        if run is score:
            sub.add_argument(
                "-o", "--output", type=Path, metavar="FILE",
                help="file to write (default: standard output)",
            )  # fmt: skip
            sub.add_argument(
                "--drift", action="store_true",
                help="say on standard error whether the scores are those of the calibration images",
            )  # fmt: skip
            sub.add_argument(
                "--shard", type=shard, metavar="I/N",
                help="score the I-th of N parts of the images into a file of its own in the folder "
                "--output; images without a score have a row that says why",
            )  # fmt: skip
            sub.add_argument(
                "--resume", action="store_true",
                help="keep the rows that an earlier, killed run of the part has written",
            )  # fmt: skip
        else:
            add_localize_options(sub)
        sub.add_argument(
            "--format", default="csv",
            choices=sorted({*FORMATS, *PARTS}) if run is score else FORMATS,
            help=f"{'rows' if run is score else 'table of regions'} as CSV or JSON lines"
            f"{', or a part as Parquet' if run is score else ''} (default: csv)",
        )  # fmt: skip
        sub.add_argument(
            "--report", type=Path, metavar="HTML",
            help="write an HTML page with a histogram of all scores, the lowest ones, and pictures "
            "of the most anomalous images",
        )  # fmt: skip
        add_model_options(sub)

    sub = command(evaluate)
    sub.add_argument("model", type=Path, help="model file")
    sub.add_argument("dataset", type=Path, help="folder of the data set")
    sub.add_argument(
        "--layout", choices=list(LAYOUTS), default="folder",
        help="layout of the data set; folder: normal images in good/, ok/ or normal/, anomalies in "
        "one folder per kind, masks in ground_truth/ (default: folder)",
    )  # fmt: skip
    sub.add_argument(
        "--category", help="category of the data set, for layouts that have categories"
    )
    add_model_options(sub)

    sub = command(export)
    sub.add_argument("model", type=Path, help="model file")
    sub.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="ONNX file to write"
    )
    sub.add_argument(
        "--check", type=Path, nargs="+", metavar="FOLDER",
        help="images, as folders or files, to compare the scores of the file and the model",
    )  # fmt: skip
    sub.add_argument(
        "--tolerance", type=float, metavar="SHARE",
        help="largest difference of two scores of an image of --check, as a share of the largest "
        "score (default: 1e-5, or 0.02 for a model that computes in bfloat16)",
    )  # fmt: skip

    sub = command(info)
    sub.add_argument("model", type=Path, help="model file")
    return parser


def shard(text: str) -> tuple[int, int]:
    """Return the number of a part and how many there are, from a text such as 3/16."""
    number, _, n_parts = text.partition("/")
    try:
        found = int(number), int(n_parts)
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N; got {text}")
    return found


class Parameter(argparse.Action):
    """Collect the parameters of the detector that are set on the command line."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, _: Any = None
    ) -> None:
        """Add one parameter."""
        namespace.parameters = {**namespace.parameters, self.dest: values}


class Repeated(Parameter):
    """Collect all values of a parameter in a list."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, _: Any = None
    ) -> None:
        """Add one value."""
        super().__call__(parser, namespace, [*namespace.parameters.get(self.dest, ()), values])


def add_debug_option(command: argparse.ArgumentParser, default: Any) -> None:
    """Add `--debug`, which all parsers take; a subparser must not reset it to its default."""
    command.add_argument(
        "--debug", action="store_true", default=default, help="show the full traceback of an error"
    )


def add_localize_options(command: argparse.ArgumentParser) -> None:
    """Add what `localize` writes, and where."""
    command.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER",
        help="folder to write maps, pictures and the table to",
    )  # fmt: skip
    command.add_argument(
        "--maps", choices=["small", "full", "none"], default="small",
        help="small: at most at the image_size of the model, in float16 (float32 if the values are "
        "beyond its range); full: at the image's size, in float32; none: no maps (default: small)",
    )  # fmt: skip
    command.add_argument(
        "--min-area", type=int, default=1, metavar="PIXELS",
        help="leave regions of fewer pixels out of the table (default: 1)",
    )  # fmt: skip
    command.add_argument(
        "--low-threshold", type=float, metavar="VALUE",
        help="extend regions over connected pixels of the map above this value, which is below the "
        "map threshold (default: the map threshold)",
    )  # fmt: skip


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add the parameters that may be changed after training."""
    command.add_argument(
        "--device", help='"auto", "cpu", "cuda:0", "mps", ... (default: as at training, if there)'
    )
    command.add_argument(
        "--engine", choices=["auto", *ENGINES],
        help="what computes the networks (default: as at training)",
    )  # fmt: skip
    command.add_argument(
        "--on-error", choices=["raise", "skip"],
        help="whether to stop at an unreadable file or skip it (default: as at training)",
    )  # fmt: skip


def parameters() -> dict[str, str]:
    """Return the help text of each parameter of any detector, with its default."""
    texts: dict[str, dict[str, str]] = {}
    defaults: dict[str, dict[str, str]] = {}
    for method, detector in METHODS.items():
        sentences = first_sentences(inspect.getdoc(detector) or "")
        for name, parameter in inspect.signature(detector).parameters.items():
            if is_deprecated(parameter.default):
                continue
            texts.setdefault(name, {})[method] = sentences[name] + choices_of(detector, name)
            defaults.setdefault(name, {})[method] = f"default: {parameter.default}"
    return {name: f"{by_method(texts[name])} ({by_method(defaults[name])})" for name in texts}


def choices_of(detector: Any, name: str) -> str:
    """Return the strings that a parameter accepts, in brackets."""
    constraints = detector._parameter_constraints[name]
    words = [word for c in constraints if isinstance(c, StrOptions) for word in sorted(c.options)]
    return f" [{', '.join(words)}]" if words else ""


def first_sentences(docstring: str) -> dict[str, str]:
    """Return the first sentence on each parameter in a numpydoc docstring, without full stop."""
    described = re.findall(r"^(\w+) : .*\n((?:    .*\n)+)", docstring, re.M)
    return {
        name: " ".join(lines.replace("`", "").split()).split(". ")[0].rstrip(".")
        for name, lines in described
    }


def by_method(texts: dict[str, str]) -> str:
    """Return the text that all methods share, or the text of each method."""
    if len(texts) == len(METHODS) and len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{method}: {text}" for method, text in texts.items())


def option_of(name: str) -> str:
    """Return the option of a parameter."""
    return f"--{name.replace('_', '-')}"


def foreign_options(args: argparse.Namespace) -> list[str]:
    """Return the options on the command line that belong to another method."""
    if "method" not in args:
        return []
    known = inspect.signature(METHODS[args.method]).parameters
    return [option_of(name) for name in args.parameters if name not in known]


def literal(text: str) -> Any:
    """Return the Python literal, such as 3, None or [1, 2], or the text if it is not one."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
