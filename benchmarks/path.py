"""How many functions of skmkd do a fit and scores pass, and how often do they change module?

Run as ``python benchmarks/path.py``; ``-v`` lists the functions. What counts are named functions
that are called at least once, in any thread; comprehensions, lambdas and module bodies do not
count; the thread is another than the main one, which would hand the work to a worker. Changes of
module are those in the sequence of first calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from skimage.data import lfw_subset
from timing import parser, report

import skmkd

PACKAGE = Path(skmkd.__file__).parent


def first_calls(work: Callable[[], Any]) -> list[tuple[str, str]]:
    """Return module and name of each function that is called, in the order of first calls."""
    found: dict[tuple[str, str], None] = {}

    def note(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        path = Path(code.co_filename)
        if event == "call" and not code.co_name.startswith("<") and PACKAGE in path.parents:
            found.setdefault((str(path.relative_to(PACKAGE)), code.co_qualname))

    threading.setprofile(note)
    try:
        thread = threading.Thread(target=work)  # another than the main one computes itself
        thread.start()
        thread.join()
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    return list(found)


def paths() -> dict[str, list[tuple[str, str]]]:
    """Return the path of a short fit to faces, and that of their scores."""
    images = (255 * lfw_subset()[:20]).astype(np.uint8)
    detector = skmkd.MKDDetector(
        image_size=32, batch_size=8, max_iter=2, tol=None, contamination=0.05, random_state=0
    )  # fmt: skip
    return {
        "fit": first_calls(lambda: detector.fit(images)),
        "score_samples": first_calls(lambda: detector.score_samples(images)),
    }


def counts(calls: list[tuple[str, str]]) -> dict[str, int]:
    """Count functions, and changes of module from one to the next."""
    changes = sum(one[0] != other[0] for one, other in pairwise(calls))
    return {"functions": len(calls), "changes": changes}


def measure() -> dict[str, float]:
    """Count both paths."""
    return {
        f"{name} of {method}": count
        for method, calls in paths().items()
        for name, count in counts(calls).items()
    }


def main() -> None:
    """Print one row a method."""
    arguments = parser(__doc__)
    arguments.add_argument("-v", "--verbose", action="store_true", help="list the functions")
    given = arguments.parse_args()
    found = paths()
    if given.verbose:
        for method, calls in found.items():
            print(method, *(" ".join(call) for call in calls), sep="\n    ")
    rows = [{"method": method, **counts(calls)} for method, calls in found.items()]
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
