"""What does a GPU compute, and how fast?

Run as ``python benchmarks/gpu.py`` on a machine with CUDA, in the project folder; it takes some
minutes. It runs the tests that need a GPU (of loads to and from the CPU, places of the cache, too
little memory, threads, MemKD and more), then measures. The plain loop runs on the same card, and so
does the product of two bfloat16 matrices, the card's own limit. Rows are written as they come: a
run that is cut off keeps what it had. ``--device cpu`` tries the script itself where there is no
GPU, with few ``--images`` (32 at least) and ``--files``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from fashion_mnist import DEBIAN, load
from joblib import Parallel, delayed
from PIL import Image
from plain_loop import PlainLoop
from timing import ROOT, operations, parser, report, textures

import skmkd
from skmkd import MKDDetector

SIDE = 128
DEVICE = "cuda"  # as the command line says
PRODUCT_SIDE = {"cuda": 8192, "cpu": 512}  # of the square matrices whose product is the peak
FASHION_EPOCHS = 51
Row = dict[str, Any]


def wait() -> None:
    """Wait until the card is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def took(work: Callable[[], Any]) -> float:
    """Time one call, until the card is done."""
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def middle(work: Callable[[], Any], runs: int) -> float:
    """Return the median time of some calls, after an untimed one."""
    work()
    return median(took(work) for _ in range(runs))


