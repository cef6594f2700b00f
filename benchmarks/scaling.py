"""Does the time of a fit grow linearly with the number of images, and how with their side?

Run as ``python benchmarks/scaling.py``; each fit runs once unless ``--runs`` says more.
Fashion-MNIST comes with Debian's package dataset-fashion-mnist. The exponent is the slope between
a row and the one above, on logarithmic scales: 1 is linear.
"""

from __future__ import annotations

from math import log
from pathlib import Path

from fashion_mnist import load
from timing import medians, parser, report, textures

from skmkd import MKDDetector

EPOCHS = 3


def main() -> None:
    """Print one row a side, then one a number of images."""
    arguments = parser(__doc__, runs=1)
    arguments.add_argument("--numbers", type=int, nargs="*", default=[500, 1000, 2000, 4000, 8000])
    arguments.add_argument("--sides", type=int, nargs="*", default=[32, 64, 128, 256])
    arguments.add_argument("--data", type=Path, default="/usr/share/datasets/fashion-mnist")
    given = arguments.parse_args()
    cases = [("side", textures(64, side), side) for side in given.sides]
    if given.numbers:
        clothes, _ = load(given.data, "train")
        cases += [("number", clothes[:n], 32) for n in given.numbers]
    works = {
        (kind, len(images), side): lambda images=images, side=side: MKDDetector.paper(
            contamination=0.05,
            device="cpu",
            image_size=side,
            max_iter=EPOCHS,
            tol=None,
            random_state=0,
        ).fit(images)
        for kind, images, side in cases
    }
    next(iter(works.values()))()  # the first call of all is slow
    times = medians(works, given.runs, warm_up=False)
    rows = []
    for kind, n, side in works:
        row = {"grows": kind, "images": n, "pixels": side, "fit s": times[kind, n, side]}
        row["ms/image"] = 1e3 * row["fit s"] / n
        if rows and rows[-1]["grows"] == kind:
            above = rows[-1]
            growth = n / above["images"] if kind == "number" else side / above["pixels"]
            row["exponent"] = log(row["fit s"] / above["fit s"]) / log(growth)
        rows.append(row)
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
