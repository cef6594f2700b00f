"""What the benchmarks share: medians of interleaved runs, peaks, tables and JSON."""

from __future__ import annotations

import argparse
import json
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import skimage
import torch
from skimage import data
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skmkd import __version__

ROOT = Path(__file__).parents[1]
PEAK_SIDE = 2048  # of the square matrices whose product is the machine's peak
INSTRUCTIONS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX512-BF16",
    "avx512f": "AVX512",
    "avx2": "AVX2",
}


class Tiny(nn.Module):
    """A source of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.features = nn.Sequential(
            first,
            nn.ReLU(),
            nn.MaxPool2d(2),
            second,
            nn.ReLU(),
            nn.MaxPool2d(2),
        ).to_empty(device="cpu")
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return activations (n, 8, H / 4, W / 4)."""
        return self.features(images)


def parser(description: str | None, runs: int | None = None) -> argparse.ArgumentParser:
    """Return a command line with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    if runs is not None:
        parser.add_argument("--runs", type=int, default=runs, help="runs whose median is taken")
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


def operations(network: nn.Module, *inputs: Any) -> int:
    """Count additions and multiplications of one forward pass."""
    counter = FlopCounterMode(display=False)
    with counter, torch.enable_grad():  # else oneDNN's own, which are not counted
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
    return _cpuinfo("model name") or platform.processor()


def instructions() -> str:
    """Return the fastest instructions for matrix products that the processor has."""
    flags = _cpuinfo("flags").split()
    return next((name for flag, name in INSTRUCTIONS.items() if flag in flags), "unknown")


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return ""
    return next((line.partition(": ")[2] for line in lines if line.startswith(field)), "")


def machine() -> dict[str, Any]:
    """Say on what, and with which versions, something is measured."""
    from skmkd._runtime import resolve_precision  # an earlier build may lack it

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        **gpu,
        "processor": processor(),
        "instructions": instructions(),
        "threads": torch.get_num_threads(),
        "native precision": resolve_precision("auto", torch.device("cpu")),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-image": skimage.__version__,
        "skmkd": __version__,
    }


def report(
    script: str, rows: list[dict[str, Any]], output: Path | None, quiet: bool = False
) -> None:
    """Print rows as a table and write them, with what they were measured on, as JSON."""
    path = output or Path(Path(script).with_suffix(".json").name)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    if quiet:
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_text(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(len(c) for c in column) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
