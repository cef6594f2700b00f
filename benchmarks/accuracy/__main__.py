"""Run protocols and print their tables: ``python -m benchmarks.accuracy textures digits``.

What is in the results already is not run again: an interrupted protocol goes on where it was. The
results of the project are in ``benchmarks/accuracy/results``; ``--results`` names another folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.accuracy.render import table
from benchmarks.accuracy.runner import PROTOCOLS, RESULTS, run, runs_in


def main() -> None:
    """Run the protocols that are named, one after the other."""
    known = sorted(path.stem for path in PROTOCOLS.glob("*.toml"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    add = parser.add_argument
    add("protocols", nargs="+", choices=known, metavar="NAME", help=", ".join(known))
    add("--data", type=Path, help="folder of a data set that no package brings")
    add("--results", type=Path, default=RESULTS, help="folder of the results")
    add("--jobs", type=int, default=1, help="runs side by side, as many as there are cores")
    add("--quick", action="store_true", help="a little, to see that it works; in files apart")
    add("--tables", action="store_true", help="print tables of results, run nothing")
    given = parser.parse_args()
    for name in given.protocols:
        if not given.tables:
            print(table(run(name, given.data, given.results, given.quick, given.jobs)))
        elif runs_in(file := given.results / f"{name}.json"):
            print(table(file))
        else:
            parser.error(f"no results of {name} yet in {given.results}")


if __name__ == "__main__":
    main()
