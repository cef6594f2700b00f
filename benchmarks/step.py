"""Where does the time of one cached training step go, and how far is it from its own floor?

Run as ``python benchmarks/step.py``. The floor is the time that the convolutions' operations
take at the machine's own float32 matrix product.
"""

from __future__ import annotations

from functools import partial

import torch
from timing import PEAK_SIDE, medians, operations, parser, product, report, seconds, textures
from torch.profiler import ProfilerActivity, profile

from skmkd import MKDDetector

BATCH = 64


def measure(
    sides: tuple[int, ...] = (32, 128), steps: int = 20, precision: str = "auto"
) -> dict[str, float]:
    """Time a step with default parameters: what one more epoch adds to a fit of one batch."""
    figures = {}
    for side in sides:
        images = textures(BATCH, side)
        times = []
        for max_iter in (1, 1 + steps):
            detector = MKDDetector(
                contamination=0.05, device="cpu", image_size=side, max_iter=max_iter, tol=None,
                batch_size=BATCH, precision=precision, random_state=0,
            )  # fmt: skip
            times.append(seconds(partial(detector.fit, images)))
        figures[f"step of {BATCH} images of {side} px, s"] = (times[1] - times[0]) / steps
    return figures


def main() -> None:
    """Print one row a side, and the operations that take longest."""
    from skmkd._features.cache import cached  # an earlier build may lack it

    arguments = parser(__doc__, runs=9)
    arguments.add_argument("--sides", type=int, nargs="+", default=[32, 128])
    given = arguments.parse_args()
    rows = []
    for side in given.sides:
        images = textures(2 * BATCH, side)
        detector = MKDDetector.paper(
            contamination=0.05,
            device="cpu",
            image_size=side,
            max_iter=1,
            tol=None,
            precision="float32",
        ).fit(images[:8])
        cloner = detector.cloner_.train()
        dataset = detector._dataset(detector._tiles(detector._check_images(images)))
        optimizer = torch.optim.Adam(cloner.parameters())
        with cached(dataset, 10**9, with_features=True, required=True) as cached_dataset:
            chosen = torch.randperm(len(images))[:BATCH].tolist()

            def gather(dataset=cached_dataset, chosen=chosen):
                batch = next(dataset.batches([chosen]))
                assert batch.target
                return batch

            def step(gather=gather, detector=detector, optimizer=optimizer):
                batch = gather()
                optimizer.zero_grad()
                detector._loss_terms(batch)["total"].mean().backward()
                optimizer.step()

            works = {"step": step, "gather": gather, "product": product(torch.float32)}
            times = medians(works, given.runs)
            forward = operations(cloner, gather().images)
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                for _ in range(3):
                    step()
        first = 2 * 9 * 3 * 16 * side * side * BATCH  # whose input needs no gradient
        floor = (3 * forward - first) * times["product"] / (2 * PEAK_SIDE**3)
        events = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
        whole = sum(event.self_cpu_time_total for event in events)
        rows.append(
            {
                "images": BATCH,
                "pixels": side,
                "step ms": 1e3 * times["step"],
                "of which gather ms": 1e3 * times["gather"],
                "floor ms": 1e3 * floor,
                "step / floor": times["step"] / floor,
                "longest": ", ".join(
                    f"{e.key.removeprefix('aten::')} {e.self_cpu_time_total / whole:.0%}"
                    for e in events[:8]
                ),
            }
        )
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
