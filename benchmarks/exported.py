"""How fast is an exported file, beside the detector that it comes from, and how faithful?

Run as ``python benchmarks/exported.py``; it needs the extras ``onnx`` and ``openvino``. Images are
crops of photographs in memory, one alone and eight together; all engines take turns in one run.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import medians, parser, report, textures

import skmkd
from skmkd import MKDDetector
from skmkd._export.parity import parity

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


def main() -> None:
    """Print one row for each source, precision and engine."""
    given = parser(__doc__, runs=7).parse_args()
    crops = textures(COMPARED, SIDE)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for source in ("vgg16", "efficientnet_lite0"):
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
