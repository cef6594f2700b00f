"""Fashion-MNIST, one class normal and the whole test set scored: a sanity figure.

Run as ``python benchmarks/fashion_mnist.py --normal 0 1``. The files come with Debian's package
dataset-fashion-mnist, or from any mirror in the original format (``--data``).
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from skmkd import MKDDetector

SETTINGS = {
    "value_weight=0.01, direction_weight=1": {"value_weight": 0.01, "direction_weight": 1.0},
    "direction_weight='auto'": {"direction_weight": "auto"},
}


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of bytes: two zeros, type 8, the dimensions, the values."""
    with gzip.open(path) as file:
        content = file.read()
    sides = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sides)).reshape(sides)


def load(data: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Load the images (n, 28, 28) and labels (n,) of the part "train" or "t10k"."""
    return (
        read_idx(data / f"{part}-images-idx3-ubyte.gz"),
        read_idx(data / f"{part}-labels-idx1-ubyte.gz"),
    )


def main() -> None:
    """Print image AUROC and times for each normal class and setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--normal", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=17)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    images, labels = load(arguments.data, "train")
    test_images, test_labels = load(arguments.data, "t10k")
    for normal in arguments.normal:
        for name, weights in SETTINGS.items():
            detector = MKDDetector(
                **weights,
                normalization=None,
                image_size=32,
                score_layers=3,
                max_iter=arguments.epochs,
                tol=None,
                random_state=arguments.seed,
            )
            start = time.perf_counter()
            detector.fit(images[labels == normal])
            fitted = time.perf_counter()
            auroc = roc_auc_score(test_labels == normal, detector.score_samples(test_images))
            scored = time.perf_counter()
            print(
                f"class {normal}  {name:38}  λ {detector.direction_weight_:8.4g}  "
                f"image AUROC {100 * auroc:6.2f}  fit {fitted - start:5.0f} s  "
                f"score {scored - fitted:4.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
