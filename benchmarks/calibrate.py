"""How many false alarms do the thresholds of fit raise, and how many those of calibrate?

Run as ``python benchmarks/calibrate.py``. Normal images only, split anew at random each time: to
learn from, to calibrate with, and to count false alarms on. Settings are the default ones, but for
images of 32 px. The interval is the one in which 99 % of such counts would lie if each test image
alone were a false alarm with the probability asked for; it leaves out that all test images of a
split share a threshold.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fashion_mnist import load
from scipy.stats import binom
from skimage.data import brick
from skimage.util import view_as_blocks
from timing import parser, report
from tqdm import tqdm

from skmkd import MKDDetector

FPR = 0.05
SIDE = 32  # pixels


def bricks() -> np.ndarray:
    """Cut the photograph of a brick wall into 256 crops that do not overlap."""
    return view_as_blocks(brick(), (SIDE, SIDE)).reshape(-1, SIDE, SIDE)


def shirts(data: Path) -> np.ndarray:
    """Return the 7,000 images of Fashion-MNIST's class 0."""
    parts = [load(data, part) for part in ("train", "t10k")]
    return np.concatenate([images[labels == 0] for images, labels in parts])


def false_alarms(
    images: np.ndarray, sizes: tuple[int, int, int], seed: int, epochs: int | None
) -> dict[str, float]:
    """Fit, calibrate and count on one split; return both shares of false alarms, in percent."""
    order = np.random.default_rng(seed).permutation(len(images))
    learn, calibrate, test = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    length = {} if epochs is None else {"max_iter": epochs, "tol": None}
    detector = MKDDetector(
        **length,
        device="cpu",
        image_size=SIDE,
        contamination=FPR,
        random_state=seed,
    ).fit(images[learn])
    scores = detector.score_samples(images[test])
    maxima = detector.localize(images[test]).max(axis=(1, 2))
    shares = {}
    for name in ("fit", "calibrate"):
        if name == "calibrate":
            detector.calibrate(images[calibrate], fpr=FPR)
        shares[f"{name} %"] = 100 * np.mean(scores < detector.offset_)
        shares[f"{name} maps %"] = 100 * np.mean(maxima > detector.map_offset_)
    return shares


def main() -> None:
    """Print one row a set of images."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, default="/usr/share/datasets/fashion-mnist")
    arguments.add_argument("--only", choices=["brick", "Fashion-MNIST 0"])
    arguments.add_argument("--splits", type=int, help="default: 50 and 20")
    arguments.add_argument("--epochs", type=int, help="default: until the loss has converged")
    given = arguments.parse_args()
    cases = {
        "brick": (bricks, (100, 99, 57), 50),
        "Fashion-MNIST 0": (lambda: shirts(given.data), (500, 999, 500), 20),
    }
    rows = []
    for name in [given.only] if given.only else cases:
        read, sizes, splits = cases[name]
        images, splits = read(), given.splits or splits
        shares = [
            false_alarms(images, sizes, seed, given.epochs) for seed in tqdm(range(splits), name)
        ]
        trials = splits * sizes[2]
        low, high = (100 * count / trials for count in binom.interval(0.99, trials, FPR))
        rows.append(
            {
                "images": name,
                **dict(zip(("learn", "calibrate", "test"), sizes, strict=True)),
                "splits": splits,
                **{key: float(np.mean([s[key] for s in shares])) for key in shares[0]},
                "99 % from": low,
                "99 % to": high,
            }
        )
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
