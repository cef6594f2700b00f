"""Which settings find small defects in large images, and what do they cost?

Run as ``python -m benchmarks.small_defects`` from the folder of the project, on Linux. All images
are synthetic. "plates" are those of the accuracy protocols: JPEG files of 2448 x 2048 pixels, with
scratches of 15 to 30; on "faint-plates" scratches have half the contrast, and the light varies four
times as much. "strips" are grey and striped, 64 x 2048 pixels, with dark squares of 12 x 12. Of the
normal images to learn from, the last ones are held out of the fit and set the thresholds of
`calibrate`. Scores, their time and their memory (the peak of what is anonymous) are those of a
process that only loads the fitted detector.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter
from sklearn.metrics import roc_auc_score

from benchmarks.accuracy.cases import Case, labels, plates
from benchmarks.timing import parser, report, seconds, watched
from skmkd import MKDDetector, load

STRIP = (64, 2048)  # height and width, in pixels
N_STRIPS = (24, 24, 24)  # strips to learn from, good ones to test, bad ones to test
SQUARE = 12  # pixels
NEAR = 12  # pixels between a map's peak and the defect that it is on, at most
FPR = 0.1  # of calibrate

PLATES: dict[str, dict[str, Any]] = {
    "128": {"image_size": 128},
    "256": {"image_size": 256},
    "512x612": {"image_size": (512, 612), "batch_size": 4},
    "tiles-256-at-128": {"tile_size": 256, "image_size": 128},
    "tiles-512-at-128": {"tile_size": 512, "image_size": 128},
    "tiles-512-at-256": {"tile_size": 512, "image_size": 256},
    "tiles-1024-at-256": {"tile_size": 1024, "image_size": 256},
    "tiles-1024-at-256-blur-1": {"tile_size": 1024, "image_size": 256, "smoothing_sigma": 1},
    "tiles-768-at-256-blur-1": {"tile_size": 768, "image_size": 256, "smoothing_sigma": 1},
}
STRIPS: dict[str, dict[str, Any]] = {
    "128": {"image_size": 128},
    "auto": {},  # 32 x 512
    "64x512": {"image_size": (64, 512)},
    "64x2048": {"image_size": (64, 2048)},
    "tiles-64x256": {"tile_size": (64, 256), "image_size": (64, 256)},
}


def strips(seed: int) -> Case:
    """Learn striped strips; test others, good ones and ones with a dark square."""
    rng = np.random.default_rng(seed)
    n_learn, n_good, n_bad = N_STRIPS
    images, masks = [], []
    for i in range(sum(N_STRIPS)):
        stripes = np.sin(np.arange(STRIP[1]) / 6 + rng.uniform(0, 2 * np.pi))
        image = 0.5 + 0.2 * stripes + 0.1 * gaussian_filter(rng.standard_normal(STRIP), 1)
        mask = np.zeros(STRIP, bool)
        if i >= n_learn + n_good:
            top, left = rng.integers(0, np.subtract(STRIP, SQUARE), endpoint=True)
            mask[top : top + SQUARE, left : left + SQUARE] = True
        image[mask] = 0.1
        images.append((255 * image.clip(0, 1)).astype(np.uint8))
        masks.append(mask)
    return Case(images[:n_learn], images[n_learn:], labels(n_good, n_bad), masks[n_learn:])


CASES = {  # what draws a case from a seed, and settings to try on it
    "plates": (partial(plates, "", None), PLATES),
    "faint-plates": (partial(plates, "", None, contrasts=(40, 60), light=0.08), PLATES),
    "strips": (strips, STRIPS),
}


def first(case: Case, n: int | None) -> Case:
    """Keep the first n good and the first n bad images to test."""
    kept = [i for y in (1, -1) for i in np.flatnonzero(case.y == y)[:n]]
    test, masks = ([each[i] for i in kept] for each in (case.test, case.masks))
    return case._replace(test=test, y=case.y[kept], masks=masks)


def judge(detector: MKDDetector, case: Case) -> dict[str, Any]:
    """Score and map in this process, and watch it while it scores."""
    memory: dict[str, Any] = {}
    scores: list[np.ndarray] = []
    with watched(memory):
        elapsed = seconds(lambda: scores.append(detector.score_samples(case.test)))
    bad = np.flatnonzero(case.y == -1)
    maps = (detector.localize([case.test[i]])[0] for i in bad)  # one at a time, as they are large
    return {
        "scores": scores[0].tolist(),
        "peaks": sum(peak_is_near(m, case.masks[i]) for m, i in zip(maps, bad, strict=True)),
        "s an image": elapsed / len(case.test),
        "peak MB": memory["peak MB"],
    }


def peak_is_near(localization: np.ndarray, mask: np.ndarray) -> bool:
    """Say whether the highest point of a map lies on a defect or next to it."""
    peak = np.unravel_index(localization.argmax(), localization.shape)
    return bool(distance_transform_edt(~mask)[peak] <= NEAR)


def measure(case: Case, settings: dict[str, Any], n_held_out: int, seed: int) -> dict[str, float]:
    """Fit and calibrate here, judge in a process of its own."""
    learn, held_out = case.learn[:-n_held_out], case.learn[-n_held_out:]
    detector = MKDDetector(contamination=0.05, device="cpu", random_state=seed, **settings)
    fit_seconds = seconds(lambda: detector.fit(learn))
    offsets = {"fit": detector.offset_, "calibrate": detector.calibrate(held_out, fpr=FPR).offset_}
    with TemporaryDirectory() as folder:
        detector.save(Path(folder) / "detector.skmkd")
        (Path(folder) / "case.pickle").write_bytes(pickle.dumps(case))
        command = [sys.executable, "-m", "benchmarks.small_defects", "--judge", folder]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    scores = np.array(found.pop("scores"))
    good, bad = scores[case.y == 1], scores[case.y == -1]
    figures = {"good": len(good), "bad": len(bad), "AUROC": roc_auc_score(case.y, scores)}
    for name, offset in offsets.items():
        figures[f"found, {name}"] = np.sum(bad < offset)
        figures[f"false alarms, {name}"] = np.sum(good < offset)
    return figures | {"fit s": fit_seconds} | found


def main() -> None:
    """Print one row for each of the settings, means over the seeds."""
    names = list(dict.fromkeys(name for _, settings in CASES.values() for name in settings))
    arguments = parser(__doc__)
    arguments.add_argument("--case", choices=CASES, default="plates")
    arguments.add_argument("--only", nargs="+", choices=names, metavar="SETTINGS", default=names)
    arguments.add_argument("--images", type=int, help="to test, good and bad each (default: all)")
    arguments.add_argument("--held-out", type=int, default=10, help="normal images for calibrate")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments.add_argument("--epochs", type=int, help="max_iter (default: the detector's)")
    arguments.add_argument("--judge", type=Path, help="score what lies in a folder, print JSON")
    given = arguments.parse_args()
    if given.judge:
        case = pickle.loads((given.judge / "case.pickle").read_bytes())
        print(json.dumps(judge(load(given.judge / "detector.skmkd"), case)))
        return
    draw, settings_of = CASES[given.case]
    cases = [first(draw(seed), given.images) for seed in given.seeds]
    length = {} if given.epochs is None else {"max_iter": given.epochs}
    rows = []
    for name, settings in settings_of.items():
        if name in given.only:
            runs = [
                measure(case, settings | length, given.held_out, seed)
                for case, seed in zip(cases, given.seeds, strict=True)
            ]
            means = {column: float(mean(run[column] for run in runs)) for column in runs[0]}
            rows.append({"settings": name, **means})
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
