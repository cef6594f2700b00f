"""How fast are scores of image files of 12 megapixels, and how fast were they in an earlier build?

Run as ``python benchmarks/large_images.py --before CHECKOUT``; without it only this build is
timed. The files are synthetic: photographs of scikit-image, enlarged to 4000 x 3000 pixels, with
noise, so that they compress as camera files do. Both builds score the same files, in turn, each
in a process of its own. The parts of the work are timed one after the other in a single thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data
from timing import builds, medians, parser, report, textures
from torchvision.transforms.v2 import functional as transforms

from skmkd import MKDDetector

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
NOISE = 4.0  # grey levels
QUALITY = 92  # of JPEG


def write_photographs(folder: Path, n: int, size: tuple[int, int]) -> list[str]:
    """Write n JPEG files of a size (width, height)."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(n):
        photograph = Image.fromarray(getattr(data, PHOTOGRAPHS[i % len(PHOTOGRAPHS)])())
        pixels = np.asarray(photograph.resize(size, Image.Resampling.BICUBIC))
        noisy = pixels + NOISE * rng.standard_normal(pixels.shape, np.float32)
        files.append(str(folder / f"{i}.jpg"))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(files[-1], quality=QUALITY)
    return files


@cache
def fitted(side: int) -> MKDDetector:
    """Fit a detector to a few small crops; how well it learned does not change the time."""
    crops = textures(8, side)[..., None].repeat(3, axis=3)
    return MKDDetector(
        device="cpu", image_size=side, max_iter=1, tol=None, random_state=0
    ).fit(list(crops))  # fmt: skip


def score(side: int, files: Sequence[str]) -> list[float]:
    """Score files."""
    return fitted(side).score_samples(list(files)).tolist()


def processor_time(side: int, files: Sequence[str]) -> float:
    """Score files; return the CPU seconds of all threads, which depend less on other programs."""
    start = time.process_time()
    score(side, files)
    return time.process_time() - start


def parts(side: int, files: Sequence[str], runs: int) -> dict[str, float]:
    """Return the seconds that each part of the work takes in a single thread, and their sum."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    detector = fitted(side)
    arrays = [np.asarray(Image.open(file)) for file in files]
    small = [np.asarray(Image.fromarray(array).resize((side, side))) for array in arrays]
    try:
        return medians(
            {
                "decode": lambda: [np.asarray(Image.open(file)) for file in files],
                "prepare": lambda: [detector._prepare([array]) for array in arrays],
                "networks": lambda: detector.score_samples(small),
            },
            runs,
        )
    finally:
        torch.set_num_threads(n_threads)


def largest_differences(side: int, file: str) -> dict[str, float]:
    """Compare prepared pixels with those resized after scaling, and with bytes resized as bytes."""
    detector, pixels = fitted(side), np.array(Image.open(file))
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (detector._prepare.mean, detector._prepare.std)
    )
    prepared = 255 * (detector._prepare([pixels])[0] * std + mean)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)
    resized = {
        "resized after scaling": 255 * transforms.resize(whole / 255, [side, side]),
        "resized as bytes": transforms.resize(whole, [side, side]).float(),
    }
    return {name: float((prepared - other).abs().max()) for name, other in resized.items()}


def main() -> None:
    """Print one row."""
    arguments = parser(__doc__, runs=5, before=True)
    arguments.add_argument("--images", type=int, default=16)
    arguments.add_argument("--size", type=int, nargs=2, default=[4000, 3000], help="width, height")
    arguments.add_argument("--side", type=int, default=128, help="image_size of the detector")
    given = arguments.parse_args()
    with TemporaryDirectory() as folder:
        files = write_photographs(Path(folder), given.images, tuple(given.size))
        megabytes = np.mean([Path(file).stat().st_size for file in files]) / 1e6
        with builds(__file__, given.before) as started:
            works = {
                name: lambda build=build: build.call("score", given.side, files)
                for name, build in started.items()
            }
            scores = {name: np.array(work()) for name, work in works.items()}
            times = medians(works, given.runs, warm_up=False)
            busy = {
                f"{name} CPU": build.call("processor_time", given.side, files)
                for name, build in started.items()
            }
            single = started["this"].call("parts", given.side, files, given.runs)
            differences = started["this"].call("largest_differences", given.side, files[0])
    each = {name: 1e3 * time / given.images for name, time in (times | busy | single).items()}
    row: dict[str, Any] = {
        "images": given.images,
        "pixels": "{} x {}".format(*given.size),
        "MB a file": megabytes,
        "this ms/image": each["this"],
        "this CPU ms": each["this CPU"],
    }
    if "before" in times:
        row |= {
            "before ms/image": each["before"],
            "before CPU ms": each["before CPU"],
            "ratio": each["before"] / each["this"],
            "scores differ by": float(abs(scores["this"] / scores["before"] - 1).max()),
        }
    row |= {f"{part} ms (1 thread)": each[part] for part in single}
    row |= {f"grey levels, {name}": value for name, value in differences.items()}
    report(__file__, [row], given.output)


if __name__ == "__main__":
    main()
