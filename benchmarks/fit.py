"""How much faster is a whole fit than the plain loop?

Run as ``python benchmarks/fit.py``. The plain loop runs three epochs, one before and two after
the fit, and is extrapolated from their median; the fit runs in full, with everything that it
includes, once unless ``--runs`` says more. Fashion-MNIST comes with Debian's package
dataset-fashion-mnist.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from fashion_mnist import DEBIAN, load
from timing import parser, report, seconds, textures

from skmkd import MKDDetector

PLAIN_EPOCHS = (1, 2)  # before and after
FASHION_EPOCHS = 51


def measure(
    only: Literal["texture", "fashion"] = "texture",
    images: int | None = None,
    epochs: int | None = None,
    scored: int = 256,
    precision: str = "auto",
    data: str = str(DEBIAN),
) -> dict[str, float]:
    """Time a fit and its scores: texture crops by default, or the paper's setting.

    Epochs limit the default fit, which otherwise ends when it has converged.
    """
    options: dict[str, Any] = {"device": "cpu", "precision": precision, "random_state": 0}
    options["contamination"] = 0.05  # all images are learned, as in earlier builds
    if only == "fashion":
        pixels, labels = load(Path(data), "train")
        pixels, new = pixels[labels == 0], load(Path(data), "t10k")[0][:scored]
        options |= {"max_iter": epochs or FASHION_EPOCHS, "tol": None, "batch_size": 64}
        detector = MKDDetector.paper(image_size=32, **options)
    else:
        pixels, new = textures(200, 128), textures(scored, 128)
        options |= {"max_iter": epochs, "tol": None} if epochs else {}
        detector = MKDDetector(image_size=128, **options)
    pixels = pixels[:images]
    return {
        f"fit of {len(pixels)} images, s": seconds(lambda: detector.fit(pixels)),
        f"scores of {len(new)} images, s": seconds(lambda: detector.score_samples(new)),
    }


def compare(name: str, images: np.ndarray, side: int, epochs: int, runs: int) -> dict:
    """Time one data set."""
    from plain_loop import PlainLoop  # imports what an earlier build may lack

    loop = PlainLoop()
    prepared = loop.prepare(torch.from_numpy(images), side)
    loop.epoch(prepared[:128])
    MKDDetector.paper(contamination=0.05, device="cpu", image_size=side, max_iter=1, tol=None).fit(
        images[:8]
    )
    before = [seconds(lambda: loop.epoch(prepared)) for _ in range(PLAIN_EPOCHS[0])]
    detector = MKDDetector.paper(
        contamination=0.05, device="cpu", image_size=side, max_iter=epochs, tol=None, random_state=0
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
    arguments.add_argument("--data", type=Path, default=DEBIAN)
    arguments.add_argument("--only", choices=["fashion", "texture"])
    arguments.add_argument("--images", type=int, help="at most so many")
    arguments.add_argument("--epochs", type=int, help="instead of 51 and 100")
    given = arguments.parse_args()
    rows = []
    if given.only != "texture":
        images, labels = load(given.data, "train")
        images, epochs = images[labels == 0][: given.images], given.epochs or FASHION_EPOCHS
        rows.append(compare("Fashion-MNIST, class 0", images, 32, epochs, given.runs))
    if given.only != "fashion":
        images, epochs = textures(200, 128)[: given.images], given.epochs or 100
        rows.append(compare("texture crops", images, 128, epochs, given.runs))
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
