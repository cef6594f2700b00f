"""How much do scores depend on the number of threads of a fit, and how much on its seed?

Run as ``python benchmarks/threads.py``. Each detector is fitted at its default settings with one
thread and with two, and with several seeds; all score the same images with one thread. Two fits of
one seed that differ in threads are compared, and so are two that differ in the seed alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from timing import parser, report, textures

from skmkd import MemKDDetector, MKDDetector
from skmkd.datasets import make_defects

DETECTORS: dict[str, type[Any]] = {"MKDDetector": MKDDetector, "MemKDDetector": MemKDDetector}


def main() -> None:
    """Print a row for each data set, detector and kind of difference."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--precision", default="auto")
    arguments.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    given = arguments.parse_args()
    rows = []
    for data in given.data:
        good, new, is_good, side = DATA[data]()
        for name, detector in DETECTORS.items():
            scores = {}
            for seed in range(given.seeds):
                for threads in (1, 2):
                    settings = {"image_size": side, "random_state": seed, "device": "cpu"}
                    fitted = detector(**settings, precision=given.precision)
                    torch.set_num_threads(threads)
                    fitted.fit(good)
                    torch.set_num_threads(1)
                    scores[seed, threads] = fitted.score_samples(new)
            pairs = {
                "threads": [((seed, 1), (seed, 2)) for seed in range(given.seeds)],
                "seed": list(combinations([(seed, 1) for seed in range(given.seeds)], 2)),
            }
            rows += [
                {"data": data, "detector": name, "differ in": kind}
                | differences([(scores[a], scores[b]) for a, b in chosen], is_good)
                for kind, chosen in pairs.items()
            ]
    report(__file__, rows, given.output)


def texture_crops() -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return crops of brick, others with and without defects, and which are good."""
    crops = textures(144, 64, ("brick",))
    bad, _ = make_defects(crops[104:], random_state=0)
    return crops[:64], np.concatenate([crops[64:104], bad]), np.repeat([1, 0], 40), 64


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return threes, other threes and other digits, and which are threes."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    good, others = images[labels == 3], images[labels != 3][:200]
    new = np.concatenate([good[100:], others])
    return good[:100], new, np.arange(len(new)) < len(good) - 100, 32


DATA = {"brick": texture_crops, "digits": digits}


def differences(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], is_good: np.ndarray
) -> dict[str, float]:
    """Return the largest differences of scores, and the lowest agreement of their orders."""
    found = []
    for first, second in pairs:
        areas = [roc_auc_score(is_good, each) for each in (first, second)]
        relative = np.abs(first - second) / np.maximum(np.abs(first), np.abs(second))
        order = float(spearmanr(first, second).statistic)
        found.append((*areas, abs(areas[0] - areas[1]), np.median(relative), relative.max(), order))
    table = np.array(found)
    return {
        "AUROC": table[:, :2].mean(),
        "AUROC difference": table[:, 2].max(),
        "median score difference": table[:, 3].max(),
        "largest score difference": table[:, 4].max(),
        "Spearman": table[:, 5].min(),
    }


if __name__ == "__main__":
    main()
