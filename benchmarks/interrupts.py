"""Can an interrupt tear a call, or leave the process changed?

Run as ``python benchmarks/interrupts.py``; ``--tries`` says how many interrupts there are. Each
hits one call of a small detector: at one of the lines or opcodes that the main thread passes, or
at a random moment. Then the detector must be fitted as before or anew, the process as before, and
the same call must work. It prints "tried: n, lost: 0", and what was lost.
"""

from __future__ import annotations

import random
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import sklearn
import torch
from timing import Tiny, parser, report
from torch import nn
from tqdm import tqdm

import skmkd
from skmkd._interrupts import sheltered
from skmkd._networks.engines import PREPARING
from skmkd._networks.tracing import TRACING
from skmkd._packages import IMPORTING
from skmkd._runtime import GENERATORS

KINDS = ("line", "opcode", "moment")
LOCKS = GENERATORS, TRACING, PREPARING, IMPORTING
DEAF = 30  # seconds after which a lock counts as lost


class Interrupter:
    """A trace function that raises KeyboardInterrupt at one event of a kind."""

    def __init__(self, kind: str, at: int) -> None:
        self._kind, self._at = kind, at
        self.n_events = 0

    def __call__(self, frame: Any, event: str, _: Any) -> Interrupter:
        """Look at an event, and trace what follows."""
        frame.f_trace_opcodes = self._kind == "opcode"
        if event == self._kind:
            self.n_events += 1
            if self.n_events == self._at:
                raise KeyboardInterrupt
        return self


