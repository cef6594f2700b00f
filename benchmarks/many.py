"""How fast are two processes of one thread beside one of two, and how much does a driver hold?

Run as ``python benchmarks/many.py``. Two processes score the halves of a folder as shards, one
thread each; one process scores all with two threads, in turn with them. Detectors are loaded
beforehand. The processors' time tells whether the one way computes more than the other, also on a
machine that others use. The driver's memory is what scoring a shard of a million paths adds to the
process, with a detector that reads nothing.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from timing import parser, report, seconds, textures, watched

from skmkd import MKDDetector
from skmkd._scoring import Result
from skmkd.distributed import _shards, score_shard

SIDE = 128


def score(
    model: Path, paths: list[str], output: Path, shard: tuple[int, int], ready: Any, spent: Any
) -> None:
    """Load everything, wait for the others, score a shard, and say when and at what cost."""
    threads = 2 // shard[1]
    score_shard(model, paths[:8], output / f"warm-up {shard[0]}", threads=threads)
    ready.wait()
    start, before = time.perf_counter(), time.process_time()
    score_shard(model, paths, output / "scores", shard=shard, threads=threads)
    spent.put((start, time.perf_counter(), time.process_time() - before))


def scored(model: Path, paths: list[str], n: int) -> tuple[float, float]:
    """Return the seconds in which n processes score all images, and their processors' seconds.

    They count from the moment when all have begun; the clock is the same for all of a machine.
    """
    context = multiprocessing.get_context("spawn")
    ready, spent = context.Barrier(n), context.Queue()
    with TemporaryDirectory() as folder:
        given = [(model, paths, Path(folder), (i + 1, n), ready, spent) for i in range(n)]
        processes = [context.Process(target=score, args=each) for each in given]
        for process in processes:
            process.start()
        starts, stops, costs = zip(*(spent.get() for _ in processes), strict=True)
        for process in processes:
            process.join()
    return max(stops) - min(starts), sum(costs)


class Nothing:
    """A detector that reads no image."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def detector(self) -> Nothing:
        """Return itself."""
        return self

    def iter_results(self, paths: list[str]) -> Iterator[Result]:
        """Yield a result for each path."""
        for i, path in enumerate(paths):
            yield Result(i, path, 0.0, 0.0, 0.0, None, None)


def held(n: int, model: Path) -> dict[str, Any]:
    """Return the memory and the seconds that a shard of n paths takes, images aside."""
    row: dict[str, Any] = {"paths": n}
    _shards.Scorer = Nothing  # type: ignore[misc, assignment]
    with TemporaryDirectory() as folder, watched(row):
        paths = [f"/archive/line-03/2026-11-28/camera-2/{i:09}.png" for i in range(n)]
        row["s"] = seconds(lambda: score_shard(model, paths, folder))
    return row


def main() -> None:
    """Print the throughput of processes, and the memory of a driver."""
    arguments = parser(__doc__, runs=3)
    arguments.add_argument("--images", type=int, default=512)
    arguments.add_argument("--paths", type=int, default=1_000_000)
    given = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        crops = textures(given.images, SIDE)
        paths = [f"{folder}/{i:05}.png" for i in range(given.images)]
        for path, crop in zip(paths, crops, strict=True):
            Image.fromarray(crop).save(path)
        model = Path(folder, "model.skmkd")
        MKDDetector(
            image_size=SIDE, max_iter=1, contamination=0.05, device="cpu", random_state=0,
            source="efficientnet_lite0",
        ).fit(crops[:32]).save(model, include_source=False)  # fmt: skip
        found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for _ in range(given.runs):
            for n, each in found.items():
                each.append(scored(model, paths, n))
        ratios = [one / two for (one, _), (two, _) in zip(*found.values(), strict=True)]
        for n, each in found.items():
            times, costs = zip(*each, strict=True)
            rows.append(
                {
                    "processes": n,
                    "images/s": given.images / median(times),
                    "ratio": 1.0 if n == 1 else median(ratios),
                    "CPU ms/image": 1000 * median(costs) / given.images,
                }
            )
        rows.append(held(given.paths, model))
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
