"""What do the default detector and the baselines cost: time and memory of scores and maps?

Run as ``python -m benchmarks.accuracy.cost`` from the folder of the project, on Linux. Each method
learns the crops of the left half of a photograph of bricks, and scores and maps those of the right
half, good and spoiled, from one look at each. Times are medians of interleaved runs in one process;
memory is the peak of the anonymous memory of a process of the method's own while it does so, above
what it held before it was fitted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import Any

from benchmarks.accuracy.baselines import PatchNeighbours, PositionGaussians
from benchmarks.accuracy.cases import DATA_SETS
from benchmarks.timing import anonymous, medians, parser, report, watched
from skmkd import MKDDetector

METHODS = {
    "default": MKDDetector,
    "nearest patches": PatchNeighbours,
    "Gaussians": PositionGaussians,
}


def fitted(name: str, case: Any, side: int) -> Any:
    """Fit a method; for how long the default trains has no part in what scoring costs."""
    length = {}
    if METHODS[name] is MKDDetector:
        length = {"max_iter": 1, "tol": None, "contamination": 0.05}
    method = METHODS[name](device="cpu", image_size=side, random_state=0, **length)
    return method.fit(case.learn)


def judge(detector: Any, images: Any) -> None:
    """Score and map images; the baselines on patches make maps whenever they score."""
    if isinstance(detector, MKDDetector):
        list(detector._outputs(detector._check_images(images)))
    else:
        detector.score_samples(images)


def memory(name: str, case: Any, side: int) -> dict[str, float]:
    """Score and map in this process, and watch it."""
    before, result = anonymous(), {}
    detector = fitted(name, case, side)
    with watched(result):
        judge(detector, case.test)
    return {"memory MB": result["peak MB"] - before}


def main() -> None:
    """Print one row a method."""
    arguments = parser(__doc__, runs=5)
    arguments.add_argument("--side", type=int, default=128)
    arguments.add_argument("--images", type=int, help="test images, default: all")
    arguments.add_argument("--watch", choices=METHODS, help="measure memory alone, print JSON")
    given = arguments.parse_args()
    case = DATA_SETS["textures"].read("brick", None, 0)
    case = case._replace(test=case.test[: given.images])
    if given.watch:
        print(json.dumps(memory(given.watch, case, given.side)))
        return
    detectors = {name: fitted(name, case, given.side) for name in METHODS}
    works = {name: partial(judge, each, case.test) for name, each in detectors.items()}
    times = medians(works, given.runs)
    rows = []
    for name, time in times.items():
        command = [sys.executable, "-m", __spec__.name, *sys.argv[1:], "--watch", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        speed = {"ms an image": 1e3 * time / len(case.test), "ratio": time / times["default"]}
        rows.append({"method": name, "images": len(case.test), **speed, **found})
    report("cost", rows, given.output)


if __name__ == "__main__":
    main()
