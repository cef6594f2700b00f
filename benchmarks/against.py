"""How much faster is the working tree than an earlier revision?

Run as ``python benchmarks/against.py REV SCRIPT``, for example with ``8a2cc60 step``; REV may also
be the folder of a checkout. The function ``measure`` of the script is called in both builds in
turn, each in a process of its own, once before the runs that count; its parameters are further
options, such as ``--precision float32``. Both run the script of the working tree, so that
``measure`` takes only what both builds have. The ratio is that of the medians, REV to now; those
of single pairs of runs lie between the lowest and the highest.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args, get_origin

from timing import ROOT, instructions, parser, processor, report

PATIENCE = 5  # seconds for a process to end when it is not needed any more


class Build:
    """A process that imports skmkd from a checkout, and a script to measure.

    Parameters
    ----------
    checkout : path
        Its folder.
    script : str
        Name of a script in the folder of this one, whatever the checkout.
    """

    def __init__(self, checkout: Path, script: str) -> None:
        path = os.pathsep.join([str(checkout.resolve()), str(Path(__file__).resolve().parent)])
        program = (
            f"import json, sys, {script} as script, skmkd\n"
            f"assert skmkd.__file__.startswith({str(checkout.resolve())!r}), skmkd.__file__\n"
            "for line in sys.stdin:\n"
            "    print(json.dumps(script.measure(**json.loads(line))), flush=True)\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, options: dict[str, Any]) -> dict[str, float]:
        """Call the script's function there; its options are what JSON can hold."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(options) + "\n")
            self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError("measure failed in a build; see the message above.")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        try:
            self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def git(*arguments: str) -> str:
    """Run git on this repository; return what it prints."""
    return subprocess.check_output(["git", *arguments], cwd=ROOT, text=True).strip()


@contextmanager
def checked_out(revision: str) -> Iterator[tuple[str, Path]]:
    """Give a checkout's name and folder, temporary unless the revision is a folder already."""
    if (Path(revision) / "skmkd").is_dir():
        yield revision, Path(revision)
        return
    try:
        commit = git("rev-parse", "--verify", "--short", f"{revision}^{{commit}}")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"REV must be a git revision or the folder of a checkout; got {revision!r}."
        ) from error
    with TemporaryDirectory() as folder:
        try:
            git("worktree", "add", "--quiet", "--detach", f"{folder}/skmkd", commit)
            yield commit, Path(folder) / "skmkd"
        finally:
            git("worktree", "remove", "--force", f"{folder}/skmkd")


def compare(
    script: str, before: Path, options: dict[str, Any], runs: int, warm_up: bool = True
) -> list[dict[str, Any]]:
    """Measure both builds in turn; return one row a figure."""
    found: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    with ExitStack() as stack:
        builds = {
            name: stack.enter_context(closing(Build(checkout, script)))
            for name, checkout in (("before", before), ("now", ROOT))
        }
        for run in range(-1 if warm_up else 0, runs):
            for name in found if run % 2 else reversed(found):
                figures = builds[name].measure(options)
                if run >= 0:
                    if min(figures.values()) <= 0:
                        raise ValueError(
                            f"Figures must be positive; got {figures}. Measure longer work."
                        )
                    found[name].append(figures)
    rows = []
    for figure in found["now"][0]:
        old, new = ([each[figure] for each in found[name]] for name in found)
        ratios = [one / other for one, other in zip(old, new, strict=True)]
        rows.append(
            {
                "figure": figure,
                "before": median(old),
                "now": median(new),
                "ratio": median(old) / median(new),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        )
    return rows


def options(measure: Callable[..., Any]) -> argparse.ArgumentParser:
    """Return a command line whose options are the parameters of a function."""
    arguments = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, parameter in inspect.signature(measure, eval_str=True).parameters.items():
        kind, inner = get_origin(parameter.annotation), get_args(parameter.annotation)
        given: dict[str, Any] = {"type": inner[0] if inner else parameter.annotation}
        if kind is Literal:
            given = {"choices": inner}
        elif kind is tuple:
            given["nargs"] = "+"
        arguments.add_argument(
            f"--{name.replace('_', '-')}", default=parameter.default, help="%(default)s", **given
        )
    return arguments


def main() -> None:
    """Print one row a figure."""
    arguments = parser(__doc__, runs=5)
    arguments.allow_abbrev = False
    arguments.add_argument("revision", metavar="REV")
    arguments.add_argument("script", metavar="SCRIPT", help="name of one that has measure")
    arguments.add_argument(
        "--no-warm-up", action="store_true", help="count the first call, of long work"
    )
    given, rest = arguments.parse_known_args()
    script = Path(given.script).stem
    chosen = vars(options(import_module(script).measure).parse_args(rest))
    with checked_out(given.revision) as (name, before):
        rows = compare(script, before, chosen, given.runs, not given.no_warm_up)
    machine = f"{processor()}, {instructions()}"
    rows = [{"revision": name, **row, "machine": machine} for row in rows]
    report(__file__, rows, given.output)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the worktree is removed then too
    main()
