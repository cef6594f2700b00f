"""How fast are two processes of one thread beside one of two, and how much does a driver hold?

Run as ``python benchmarks/many.py``. Two processes score the halves of a folder as shards, one
thread each; one process scores all with two threads. Both load the detector anew. The driver's
memory is what scoring a shard of a million paths adds to the process, with a scorer that reads
nothing.
"""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from timing import parser, report, seconds, textures, watched

from skmkd import MKDDetector
from skmkd.distributed import _shards, score_shard
from skmkd.distributed._scorer import COLUMNS

SIDE = 128


def score(model: Path, paths: list[str], output: Path, shard: tuple[int, int], ready: Any) -> None:
    """Load everything, wait for the others, and score a shard."""
    threads = 2 // shard[1]
    score_shard(model, paths[:4], output / f"warm-up {shard}", threads=threads)
    ready.wait()
    score_shard(model, paths, output, shard=shard, threads=threads)


def scored(model: Path, paths: list[str], n: int) -> float:
    """Return the seconds in which n processes score all images, once they have begun."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(n + 1)
    with TemporaryDirectory() as folder:
        given = [(model, paths, Path(folder), (i + 1, n), ready) for i in range(n)]
        processes = [context.Process(target=score, args=each) for each in given]
        for process in processes:
            process.start()
        ready.wait()
        start = time.perf_counter()
        for process in processes:
            process.join()
        return time.perf_counter() - start


class Nothing:
    """A scorer that reads no image."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, paths: list[str]) -> dict[str, Any]:
        """Return rows for the paths."""
        n = len(paths)
        return dict.fromkeys(COLUMNS, np.zeros(n)) | {"path": paths, "error": [""] * n}


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
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(given.runs):
            for n, each in times.items():
                each.append(scored(model, paths, n))
        for n, each in times.items():
            speed = given.images / median(each)
            rows.append(
                {"processes": n, "images/s": speed, "ratio": median(times[1]) / median(each)}
            )
        rows.append(held(given.paths, model))
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
