"""How fast are gradient maps, against one image at a time through both networks?

Run as ``python benchmarks/localize.py``. The plain loop's maps are raw; skmkd's are finished:
blurred, opened, at the images' own size.
"""

from __future__ import annotations

import torch
from plain_loop import PlainLoop
from timing import medians, parser, report, textures

from skmkd import MKDDetector


def main() -> None:
    """Print one row."""
    arguments = parser(__doc__, runs=5)
    arguments.add_argument("--images", type=int, default=32)
    arguments.add_argument("--side", type=int, default=128)
    given = arguments.parse_args()
    images = textures(given.images, given.side)
    loop = PlainLoop()
    prepared = loop.prepare(torch.from_numpy(images), given.side)
    detector = MKDDetector.paper(
        contamination=0.05,
        device="cpu",
        image_size=given.side,
        max_iter=1,
        tol=None,
        random_state=0,
    )
    detector.fit(images[:8])
    times = medians(
        {
            "plain": lambda: loop.gradients(prepared, parameters=False),
            "with parameters": lambda: loop.gradients(prepared, parameters=True),
            "skmkd": lambda: detector.localize(images, "gradient"),
        },
        given.runs,
    )
    each = {name: 1e3 * time / given.images for name, time in times.items()}
    row = {
        "precision": detector.precision_,
        "images": given.images,
        "pixels": given.side,
        "plain ms/image": each["plain"],
        "with parameters' gradients": each["with parameters"],
        "skmkd ms/image": each["skmkd"],
        "ratio": each["plain"] / each["skmkd"],
        "ratio with parameters'": each["with parameters"] / each["skmkd"],
    }
    report(__file__, [row], given.output)


if __name__ == "__main__":
    main()
