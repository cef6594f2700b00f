"""How soon is a change noticed in the scores of a stream of images, and how often in vain?

Run as ``python benchmarks/drift.py``. A detector learns from some normal images and scores others,
as they are and changed. Calibration scores and streams are drawn from these scores at random, many
times. Images of a stream are normal before the change, if there is one; anomalies have scores below
all others. `DriftMonitor` watches the stream ("alarms", of which those before the change are false,
and the median of the images after it until then); `drift_test` tests its last 50 images. "AUROC"
says how far the scores of changed images lie below those of normal ones, 0.5 is no change, and
"5 % become" how many a threshold calls anomalous that does so for 5 % of normal images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fashion_mnist import load
from scipy.ndimage import gaussian_filter, shift
from skimage.data import brick
from timing import parser, report
from tqdm import tqdm

from skmkd import MKDDetector
from skmkd.monitoring import DriftMonitor, drift_test

SIDE = 32  # pixels, of crops and of what the networks see
ALPHA = 0.01
TESTED = 50  # images of one test
LONGEST = 2000  # images after the change


def crops(photograph: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Cut n crops at random."""
    rng = np.random.default_rng(seed)
    places = rng.integers(0, np.array(photograph.shape) - SIDE + 1, (n, 2))
    return np.stack([photograph[y : y + SIDE, x : x + SIDE] for y, x in places])


def bricks(n: int) -> tuple[np.ndarray, ...]:
    """Return crops of a wall: of the left half to learn from and to score, of the right half."""
    upper, lower = np.array_split(brick(), 2)
    return (
        crops(upper[:, :256], 100, seed=0),
        crops(lower[:, :256], n, seed=1),
        crops(lower[:, 256:], n, seed=2),
    )


def shirts(data: Path, n: int) -> tuple[np.ndarray, ...]:
    """Return images of Fashion-MNIST's class 0, T-shirts; the other lot is class 6, shirts."""
    images, labels = load(data, "train")
    shirts = images[labels == 0]
    return shirts[:500], shirts[500 : 500 + n], images[labels == 6][:n]


def changed(normal: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    """Return the images under each change."""
    return {
        "none": normal,
        "brightness -10 %": np.round(0.9 * normal).astype(np.uint8),
        "blur, sigma 1": gaussian_filter(normal, (0, 1, 1)),
        "shift by 8 px": shift(normal, (0, 0, 8), order=0, mode="nearest"),
        "another lot": other,
    }


def watch(
    scores: dict[str, np.ndarray],
    change: str,
    size: int,
    before: int,
    share: float,
    rng: np.random.Generator,
) -> tuple[float, bool]:
    """Draw a stream; return the images after the change until an alarm, and the test's decision."""
    calibration = rng.choice(scores["none"], size)
    after = 0 if change == "none" else LONGEST
    stream = np.concatenate([rng.choice(scores["none"], before), rng.choice(scores[change], after)])
    stream[rng.random(len(stream)) < share] = -np.inf
    result = DriftMonitor(calibration, alpha=ALPHA).update(stream)
    number = result.n - before if result.drifted else np.inf
    return number, drift_test(calibration, stream[-TESTED:], alpha=ALPHA).drifted


def main() -> None:
    """Print one row a set of images, number of calibration scores and stream."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, default="/usr/share/datasets/fashion-mnist")
    arguments.add_argument("--only", choices=["brick", "Fashion-MNIST 0"])
    arguments.add_argument("--images", type=int, default=1000, help="to score, of each kind")
    arguments.add_argument("--streams", type=int, default=100)
    arguments.add_argument("--calibration", type=int, nargs="+", default=[99, 499])
    arguments.add_argument("--epochs", type=int, help="default: until the loss has converged")
    given = arguments.parse_args()
    cases = {
        "brick": lambda: bricks(given.images),
        "Fashion-MNIST 0": lambda: shirts(given.data, given.images),
    }
    length = {} if given.epochs is None else {"max_iter": given.epochs, "tol": None}
    rows = []
    for name in [given.only] if given.only else cases:
        learn, normal, other = cases[name]()
        detector = MKDDetector(**length, image_size=SIDE, device="cpu", random_state=0).fit(learn)
        scores = {
            change: detector.score_samples(images)
            for change, images in changed(normal, other).items()
        }
        threshold = np.quantile(scores["none"], 0.05)
        streams = [("none", 10_000, 0.0), ("none", 10_000, 0.05)]
        streams += [(change, before, 0.0) for change in list(scores)[1:] for before in (0, 1000)]
        for size in given.calibration:
            for change, before, share in tqdm(streams, name):
                rng = np.random.default_rng(0)
                numbers, test = np.transpose([
                    watch(scores, change, size, before, share, rng) for _ in range(given.streams)
                ])  # fmt: skip
                rows.append(
                    {
                        "images": name,
                        "change": change,
                        "AUROC": float(np.mean(scores[change] < scores["none"][:, None])),
                        "5 % become": 100 * float(np.mean(scores[change] < threshold)),
                        "calibration": size,
                        "before": before,
                        "anomalies %": 100 * share,
                        "false alarms %": 100 * float(np.mean(numbers <= 0)),
                        "alarms %": 100 * float(np.mean(np.isfinite(numbers))),
                        "images until alarm": float(np.median(numbers)),
                        f"test of {TESTED} %": 100 * float(np.mean(test)),
                    }
                )
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
