"""What does a GPU compute, and how fast?

Run as ``python benchmarks/gpu.py`` on a machine with CUDA, in the project folder; it takes some
minutes. It runs the tests that need a GPU, then measures. The plain loop runs on the same card, and
so does the product of two bfloat16 matrices, the card's own limit. Rows are written as they come:
a run that is cut off keeps what it had.
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
PRODUCT_SIDE = 8192  # of the square matrices whose product is the card's peak
FASHION_EPOCHS = 51
Row = dict[str, Any]


def took(work: Callable[[], Any]) -> float:
    """Time one call, until the card is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
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


def differences() -> Iterator[Row]:
    """Compare scores of a detector that was fitted on the CPU, on both."""
    images = textures(256, SIDE)
    for precision in ("float32", "bfloat16"):
        detector = MKDDetector(
            contamination=0.05, device="cpu", precision=precision, max_iter=2, random_state=0
        )
        detector.fit(images[:64])
        here, labels = detector.score_samples(images), detector.predict(images)
        with tempfile.TemporaryDirectory() as folder:
            detector.save(Path(folder) / "model.skmkd")
            detector = skmkd.load(Path(folder) / "model.skmkd", device="cuda")
        for fast in (False, True) if precision == "float32" else (False,):
            torch.backends.cudnn.allow_tf32 = fast
            scores = detector.score_samples(images)
            alone = np.concatenate([detector.score_samples(image[None]) for image in images])
            yield {
                "what": f"scores in {precision}" + ", TF32" * fast,
                "difference from the CPU": largest(scores, here),
                "labels that differ": int((detector.predict(images) != labels).sum()),
                "alone or together": largest(alone, scores),
            }
        torch.backends.cudnn.allow_tf32 = True
        fits = [
            MKDDetector(contamination=0.05, device="cuda", precision=precision, random_state=0).fit(
                images[:64]
            )
            for _ in range(2)
        ]
        first, second = (fit.score_samples(images) for fit in fits)
        yield {"what": f"two fits in {precision}", "difference": largest(second, first)}


def peak() -> float:
    """Return the operations a second of the card's own bfloat16 matrix product."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (PRODUCT_SIDE, PRODUCT_SIDE)
    left, right = (
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        for _ in range(2)
    )
    return 2 * PRODUCT_SIDE**3 / middle(lambda: left @ right, 20)


def plain_loop() -> PlainLoop:
    """Return the plain loop on the card."""
    loop = PlainLoop()
    loop.source.cuda()
    loop.cloner.cuda()
    return loop


def scores(n: int) -> Iterator[Row]:
    """Score and localize images in memory."""
    images = np.tile(textures(n // 10, SIDE), (10, 1, 1))
    detector = MKDDetector(contamination=0.05, device="cuda", max_iter=1, random_state=0).fit(
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
    prepared = loop.prepare(torch.from_numpy(images[:2048]), SIDE).cuda()
    found["plain loop, from the card's memory"] = middle(lambda: loop.score(prepared), 3) / 2048
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
    detector = MKDDetector(contamination=0.05, device="cuda", max_iter=1, random_state=0).fit(
        images
    )
    for what, work in (("score", detector.score_samples), ("map", detector.localize)):
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
        detector = MKDDetector(contamination=0.05, device="cuda", max_iter=1, random_state=0).fit(
            paths[:64]
        )
        dataset = detector._dataset(detector._tiles(detector._check_images(paths)))
        whole = [list(range(i, i + 256)) for i in range(0, n - 255, 256)]
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
        "device": "cuda",
        "image_size": 32,
        "random_state": 0,
        "tol": None,
    }
    MKDDetector.paper(**options, max_iter=1).fit(images[:512])
    detector = MKDDetector.paper(**options, max_iter=FASHION_EPOCHS)
    fit = took(lambda: detector.fit(images))
    yield {"what": "fit of Fashion-MNIST, class 0", "images": len(images), "s": fit}
    loop = plain_loop()
    prepared = loop.prepare(torch.from_numpy(images), 32).cuda()
    plain = FASHION_EPOCHS * middle(lambda: loop.epoch(prepared), 3)
    yield {"what": "the plain loop (3 epochs, extrapolated)", "s": plain, "ratio": plain / fit}


def fits() -> Iterator[Row]:
    """Fit texture crops with the default parameters."""
    for side in (128, 256):
        images = textures(200, side)
        detector = MKDDetector(contamination=0.05, device="cuda", image_size=side, random_state=0)
        seconds = middle(lambda d=detector, x=images: d.fit(x), 1)
        yield {"what": f"default fit of {side} px", "images": 200, "s": seconds}


def main() -> None:
    """Run everything, or the sections that are named."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=20_000, help="scored from memory")
    arguments.add_argument("--files", type=int, default=5_000, help="JPEG files")
    arguments.add_argument("--data", type=Path, default=DEBIAN, help="folder of Fashion-MNIST")
    arguments.add_argument("--only", nargs="+", help="sections")
    given = arguments.parse_args()
    sections: dict[str, Callable[[], Iterator[Row]]] = {
        "tests": tests,
        "differences": differences,
        "scores": lambda: scores(given.images),
        "one": one,
        "fashion": lambda: fashion(given.data),
        "fits": fits,
        "files": lambda: files(given.files),
    }
    rows: list[Row] = []
    for name in given.only or sections:
        for row in sections[name]():
            print(row, flush=True)
            rows.append(row)
            report(__file__, rows, given.output, quiet=True)
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