@contextmanager
def traced(interrupter: Interrupter) -> Iterator[None]:
    """Pass what the main thread does through a trace function."""
    before = sys.gettrace()
    sys.settrace(interrupter)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Interrupt the main thread once, after a time."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Trial:
    """A small detector, what calls of it give, and the state of the process."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
        self._path, self._source = folder / "detector.skmkd", Tiny()
        self._detector = skmkd.MKDDetector(**self._parameters(1)).fit(self._images)
        self._detector.set_params(random_state=0).save(self._path)
        self.calls: dict[str, Callable[[], Any]] = {
            "fit": lambda: skmkd.MKDDetector(**self._parameters(0)).fit(self._images[:6]),
            "refit": lambda: self._detector.fit(self._images),
            "callback": lambda: self._detector.fit(self._images, callback=self._callback),
            "calibrate": lambda: self._detector.calibrate(self._images[:8], fpr=0.2),
            "score_samples": lambda: self._detector.score_samples(self._images),
            "localize": lambda: self._detector.localize(self._images[:2]),
            "iter_results": lambda: list(self._detector.iter_results(self._images[:2])),
            "save": lambda: self._detector.save(self._path),
            "load": lambda: skmkd.load(self._path, source=self._source),
        }
        self._start = dict(vars(self._detector))
        self._wholes = [self._outcome(n) for n in (0, 1, 2)]
        self._results = {name: self._result(name) for name in self.calls}
        self._process = self._state()

    def _parameters(self, seed: int, max_iter: int = 2) -> dict[str, Any]:
        return {
            "source": self._source, "critical_layers": 2, "image_size": 16, "max_iter": max_iter,
            "batch_size": 12, "schedule": "constant", "precision": "float32",
            "validation_fraction": 0, "random_state": seed, "device": "cpu",
        }  # fmt: skip

    def _callback(self, detector: skmkd.MKDDetector, epoch: int) -> None:
        detector.score_samples(self._images[:1])

    def _restart(self) -> None:
        self._detector.__dict__ = dict(self._start)

    def _outcome(self, n_epochs: int) -> list[Any]:
        """Return what a detector has learned after some epochs; after none, as it is before."""
        self._restart()
        if n_epochs:
            self._detector.set_params(max_iter=n_epochs).fit(self._images)
        return self._learned()

    def _learned(self) -> list[Any]:
        thresholds = self._detector.offset_, self._detector.map_offset_
        return [self._detector.score_samples(self._images).tolist(), thresholds]

    def _result(self, name: str) -> Any:
        """Return what can be compared of the result of a call."""
        self._restart()
        value = self.calls[name]()
        if isinstance(value, skmkd.MKDDetector):
            thresholds = value.offset_, value.map_offset_
            return [value.score_samples(self._images).tolist(), thresholds]
        return value.tolist() if isinstance(value, np.ndarray) else [str(each) for each in value]

    def _state(self) -> dict[str, Any]:
        """Return what a call must leave as it is: in the process, and in both threads."""
        return {
            "generators": (
                torch.get_rng_state().tolist(),
                np.random.get_state()[1].tolist(),  # noqa: NPY002
            ),
            "modes": modes(),
            "modes of the worker": sheltered(modes),
            "modules": (nn.Module.__call__, nn.Module.__getattr__),
            "default": (torch.get_default_dtype(), torch.get_default_device()),
            "scikit-learn": sklearn.get_config(),
            "warnings": list(warnings.filters),
        }

    def n_events(self, name: str, kind: str) -> int:
        """Count the lines or opcodes that the main thread passes in a call."""
        self._restart()
        with traced(interrupter := Interrupter(kind, 0)):
            self.calls[name]()
        return interrupter.n_events

    def seconds(self, name: str) -> float:
        """Measure a call."""
        self._restart()
        start = perf_counter()
        self.calls[name]()
        return perf_counter() - start

    def lost(self, name: str, kind: str, at: float) -> str:
        """Interrupt a call; return what was torn or changed, which should be nothing."""
        self._restart()
        interrupter = alarm(at) if kind == "moment" else traced(Interrupter(kind, int(at)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with interrupter:
                    self.calls[name]()
        except KeyboardInterrupt:
            pass
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        if changed := [n for n, value in self._state().items() if value != self._process[n]]:
            return f"changed: {changed}"
        with ThreadPoolExecutor(1) as other:
            if not other.submit(locks_are_free).result():
                return "a lock is held"
        wholes = [*self._wholes, self._results["calibrate"]]
        if (learned := self._learned()) not in wholes:
            return f"a torn fit: {learned}"
        if self._result(name) != self._results[name]:
            return "the next call gives other results"
        return ""


def modes() -> tuple[Any, ...]:
    """Return the modes of torch in this thread."""
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(), torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
    )  # fmt: skip


def locks_are_free() -> bool:
    """Try all locks."""
    for lock in LOCKS:
        if not lock.acquire(timeout=DEAF):
            return False
        lock.release()
    return True


def interrupted(tries: int, seed: int = 0, verbose: bool = False) -> tuple[Counter[str], list[str]]:
    """Interrupt calls; return how many of each, and what was lost."""
    rng, tried, lost = random.Random(seed), Counter[str](), []
    with TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        most = {
            (name, kind): trial.seconds(name) if kind == "moment" else trial.n_events(name, kind)
            for name in trial.calls
            for kind in KINDS
        }
        weights = [most[name, "moment"] ** -0.5 for name, _ in most]  # more of short calls
        chosen = rng.choices(list(most), weights, k=tries)
        for name, kind in tqdm(chosen, disable=not verbose):
            limit = most[name, kind]
            at = rng.uniform(0, limit) if kind == "moment" else rng.randint(1, int(limit))
            if found := trial.lost(name, kind, at):
                lost.append(f"{name} at {kind} {at:.4g}: {found}")
            tried[name] += 1
    return tried, lost


def main() -> None:
    """Print one row a call, and the sum."""
    arguments = parser(__doc__)
    arguments.add_argument("--tries", type=int, default=10_000, help="%(default)s")
    given = arguments.parse_args()
    tried, lost = interrupted(given.tries, verbose=True)
    rows = [
        {"call": name, "tried": n, "lost": sum(each.startswith(f"{name} ") for each in lost)}
        for name, n in tried.items()
    ]
    report(__file__, rows, given.output)
    print(*lost, f"tried: {given.tries}, lost: {len(lost)}", sep="\n")


if __name__ == "__main__":
    main()
