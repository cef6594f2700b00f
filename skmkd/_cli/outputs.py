"""What is computed for each image, whether or not others fail, and what several threads do."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from skmkd._images.tiles import grid

Item = TypeVar("Item")
Result = TypeVar("Result")
N_THREADS = min(4, os.cpu_count() or 1)
WAITING = 2**25  # pixels, of the maps that wait for threads
NAMED = 5  # failures that an error names


class Failure(NamedTuple):
    """An image for which nothing could be computed, and why."""

    path: Path
    reason: str


Failures = list[Failure]


def of_each(
    compute: Callable[[Sequence[Path]], Iterable[Result]], paths: Sequence[Path], failures: Failures
) -> Iterator[tuple[Path, Result]]:
    """Yield each path with its result, in order, as far as it can be computed.

    Images are computed together. Where that fails, those without a result are computed in two
    halves, and so on, until the images that fail are found.

    Parameters
    ----------
    compute : callable
        Takes paths and yields their results in order; raises ValueError for an image that cannot
        be read or does not fit.
    paths : sequence of Path
        The images.
    failures : list of Failure
        Takes the images that have no result.
    """
    done = 0
    try:
        for result in compute(paths) if len(paths) else ():
            yield paths[done], result
            done += 1
    except ValueError as error:
        reason = str(error)
    else:
        return
    rest = paths[done:]
    if len(rest) == 1:
        failures.append(Failure(rest[0], about(rest[0], reason)))
        return
    half = len(rest) // 2
    yield from of_each(compute, rest[:half], failures)
    yield from of_each(compute, rest[half:], failures)


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], n_pixels: Callable[[Item], int]
) -> Generator[Result, None, None]:
    """Yield the result of each item, in order; threads work while the next items are made.

    As many items as threads may wait, fewer if they are large. Close the generator to stop
    early: items that are worked on are finished, and others left.
    """
    waiting: deque[tuple[int, Future[Result]]] = deque()
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
    seen = size if detector._roi is None else detector._roi.size
    pairs = zip(size, grid(seen, detector._tiling).tile, detector._prepare.size, strict=True)
    height, width = (ceil(side * min(1, resized / tile)) for side, tile, resized in pairs)
    return height, width


def about(path: Path, reason: str) -> str:
    """Return the reason of a failure, which names the file and not its index among others."""
    text = re.sub(rf"X\[\d+\]( \({re.escape(str(path))}\))?", lambda _: str(path), reason)
    return text if str(path) in text else f"{path}: {text}"


def check_complete(failures: Failures, total: int) -> None:
    """Raise ValueError if an image has no result."""
    if not failures:
        return
    (_, reason), *others = failures
    if others:
        names = [str(path) for path, _ in others[:NAMED]] + ["..."] * (len(others) > NAMED)
        count = f"{len(failures)} of {total} images have no result"
        reason = f"{reason.rstrip('.')}. {count}; the others are {', '.join(names)}."
    raise ValueError(reason)
