"""How much does ``feature_store`` save in a grid search?

Run as ``python benchmarks/grid.py``. Each search runs once unless ``--runs`` says more. The store
is empty at first. Grass among bricks is the anomaly. Earlier builds call the store ``memory``.
"""

from __future__ import annotations

from functools import partial
from tempfile import TemporaryDirectory

import numpy as np
from sklearn.model_selection import GridSearchCV, ParameterGrid
from timing import medians, parser, report, seconds, textures

from skmkd import MKDDetector
from skmkd.model_selection import NormalOnlySplit, anomaly_roc_auc

NAMES = ("brick", "grass")
GRID = {"direction_weight": [0.1, 1.0, "auto"], "critical_layers": [2, 4]}


def search(n: int, side: int, candidates: int, folds: int, max_iter: int, stored: bool) -> None:
    """Search the grid; learn from the normal images of each fold."""
    numbers = [n - n // 5, n // 5]
    kinds = [textures(each, side, [name]) for each, name in zip(numbers, NAMES, strict=True)]
    images, labels = np.concatenate(kinds), np.repeat([1, -1], numbers)
    grid = [{name: [value] for name, value in each.items()} for each in ParameterGrid(GRID)]
    detector = MKDDetector.paper(
        contamination=0.05,
        device="cpu",
        image_size=side,
        max_iter=max_iter,
        tol=None,
        random_state=0,
    )
    store = "feature_store" if "feature_store" in detector.get_params() else "memory"
    with TemporaryDirectory() as folder:
        GridSearchCV(
            detector.set_params(**({store: folder} if stored else {})),
            grid[:candidates],
            scoring=anomaly_roc_auc,
            cv=NormalOnlySplit(folds, random_state=0),
            refit=False,
            error_score="raise",
        ).fit(images, labels)


def measure(
    images: int = 150, side: int = 128, candidates: int = 6, folds: int = 3, max_iter: int = 1
) -> dict[str, float]:
    """Time a search without a store and one with it."""
    size = (images, side, candidates, folds, max_iter)
    return {
        f"search {word} store, s": seconds(partial(search, *size, stored))
        for word, stored in {"without": False, "with": True}.items()
    }


def main() -> None:
    """Print one row a number of epochs."""
    arguments = parser(__doc__, runs=1)
    arguments.add_argument("--max-iter", type=int, nargs="+", default=[1])
    arguments.add_argument("--candidates", type=int, default=6, help="at most six")
    arguments.add_argument("--folds", type=int, default=3)
    arguments.add_argument("--images", type=int, default=150, help="four in five are normal")
    arguments.add_argument("--side", type=int, default=128)
    given = arguments.parse_args()
    rows = []
    search(15, 32, 1, 2, 1, True)  # the first call of a process is slow
    for max_iter in given.max_iter:
        size = (given.images, given.side, given.candidates, given.folds, max_iter)
        works = {stored: partial(search, *size, stored) for stored in (False, True)}
        times = medians(works, given.runs, warm_up=False)
        rows.append(
            {
                "candidates": given.candidates,
                "folds": given.folds,
                "images": given.images,
                "pixels": given.side,
                "epochs": max_iter,
                "without store s": times[False],
                "with store s": times[True],
                "ratio": times[False] / times[True],
            }
        )
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
