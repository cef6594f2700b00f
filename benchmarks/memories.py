"""How much longer does a fit take with memories than without?

Run as ``python benchmarks/memories.py``. MemKDDetector at its default settings, with and without
memories, in both paradigms; whole fits of a few epochs, one after the other in turn.
"""

from __future__ import annotations

from timing import medians, parser, report, textures

from skmkd import MemKDDetector


def main() -> None:
    """Print one row a paradigm."""
    arguments = parser(__doc__, runs=3)
    arguments.add_argument("--images", type=int, default=64)
    arguments.add_argument("--side", type=int, default=128)
    arguments.add_argument("--epochs", type=int, default=5)
    given = arguments.parse_args()
    images = textures(given.images, given.side)
    settings = {
        "contamination": 0.05,
        "device": "cpu",
        "image_size": given.side,
        "max_iter": given.epochs,
        "tol": None,
        "random_state": 0,
    }
    rows = []
    for paradigm in ("reverse", "forward"):
        detectors = {
            size: MemKDDetector(paradigm=paradigm, memory_size=size, **settings) for size in (0, 50)
        }
        works = {size: lambda d=detector: d.fit(images) for size, detector in detectors.items()}
        times = medians(works, given.runs, warm_up=False)
        rows.append(
            {
                "paradigm": paradigm,
                "images": given.images,
                "pixels": given.side,
                "epochs": given.epochs,
                "without s": times[0],
                "with s": times[50],
                "ratio": times[50] / times[0],
            }
        )
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
