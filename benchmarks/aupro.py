"""How fast is AUPRO, exact and as a histogram, against sorting all pixels?

Run as ``python benchmarks/aupro.py``: 500 synthetic maps of 256 x 256 pixels. The baseline is
scikit-learn's ROC curve of all pixels, those of a region weighing 1 together: the same figure.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy import ndimage
from sklearn.metrics import auc, roc_curve
from timing import medians, parser, report, synthetic_maps

from skmkd.metrics import aupro_score


def all_pixels(masks: np.ndarray, maps: np.ndarray) -> float:
    """Compute AUPRO, up to a false-positive rate of 0.3, from the curve of all pixels."""
    weights = np.ones(masks.shape)
    for mask, weight in zip(masks, weights, strict=True):
        regions, _ = ndimage.label(mask, np.ones((3, 3)))
        weight[mask] = 1 / np.bincount(regions[mask])[regions[mask]]
    fpr, pro, _ = roc_curve(masks.ravel(), maps.ravel(), sample_weight=weights.ravel())
    within = fpr <= 0.3
    end = np.interp(0.3, fpr, pro)
    return auc(np.append(fpr[within], 0.3), np.append(pro[within], end)) / 0.3


def main() -> None:
    """Print one row a way of computing it."""
    arguments = parser(__doc__, runs=3)
    arguments.add_argument("--maps", type=int, default=500)
    arguments.add_argument("--side", type=int, default=256)
    given = arguments.parse_args()
    with TemporaryDirectory() as folder:
        paths = Path(folder) / "masks.npy", Path(folder) / "maps.npy"
        synthetic_maps(given.maps, *paths, given.side)
        masks, maps = map(np.load, paths)
    works = {
        "all pixels": lambda: all_pixels(masks, maps),
        "exact": lambda: aupro_score(masks, maps),
        "histogram": lambda: aupro_score(masks, maps, exact=False),
    }
    times = medians(works, given.runs)
    rows = [
        {
            "way": way,
            "maps": given.maps,
            "pixels": given.side,
            "anomalous": float(masks.mean()),
            "AUPRO": work(),
            "s": times[way],
            "ratio": times["all pixels"] / times[way],
        }
        for way, work in works.items()
    ]
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
