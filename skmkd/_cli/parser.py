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

from sklearn.utils._param_validation import StrOptions

from skmkd._cli.commands import LAYOUTS, METHODS, evaluate, fit, info, localize, score
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
    parser = build_parser()
    given = parser.parse_args(arguments)
    for option in foreign_options(given):
        parser.error(f"{option} is no option of --method {given.method}")
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
    thresholds = sub.add_mutually_exclusive_group()
    thresholds.add_argument(
        "--hold-out", type=float, metavar="SHARE", default=0.0,
        help="share of the good images to set thresholds from, not to learn from (default: 0)",
    )  # fmt: skip
    thresholds.add_argument(
        "--calibrate", type=Path, nargs="+", help="other good images to set thresholds from"
    )
    sub.add_argument(
        "--fpr", type=float, help="false-positive rate to set thresholds for (default: 0.05)"
    )
    sub.add_argument(
        "--method", choices=list(METHODS), default="mkd",
        help="multiresolution distillation, or memory-guided (default: mkd)",
    )  # fmt: skip
    sub.set_defaults(parameters={})
    group = sub.add_argument_group("parameters of the detector")
    for name, text in parameters().items():
        group.add_argument(
            option_of(name), dest=name, action=Parameter, type=literal, metavar="VALUE",
            default=argparse.SUPPRESS, help=text.replace("%", "%%"),
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


def parameters() -> dict[str, str]:
    """Say what every parameter of any detector is, and its default with each method."""
    texts: dict[str, dict[str, str]] = {}
    defaults: dict[str, dict[str, str]] = {}
    for method, detector in METHODS.items():
        sentences = first_sentences(inspect.getdoc(detector) or "")
        for name, parameter in inspect.signature(detector).parameters.items():
            texts.setdefault(name, {})[method] = sentences[name] + choices_of(detector, name)
            defaults.setdefault(name, {})[method] = f"default: {parameter.default}"
    return {name: f"{stated(texts[name])} ({stated(defaults[name])})" for name in texts}


def choices_of(detector: Any, name: str) -> str:
    """List the words that a parameter may be."""
    constraints = detector._parameter_constraints[name]
    words = [word for c in constraints if isinstance(c, StrOptions) for word in sorted(c.options)]
    return f" [{', '.join(words)}]" if words else ""


def first_sentences(text: str) -> dict[str, str]:
    """Return the first sentence on each parameter in a numpydoc docstring, without full stop."""
    described = re.findall(r"^(\w+) : .*\n((?:    .*\n)+)", text, re.M)
    return {name: " ".join(lines.split()).split(". ")[0].rstrip(".") for name, lines in described}


def stated(facts: dict[str, str]) -> str:
    """Tell what holds for all methods, or for each."""
    if len(facts) == len(METHODS) and len(set(facts.values())) == 1:
        return next(iter(facts.values()))
    return "; ".join(f"{method}: {fact}" for method, fact in facts.items())


def option_of(name: str) -> str:
    """Return the option of a parameter."""
    return f"--{name.replace('_', '-')}"


def foreign_options(given: argparse.Namespace) -> list[str]:
    """List the options that were given for another method."""
    if "method" not in given:
        return []
    known = inspect.signature(METHODS[given.method]).parameters
    return [option_of(name) for name in given.parameters if name not in known]


def literal(text: str) -> Any:
    """Read a value as Python writes it, such as 3, None or [1, 2]; everything else is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
