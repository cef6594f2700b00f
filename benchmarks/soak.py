"""Does anything grow over long runs: memory, open files, threads, files left behind?

Run as ``python benchmarks/soak.py`` on Linux; it takes about an hour on two cores. Each case runs
in a process of its own, with a tiny source. What the process holds is noted once it has warmed up,
after two fifths of the work (the allocator settles within 500 fits), and at the end:

- ``score``: images from memory, scored a thousand at a time and one at a time;
- ``fit``: fits, each with scores after it;
- ``save``: models saved and loaded;
- ``kill``: fits with a feature store, killed (SIGKILL) at random moments. The last fit must have
  the losses of one without a store, and a store and a folder for temporary files must hold no
  more than entries.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from timing import Tiny, anonymous, parser, report

from skmkd import MKDDetector, load

WARM = 0.4  # of the work, before which what a process holds may grow
BATCH = 1000  # images of one call
LONGEST = 1.5  # seconds after which a fit is killed at the latest


def images(n: int) -> np.ndarray:
    """Return synthetic images (n, 16, 16, 3), uint8."""
    return np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), np.uint8)


def detector(**parameters: Any) -> MKDDetector:
    """Return a detector that fits in a moment."""
    return MKDDetector(
        source=Tiny(),
        critical_layers=2,
        image_size=16,
        max_iter=2,
        contamination=0.05,
        device="cpu",
        precision="float32",
        random_state=0,
        **parameters,
    )


def held() -> dict[str, float]:
    """Return what this process holds: MB of anonymous memory, files, threads, files left behind."""
    gc.collect()
    return {
        "MB": anonymous(),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),
        "left": len(list(Path(tempfile.gettempdir()).iterdir())),
    }


def grown(work: Callable[[int], object], n: int) -> dict[str, float]:
    """Work n times; return how much more the process holds at the end than once warm."""
    warm: dict[str, float] = {}
    for i in range(n):
        if i == max(1, int(WARM * n)):
            warm = held()
        work(i)
    return {f"{name} added": end - warm[name] for name, end in held().items()}


def score(n: int) -> dict[str, float]:
    """Score n images, of which each thousandth comes alone."""
    X = images(BATCH)
    fitted = detector().fit(X[:40])
    expected = fitted.score_samples(X)

    def work(i: int) -> None:
        np.testing.assert_array_equal(fitted.score_samples(X), expected)
        fitted.score_samples(X[i % BATCH : i % BATCH + 1])

    return grown(work, n // BATCH)


def fit(n: int) -> dict[str, float]:
    """Fit and score n times."""
    X = images(40)
    return grown(lambda i: detector().fit(X).score_samples(X[:4]), n)


def save(n: int) -> dict[str, float]:
    """Save and load a model n times."""
    X = images(40)
    fitted = detector().fit(X)
    path = Path(tempfile.gettempdir()) / "model.skmkd"

    def work(_: int) -> None:
        fitted.save(path)
        load(path, source=Tiny())

    return grown(work, n)


def kill(n: int) -> dict[str, float]:
    """Kill n fits that share a feature store, each at a random moment."""
    X = images(40)
    store = Path(tempfile.gettempdir()) / "store"
    expected = detector().fit(X).loss_curve_["total"]
    context = multiprocessing.get_context("forkserver")
    rng = np.random.default_rng(0)

    def work(_: int) -> None:
        process = context.Process(target=_fit_with_store, args=(store,))
        process.start()
        process.join(LONGEST * rng.random())
        process.kill()
        process.join()
        process.close()

    added = grown(work, n)
    learned = detector(feature_store=store).fit(X).loss_curve_["total"]
    np.testing.assert_array_equal(learned, expected)
    added["left"] = sum(path.name.startswith(".") for path in store.rglob("*"))
    return added


def _fit_with_store(store: Path) -> None:
    torch.set_num_threads(1)
    while True:
        detector(feature_store=store).fit(images(40))


CASES: dict[str, Callable[[int], dict[str, float]]] = {
    "score": score,
    "fit": fit,
    "save": save,
    "kill": kill,
}


def alone(name: str, n: int) -> dict[str, Any]:
    """Run a case in a process and a folder for temporary files of its own."""
    run = [sys.executable, __file__, "--case", name, str(n)]
    with TemporaryDirectory() as folder:
        environment = os.environ | {"TMPDIR": folder}
        printed = subprocess.run(
            run, check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout
    return {"work": name, "times": n, **json.loads(printed.splitlines()[-1])}


def main() -> None:
    """Print one row a case."""
    arguments = parser(__doc__)
    for name, n in {"score": 1_000_000, "fit": 1000, "save": 5000, "kill": 500}.items():
        arguments.add_argument(f"--{name}", type=int, default=n, help="how many times")
    arguments.add_argument("--case", nargs=2, metavar=("NAME", "N"), help="run one, here")
    given = arguments.parse_args()
    if given.case:
        name, n = given.case
        print(json.dumps(CASES[name](int(n))))
        return
    rows = [alone(name, getattr(given, name)) for name in CASES if getattr(given, name)]
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
