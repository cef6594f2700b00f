"""How fast is an exported file, beside the detector that it comes from, and how faithful?

Run as ``python -m benchmarks.exported`` from the folder of the project; it needs the extras
``onnx`` and ``openvino``. Images are crops of photographs in memory, one alone and eight together;
all engines take turns in one run. ``--auroc NAME`` fits to a texture of the accuracy protocols
instead and compares AUROCs and labels, in bfloat16.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score

import skmkd
from benchmarks.accuracy.cases import TEXTURES, texture
from benchmarks.timing import medians, parser, report, textures
from skmkd import MKDDetector
from skmkd._export.parity import parity

SOURCES = ("vgg16", "efficientnet_lite0")
SIDE = 128
TOGETHER = (1, 8)
COMPARED = 100


def exported(source: str, precision: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit and export a detector; return it and what loads its file, and facts of the export."""
    detector = MKDDetector(
        source=source, precision=precision, max_iter=1, device="cpu", random_state=0
    ).fit(textures(100, SIDE))
    file = folder / f"{source}_{precision}.onnx"
    start = time.perf_counter()
    detector.export(file)
    facts = {"export s": time.perf_counter() - start, "MB": os.path.getsize(file) / 1e6}
    n_threads = os.cpu_count()
    judges = {
        "torch": detector,
        "engine='openvino'": skmkd.load(saved(detector, folder)).set_params(engine="openvino"),
        "exported, onnxruntime": skmkd.load_exported(file, engine="onnxruntime"),
        "exported, OpenVINO": skmkd.load_exported(file, engine="openvino", n_threads=n_threads),
    }
    return judges, facts


def saved(detector: Any, folder: Path) -> Path:
    """Save a detector, so that another can be loaded."""
    detector.save(folder / "model.skmkd")
    return folder / "model.skmkd"


def separated(source: str, name: str, epochs: int, folder: Path) -> list[dict[str, Any]]:
    """Return the AUROCs of a texture's test images, and the labels that change, in bfloat16."""
    case = texture(name, None, 0)
    detector = MKDDetector(
        source=source, precision="bfloat16", max_iter=epochs, device="cpu", random_state=0
    ).fit(case.learn)
    detector.export(folder / "model.onnx")
    judges = {"torch": detector} | {
        f"exported, {engine}": skmkd.load_exported(folder / "model.onnx", engine=engine)
        for engine in ("onnxruntime", "openvino")
    }
    scores = {what: judge.score_samples(case.test) for what, judge in judges.items()}
    labels = {what: found >= detector.offset_ for what, found in scores.items()}
    return [
        {
            "source": source,
            "texture": name,
            "images": len(case.y),
            "what": what,
            "AUROC %": 100 * roc_auc_score(case.y, found),
            "labels that agree %": 100 * float((labels[what] == labels["torch"]).mean()),
        }
        for what, found in scores.items()
    ]


def main() -> None:
    """Print one row for each source, precision and engine."""
    arguments = parser(__doc__, runs=7)
    arguments.add_argument("--auroc", choices=TEXTURES, help="texture whose AUROCs are compared")
    arguments.add_argument("--epochs", type=int, default=10, help="of the fits of --auroc")
    given = arguments.parse_args()
    if given.auroc:
        with tempfile.TemporaryDirectory() as name:
            rows = [
                row
                for source in SOURCES
                for row in separated(source, given.auroc, given.epochs, Path(name))
            ]
        report(__file__, rows, given.output)
        return
    crops = textures(COMPARED, SIDE)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for source in SOURCES:
            for precision in ("float32", "bfloat16"):
                judges, facts = exported(source, precision, Path(name))
                works = {
                    (what, n): lambda judge=judge, n=n: judge.score_samples(crops[:n])
                    for what, judge in judges.items()
                    for n in TOGETHER
                }
                times = medians(works, given.runs)
                for what, judge in judges.items():
                    row: dict[str, Any] = {"source": source, "precision": precision, "what": what}
                    for n in TOGETHER:
                        row[f"{n}: ms/image"] = 1e3 * times[what, n] / n
                        row[f"{n}: torch's ratio"] = times["torch", n] / times[what, n]
                    if what.startswith("exported"):
                        row |= parity(judges["torch"], judge, crops)._asdict() | facts
                    rows.append(row)
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
