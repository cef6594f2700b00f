"""What the benchmarks share: medians of interleaved runs, peaks, tables and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import skimage
import torch
from skimage import data
from torch.utils.flop_counter import FlopCounterMode

from skmkd import __version__

ROOT = Path(__file__).parents[1]
PEAK_SIDE = 2048  # of the square matrices whose product is the machine's peak


def parser(
    description: str | None, runs: int | None = None, before: bool = False
) -> argparse.ArgumentParser:
    """Return a command line with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    if runs is not None:
        parser.add_argument("--runs", type=int, default=runs, help="runs whose median is taken")
    if before:
        parser.add_argument("--before", type=Path, help="checkout of an earlier build to compare")
    parser.add_argument("--output", type=Path, help="JSON file (default: the script's name)")
    return parser


def seconds(work: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(
    works: dict[Any, Callable[[], Any]], runs: int, warm_up: bool = True
) -> dict[Any, float]:
    """Time several works in turn, after one untimed call of each; return their medians."""
    if warm_up:
        for work in works.values():
            work()
    times: dict[Any, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: median(each) for name, each in times.items()}


class Build:
    """A checkout of skmkd in a process of its own, where functions of a benchmark are called.

    Parameters
    ----------
    checkout : path
        Its folder.
    script : path
        The benchmark; the process imports this file, whatever the checkout.
    """

    def __init__(self, checkout: Path, script: str) -> None:
        path = os.pathsep.join([str(checkout.resolve()), str(Path(script).resolve().parent)])
        program = (
            f"import json, sys, {Path(script).stem} as script, skmkd\n"
            f"assert skmkd.__file__.startswith({str(checkout.resolve())!r}), skmkd.__file__\n"
            "for line in sys.stdin:\n"
            "    name, arguments = json.loads(line)\n"
            "    print(json.dumps(getattr(script, name)(*arguments)), flush=True)\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function there; arguments and result are what JSON can hold."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([name, arguments]) + "\n")
            self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"{name} failed in the other process; see its message above.")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextmanager
def builds(script: str, before: Path | None) -> Iterator[dict[str, Build]]:
    """Start this build and, if a checkout of an earlier one was given, that one."""
    checkouts = {"this": ROOT} | ({} if before is None else {"before": before})
    started = {name: Build(checkout, script) for name, checkout in checkouts.items()}
    try:
        yield started
    finally:
        for build in started.values():
            build.close()


def anonymous() -> float:
    """Return the anonymous memory of this process, in MB."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1e3


@contextmanager
def watched(result: dict[str, Any]) -> Iterator[None]:
    """Note the peak of the anonymous memory while the context lasts, and what it was before."""
    result["before MB"] = result["peak MB"] = anonymous()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            result["peak MB"] = max(result["peak MB"], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        result["added MB"] = result["peak MB"] - result["before MB"]


def product(dtype: torch.dtype) -> Callable[[], Any]:
    """Return a matrix product of 2 * PEAK_SIDE**3 operations."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(PEAK_SIDE, PEAK_SIDE, generator=generator).to(dtype) for _ in range(2)
    )
    return lambda: left @ right


def operations(network: torch.nn.Module, *inputs: Any) -> int:
    """Count additions and multiplications of one forward pass."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops()


def textures(n: int, side: int, names: Sequence[str] = ("brick", "grass", "gravel")) -> np.ndarray:
    """Cut n random crops (n, side, side) out of scikit-image's photographs of textures."""
    rng = np.random.default_rng(0)
    photographs = [getattr(data, name)() for name in names]
    crops = []
    for i in range(n):
        photograph = photographs[i % len(photographs)]
        top, left = (rng.integers(0, size - side + 1) for size in photograph.shape)
        crops.append(photograph[top : top + side, left : left + side])
    return np.stack(crops)


def synthetic_maps(n: int, masks: Path, maps: Path, side: int = 256) -> None:
    """Write n synthetic masks and maps of one side; every other one has three rectangles."""
    rng = np.random.default_rng(0)
    truth = np.lib.format.open_memmap(masks, "w+", np.bool_, (n, side, side))
    values = np.lib.format.open_memmap(maps, "w+", np.float32, (n, side, side))
    for i in range(n):
        for _ in range(3 * (i % 2)):
            row, column = rng.integers(0, side * 4 // 5, 2)
            height, width = rng.integers(side // 50, side // 5, 2)
            truth[i, row : row + height, column : column + width] = True
        values[i] = rng.random((side, side), np.float32) + 0.5 * truth[i]


def processor() -> str:
    """Return the processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def machine() -> dict[str, Any]:
    """Say on what, and with which versions, something is measured."""
    from skmkd._runtime import resolve_precision  # a build to compare with may lack it

    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "native precision": resolve_precision("auto", torch.device("cpu")),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-image": skimage.__version__,
        "skmkd": __version__,
    }


def report(script: str, rows: list[dict[str, Any]], output: Path | None) -> None:
    """Print rows as a table and write them, with what they were measured on, as JSON."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_text(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(len(c) for c in column) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    output = output or Path(script).with_suffix(".json").name
    Path(output).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
