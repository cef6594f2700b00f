"""How much faster is a whole fit than the plain loop?

Run as ``python benchmarks/fit.py``. The plain loop runs three epochs, one before and two after
the fit, and is extrapolated from their median; the fit runs in full, with everything that it
includes, once unless ``--runs`` says more. Fashion-MNIST comes with Debian's package
dataset-fashion-mnist.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
import torch
from fashion_mnist import load
from plain_loop import PlainLoop
from timing import parser, report, seconds, textures

from skmkd import MKDDetector

PLAIN_EPOCHS = (1, 2)  # before and after


def compare(name: str, images: np.ndarray, side: int, epochs: int, runs: int) -> dict:
    """Time one data set."""
    loop = PlainLoop()
    prepared = loop.prepare(torch.from_numpy(images), side)
    loop.epoch(prepared[:128])
    MKDDetector.paper(device="cpu", image_size=side, max_iter=1, tol=None).fit(images[:8])
    before = [seconds(lambda: loop.epoch(prepared)) for _ in range(PLAIN_EPOCHS[0])]
    detector = MKDDetector.paper(
        device="cpu", image_size=side, max_iter=epochs, tol=None, random_state=0
    )
    fit = median(seconds(lambda: detector.fit(images)) for _ in range(runs))
    after = [seconds(lambda: loop.epoch(prepared)) for _ in range(PLAIN_EPOCHS[1])]
    plain = median(before + after)
    return {
        "fit": name,
        "images": len(images),
        "pixels": side,
        "epochs": epochs,
        "precision": detector.precision_,
        "plain s/epoch": plain,
        "plain s (extrapolated)": plain * epochs,
        "skmkd s": fit,
        "ratio": plain * epochs / fit,
    }


def main() -> None:
    """Print one row a data set."""
    arguments = parser(__doc__, runs=1)
    arguments.add_argument("--data", type=Path, default="/usr/share/datasets/fashion-mnist")
    arguments.add_argument("--only", choices=["fashion", "texture"])
    arguments.add_argument("--images", type=int, help="at most so many")
    arguments.add_argument("--epochs", type=int, help="instead of 51 and 100")
    given = arguments.parse_args()
    rows = []
    if given.only != "texture":
        images, labels = load(given.data, "train")
        images, epochs = images[labels == 0][: given.images], given.epochs or 51
        rows.append(compare("Fashion-MNIST, class 0", images, 32, epochs, given.runs))
    if given.only != "fashion":
        images, epochs = textures(200, 128)[: given.images], given.epochs or 100
        rows.append(compare("texture crops", images, 128, epochs, given.runs))
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
