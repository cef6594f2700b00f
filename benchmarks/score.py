"""How fast is score_samples, against the plain loop and against the machine's own limit?

Run as ``python benchmarks/score.py``. The limit is the machine's own matrix product in the
precision of the source, measured in the same run; shares count the source's operations only.
"""

from __future__ import annotations

import torch
from plain_loop import PlainLoop
from timing import PEAK_SIDE, medians, operations, parser, product, report, textures

from skmkd import MKDDetector
from skmkd._features.batches import consecutive


def main() -> None:
    """Print one row a precision."""
    arguments = parser(__doc__, runs=5)
    arguments.add_argument("--images", type=int, default=256)
    arguments.add_argument("--side", type=int, default=128)
    arguments.add_argument("--precision", nargs="+", default=["float32", "auto"])
    given = arguments.parse_args()
    images = textures(given.images, given.side)
    loop = PlainLoop()
    prepared = loop.prepare(torch.from_numpy(images), given.side)
    rows = []
    for precision in given.precision:
        detector = MKDDetector.paper(
            contamination=0.05,
            device="cpu",
            image_size=given.side,
            max_iter=1,
            tol=None,
            precision=precision,
            random_state=0,
        ).fit(images[:8])
        if detector.precision_ in {row["precision"] for row in rows}:
            continue
        dataset = detector._dataset(detector._tiles(detector._check_images(images)))
        batches = list(dataset.tensors(consecutive(range(len(images)), dataset.batch_size)))
        with torch.no_grad():
            needed = operations(detector.source_, batches[0]) / len(batches[0])
        times = medians(
            {
                "plain": lambda: loop.score(prepared),
                "skmkd": lambda detector=detector: detector.score_samples(images),
                "source": lambda d=dataset, b=batches: [d.features(batch) for batch in b],
                "product": product(getattr(torch, detector.precision_)),
            },
            given.runs,
        )
        peak = 2 * PEAK_SIDE**3 / times["product"]
        each = {name: times[name] / given.images for name in ("plain", "skmkd", "source")}
        rows.append(
            {
                "precision": detector.precision_,
                "images": given.images,
                "pixels": given.side,
                "plain ms/image": 1e3 * each["plain"],
                "skmkd ms/image": 1e3 * each["skmkd"],
                "ratio": each["plain"] / each["skmkd"],
                "source ms/image": 1e3 * each["source"],
                "peak GFLOP/s": peak / 1e9,
                "source of peak": needed / each["source"] / peak,
                "whole of peak": needed / each["skmkd"] / peak,
            }
        )
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