def largest(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, as a share of the largest value."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def tests() -> Iterator[Row]:
    """Run the tests that need a GPU, and count them."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["tests/test_gpu.py", "tests/test_steps.py", "tests/test_recording.py"]
    command += ["tests/networks/test_fusion.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:])
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped)", done.stdout)}
    yield {"what": "tests", **counts}


def differences(n: int = 256) -> Iterator[Row]:
    """Compare what a detector that was fitted on the CPU says on both, and two fits of a seed."""
    images, few = textures(n, SIDE), n // 4
    for precision in ("float32", "bfloat16"):
        options = {"contamination": 0.05, "precision": precision, "random_state": 0}
        here = MKDDetector(**options, device="cpu", max_iter=2).fit(images[:few])
        with tempfile.TemporaryDirectory() as folder:
            here.save(Path(folder) / "model.skmkd")
            there = skmkd.load(Path(folder) / "model.skmkd", device=DEVICE)
        scores, maps = here.score_samples(images), here.localize(images[:few])
        labels = here.predict(images)
        for fast in (True, False) if precision == "float32" else (False,):
            torch.backends.cudnn.allow_tf32 = fast
            found = there.score_samples(images)
            alone = np.concatenate([there.score_samples(image[None]) for image in images])
            yield {
                "what": f"scores in {precision}" + ", TF32" * fast,
                "difference from the CPU": largest(found, scores),
                "of maps": largest(there.localize(images[:few]), maps),
                "labels that differ": int((there.predict(images) != labels).sum()),
                "alone or together": largest(alone, found),
            }
        thresholds = [
            np.array([each.offset_, each.map_offset_])
            for each in (there.calibrate(images[few:]), here.calibrate(images[few:]))
        ]
        torch.backends.cudnn.allow_tf32 = True
        yield {
            "what": f"calibrated thresholds in {precision}",
            "difference from the CPU": float(np.abs(thresholds[0] / thresholds[1] - 1).max()),
            "labels that differ": int((there.predict(images) != here.predict(images)).sum()),
        }
        fits = [MKDDetector(**options, device=DEVICE).fit(images[:few]) for _ in range(2)]
        first, second = (fit.score_samples(images) for fit in fits)
        yield {"what": f"two fits in {precision}", "difference": largest(second, first)}


def peak() -> float:
    """Return the operations a second of the card's own bfloat16 matrix product."""
    generator, side = torch.Generator(DEVICE).manual_seed(0), PRODUCT_SIDE[DEVICE]
    left, right = (
        torch.randn((side, side), generator=generator, device=DEVICE, dtype=torch.bfloat16)
        for _ in range(2)
    )
    return 2 * side**3 / middle(lambda: left @ right, 20)


def plain_loop() -> PlainLoop:
    """Return the plain loop on the card."""
    loop = PlainLoop()
    loop.source.to(DEVICE)
    loop.cloner.to(DEVICE)
    return loop


def scores(n: int) -> Iterator[Row]:
    """Score and localize images in memory."""
    images = np.tile(textures(max(n // 10, 1), SIDE), (10, 1, 1))[:n]
    detector = MKDDetector(contamination=0.05, device=DEVICE, max_iter=1, random_state=0).fit(
        images[:64]
    )
    dataset = detector._dataset(detector._tiles(detector._check_images(images)))
    (batch,) = dataset.tensors([range(dataset.batch_size)])
    needed = operations(PlainLoop().source, batch[:1].cpu())  # the same convolutions
    found = {
        "source": middle(lambda: [dataset.features(batch) for _ in range(20)], 3) / 20 / len(batch),
        "scores": middle(lambda: detector.score_samples(images), 3) / n,
        "maps": middle(lambda: detector.localize(images), 3) / n,
    }
    loop = plain_loop()
    prepared = loop.prepare(torch.from_numpy(images[:2048]), SIDE).to(DEVICE)
    seconds = middle(lambda: loop.score(prepared), 3)
    found["plain loop, from the card's memory"] = seconds / len(prepared)
    limit = peak()
    for what, each in found.items():
        yield {
            "what": what,
            "images": n,
            "images/s": 1 / each,
            "of the product": needed / each / limit,
            "TFLOP/s of the product": limit / 1e12,
        }


def one() -> Iterator[Row]:
    """Score one image at a time."""
    images = textures(64, SIDE)
    detector = MKDDetector(contamination=0.05, device=DEVICE, max_iter=1, random_state=0).fit(
        images
    )
    for what, work in (("score", detector.score_samples), ("map", detector.localize)):
        for _ in range(4):  # after which a GPU replays
            work(images[:1])
        yield {"what": f"one image, {what}", "ms": 1e3 * middle(lambda w=work: w(images[:1]), 50)}


def files(n: int, side: int = 512) -> Iterator[Row]:
    """Score JPEG files; decode and prepare them alone, too."""
    crops = textures(100, side)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.jpg" for i in range(n)]
        Parallel(os.cpu_count(), prefer="threads")(
            delayed(Image.fromarray(np.roll(crops[i % 100], i, 0)).save)(path, quality=90)
            for i, path in enumerate(paths)
        )
        detector = MKDDetector(contamination=0.05, device=DEVICE, max_iter=1, random_state=0).fit(
            paths[:64]
        )
        dataset = detector._dataset(detector._tiles(detector._check_images(paths)))
        whole = [list(range(i, min(n, i + 256))) for i in range(0, n, 256)]
        works = {
            "decoding": lambda: Parallel(os.cpu_count(), prefer="threads")(
                delayed(lambda path: np.asarray(Image.open(path)).shape)(path) for path in paths
            ),
            "decoding and preparing": lambda: [None for _ in dataset.tensors(whole)],
            "scores": lambda: detector.score_samples(paths),
        }
        for what, work in works.items():
            yield {
                "what": f"JPEG files of {side} px, {what}",
                "images": n,
                "threads": torch.get_num_threads(),
                "images/s": n / middle(work, 1),
            }


def fashion(data: Path) -> Iterator[Row]:
    """Fit the paper's setting to Fashion-MNIST's class 0, and the plain loop."""
    images, labels = load(data, "train")
    images = images[labels == 0]
    options = {
        "contamination": 0.05,
        "device": DEVICE,
        "image_size": 32,
        "random_state": 0,
        "tol": None,
    }
    MKDDetector.paper(**options, max_iter=1).fit(images[:512])
    detector = MKDDetector.paper(**options, max_iter=FASHION_EPOCHS)
    fit = took(lambda: detector.fit(images))
    yield {"what": "fit of Fashion-MNIST, class 0", "images": len(images), "s": fit}
    loop = plain_loop()
    prepared = loop.prepare(torch.from_numpy(images), 32).to(DEVICE)
    plain = FASHION_EPOCHS * middle(lambda: loop.epoch(prepared), 3)
    yield {"what": "the plain loop (3 epochs, extrapolated)", "s": plain, "ratio": plain / fit}


def fits() -> Iterator[Row]:
    """Fit texture crops with the default parameters."""
    for side in (128, 256):
        images = textures(200, side)
        detector = MKDDetector(contamination=0.05, device=DEVICE, image_size=side, random_state=0)
        seconds = middle(lambda d=detector, x=images: d.fit(x), 1)
        yield {"what": f"default fit of {side} px", "images": 200, "s": seconds}


def main() -> None:
    """Run everything, or the sections that are named."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=20_000, help="scored from memory")
    arguments.add_argument("--files", type=int, default=5_000, help="JPEG files")
    arguments.add_argument("--data", type=Path, default=DEBIAN, help="folder of Fashion-MNIST")
    arguments.add_argument("--only", nargs="+", help="sections")
    arguments.add_argument("--device", choices=PRODUCT_SIDE, default=DEVICE)
    given = arguments.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA GPU here; --device cpu tries the script without one.")
    globals()["DEVICE"] = given.device
    sections: dict[str, Callable[[], Iterator[Row]]] = {
        "tests": tests,
        "differences": lambda: differences(min(256, given.images)),
        "scores": lambda: scores(given.images),
        "one": one,
        "fashion": lambda: fashion(given.data),
        "fits": fits,
        "files": lambda: files(given.files),
    }
    rows: list[Row] = []
    for name in given.only or sections:
        start = time.perf_counter()
        for row in sections[name]():
            print(row, flush=True)
            rows.append(row)
            report(__file__, rows, given.output, quiet=True)
        rows.append({"what": f"this section: {name}", "s": time.perf_counter() - start})
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
