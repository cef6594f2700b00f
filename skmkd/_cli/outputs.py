"""Results of images, whether or not others have one, and what several threads do."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from typing import Any, NamedTuple, TypeVar

from skmkd._images.tiles import grid
from skmkd._scoring import Result

Item = TypeVar("Item")
Done = TypeVar("Done")
N_THREADS = min(4, os.cpu_count() or 1)
WAITING = 2**25  # pixels, of the maps that wait for threads
NAMED = 5  # failures that an error names


class Failure(NamedTuple):
    """An image for which nothing could be computed, and why."""

    path: str
    reason: str


Failures = list[Failure]


def usable(results: Iterable[Result], failures: Failures, skip: bool) -> Iterator[Result]:
    """Yield the results of images that have a score, and take down why others have none.

    With `skip`, yield these, too, and warn of each.
    """
    for result in results:
        if result.error is not None and not skip:
            failures.append(Failure(str(result.path), about(result)))
            continue
        if result.error is not None:
            warnings.warn(f"{about(result).rstrip('.')}. It is skipped.", UserWarning, stacklevel=2)
        yield result


def in_threads(
    work: Callable[[Item], Done], items: Iterable[Item], n_pixels: Callable[[Item], int]
) -> Generator[Done, None, None]:
    """Yield the result of each item, in order; threads work while the next items are made.

    As many items as threads may wait, fewer if they are large. Close the generator to stop
    early: items that are worked on are finished, and others left.
    """
    waiting: deque[tuple[int, Future[Done]]] = deque()
    pool = ThreadPoolExecutor(N_THREADS)
    try:
        for item in items:
            waiting.append((n_pixels(item), pool.submit(work, item)))
            while len(waiting) > N_THREADS or sum(pixels for pixels, _ in waiting) > WAITING:
                yield waiting.popleft()[1].result()
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def map_shape(detector: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of an image's map that holds all its detail.

    The networks see tiles resized, and a map has no more detail than that.
    """
    if hasattr(detector, "detectors_"):
        heights, widths = zip(*(map_shape(each, size) for each in detector.detectors_), strict=True)
        return max(heights), max(widths)
    seen = size if detector._roi is None else detector._roi.size
    pairs = zip(size, grid(seen, detector._tiling).tile, detector._prepare.size, strict=True)
    height, width = (ceil(side * min(1, resized / tile)) for side, tile, resized in pairs)
    return height, width


def about(result: Result) -> str:
    """Return why an image has no score, naming the file and not its index among others."""
    return str(result.error).replace(f"X[{result.index}] ({result.path})", str(result.path))


def check_complete(failures: Failures, total: int) -> None:
    """Raise ValueError if an image has no result."""
    if not failures:
        return
    (_, reason), *others = failures
    if others:
        names = [path for path, _ in others[:NAMED]] + ["..."] * (len(others) > NAMED)
        count = f"{len(failures)} of {total} images have no result"
        reason = f"{reason.rstrip('.')}. {count}; the others are {', '.join(names)}."
    raise ValueError(reason)
