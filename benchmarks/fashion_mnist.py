"""Fashion-MNIST, or MNIST, from the files in which both were published.

Debian's package dataset-fashion-mnist has those of the former; mirrors have both.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


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
