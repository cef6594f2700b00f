"""How much does ``memory`` save in a grid search?

Run as ``python benchmarks/grid.py``; each search runs once unless ``--runs`` says more. The store
is empty at first. Grass among bricks is the anomaly.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory

import numpy as np
from sklearn.model_selection import GridSearchCV, ParameterGrid
from timing import medians, parser, report, textures

from skmkd import MKDDetector
from skmkd.model_selection import NormalOnlySplit, anomaly_roc_auc

NAMES = ("brick", "grass")
GRID = {"direction_weight": [0.1, 1.0, "auto"], "critical_layers": [2, 4]}


def search(
    images: np.ndarray,
    labels: np.ndarray,
    candidates: int,
    folds: int,
    max_iter: int,
    memory: str | None,
) -> None:
    """Search the grid; learn from the normal images of each fold."""
    grid = [{name: [value] for name, value in each.items()} for each in ParameterGrid(GRID)]
    GridSearchCV(
        MKDDetector.paper(
            device="cpu",
            image_size=images.shape[1],
            max_iter=max_iter,
            tol=None,
            random_state=0,
            memory=memory,
        ),
        grid[:candidates],
        scoring=anomaly_roc_auc,
        cv=NormalOnlySplit(folds, random_state=0),
        refit=False,
        error_score="raise",
    ).fit(images, labels)


def main() -> None:
    """Print one row a number of epochs."""
    arguments = parser(__doc__, runs=1)
    arguments.add_argument("--max-iter", type=int, nargs="+", default=[1])
    arguments.add_argument("--candidates", type=int, default=6, help="at most six")
    arguments.add_argument("--folds", type=int, default=3)
    arguments.add_argument("--images", type=int, default=150, help="four in five are normal")
    arguments.add_argument("--side", type=int, default=128)
    given = arguments.parse_args()
    n_anomalous = given.images // 5
    numbers = [given.images - n_anomalous, n_anomalous]
    kinds = [textures(n, given.side, [name]) for n, name in zip(numbers, NAMES, strict=True)]
    images, labels = np.concatenate(kinds), np.repeat([1, -1], numbers)
    rows = []
    for max_iter in given.max_iter:

        def stored(max_iter: int = max_iter) -> None:
            with TemporaryDirectory() as place:
                search(images, labels, given.candidates, given.folds, max_iter, place)

        def unstored(max_iter: int = max_iter) -> None:
            search(images, labels, given.candidates, given.folds, max_iter, None)

        times = medians({"without": unstored, "with": stored}, given.runs, warm_up=False)
        rows.append(
            {
                "candidates": given.candidates,
                "folds": given.folds,
                "images": len(images),
                "pixels": given.side,
                "epochs": max_iter,
                "without memory s": times["without"],
                "with memory s": times["with"],
                "ratio": times["without"] / times["with"],
            }
        )
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
