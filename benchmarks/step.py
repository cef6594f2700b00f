"""Where does the time of one cached training step go, and how far is it from its own floor?

Run as ``python benchmarks/step.py``. The floor is the time that the convolutions' operations
take at the machine's own float32 matrix product.
"""

from __future__ import annotations

import torch
from timing import PEAK_SIDE, medians, operations, parser, product, report, textures
from torch.profiler import ProfilerActivity, profile

from skmkd import MKDDetector
from skmkd._validation import Images

BATCH = 64


def main() -> None:
    """Print one row a side, and the operations that take longest."""
    given = parser(__doc__, runs=9).parse_args()
    rows = []
    for side in (32, 128):
        images = textures(BATCH, side)
        detector = MKDDetector(image_size=side, max_iter=1, tol=None, precision="float32")
        detector.fit(images[:8])
        observer = detector._observer(recall=False)
        batch = observer(Images(images, (side, side, 1)), range(BATCH))
        assert batch.target  # looked up before the clock starts
        optimizer = torch.optim.Adam(detector.cloner_.parameters())
        detector.cloner_.train()

        def step(detector=detector, batch=batch, optimizer=optimizer) -> None:
            optimizer.zero_grad()
            detector._terms(batch)["total"].mean().backward()
            optimizer.step()

        times = medians({"step": step, "product": product(torch.float32)}, given.runs)
        with torch.no_grad():
            forward = operations(detector.cloner_, batch.images)
        first = 2 * 9 * 3 * 16 * side * side * BATCH  # whose input needs no gradient
        floor = (3 * forward - first) * times["product"] / (2 * PEAK_SIDE**3)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(3):
                step()
        events = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
        whole = sum(event.self_cpu_time_total for event in events)
        print(f"{side} px: " + ", ".join(
            f"{e.key} {e.self_cpu_time_total / whole:.0%}" for e in events[:10]
        ))  # fmt: skip
        rows.append(
            {
                "images": BATCH,
                "pixels": side,
                "step ms": 1e3 * times["step"],
                "floor ms": 1e3 * floor,
                "step / floor": times["step"] / floor,
            }
        )
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
