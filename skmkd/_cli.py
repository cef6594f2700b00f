"""The command line: folders in, answers out; the library does the work."""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from skmkd._commands import LAYOUTS, evaluate, fit, info, localize, score
from skmkd._detector import MKDDetector
from skmkd._version import __version__

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
    sub.set_defaults(parameters={})
    group = sub.add_argument_group("parameters of the detector")
    for name, (default, text) in parameters().items():
        option = f"--{name.replace('_', '-')}"
        group.add_argument(
            option, dest=name, action=Parameter, type=literal, metavar="VALUE",
            default=argparse.SUPPRESS, help=f"{text} (default: {default})".replace("%", "%%"),
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


class Parameter(argparse.Action):
    """Keep the parameters of the detector that were given, apart from all else."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, _: Any = None
    ) -> None:
        """Take one more."""
        namespace.parameters = {**namespace.parameters, self.dest: values}


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
