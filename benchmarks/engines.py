"""How fast are scores of one image, and of many, by source, engine and precision?

Run as ``python benchmarks/engines.py``. Images are crops of photographs in memory, and the cloner
is trained for one epoch: how well it learned has no part in the time. With
``python benchmarks/against.py REV engines`` an earlier build that has one source or one engine
only is measured with that.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

from timing import medians, parser, report, textures

from skmkd import MKDDetector

SOURCES = ("vgg16", "efficientnet_lite0")
ENGINES = ("torch", "openvino")


def scoring(
    source: str, engine: str, precision: str, images: int, side: int
) -> dict[str, tuple[int, Any]]:
    """Return how many images each work scores, and the work."""
    crops = textures(images, side)
    chosen: dict[str, Any] = {"precision": precision}
    if "engine" in inspect.signature(MKDDetector).parameters:
        chosen |= {"source": source, "engine": engine}
    detector = MKDDetector(
        image_size=side, max_iter=1, contamination=0.05, device="cpu", random_state=0, **chosen
    ).fit(crops[:32])
    return {
        "one": (1, lambda: detector.score_samples(crops[:1])),
        "many": (images, lambda: detector.score_samples(crops)),
    }


def measure(
    source: str = "vgg16",
    engine: str = "torch",
    precision: str = "auto",
    side: int = 128,
    images: int = 64,
) -> dict[str, float]:
    """Return the milliseconds an image of one alone, and of many."""
    works = scoring(source, engine, precision, images, side)
    times = medians({name: work for name, (_, work) in works.items()}, runs=5)
    return {f"{name} ms/image": 1e3 * times[name] / n for name, (n, _) in works.items()}


def main() -> None:
    """Print one row a source, engine and precision."""
    arguments = parser(__doc__, runs=5)
    arguments.add_argument("--images", type=int, default=64)
    arguments.add_argument("--side", type=int, default=128)
    arguments.add_argument("--precision", nargs="+", default=["auto"])
    given = arguments.parse_args()
    engines = [engine for engine in ENGINES if engine == "torch" or find_spec(engine)]
    works = {
        (source, engine, precision, name): work
        for source in SOURCES
        for engine in engines
        for precision in given.precision
        for name, work in scoring(source, engine, precision, given.images, given.side).items()
    }
    times = medians({key: work for key, (_, work) in works.items()}, given.runs)
    first = next(iter(times))[:3]
    rows = []
    for source, engine, precision, _ in list(times)[::2]:
        row: dict[str, Any] = {"source": source, "engine": engine, "precision": precision}
        for name, n in (("one", 1), ("many", given.images)):
            seconds = times[source, engine, precision, name]
            row[f"{name} ms/image"] = 1e3 * seconds / n
            row[f"{name} ratio"] = times[*first, name] / seconds
        rows.append(row)
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
