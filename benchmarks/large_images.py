"""How fast are scores of image files of 12 megapixels?

Run as ``python benchmarks/large_images.py``. The files are synthetic: photographs of scikit-image,
enlarged to 4000 x 3000 pixels, with noise, so that they compress as camera files do. The parts of
the work are timed one after the other in a single thread.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data
from timing import medians, parser, report, seconds, textures
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
def fitted(side: int, precision: str = "auto") -> MKDDetector:
    """Fit a detector to a few small crops; how well it learned does not change the time."""
    crops = textures(8, side)[..., None].repeat(3, axis=3)
    return MKDDetector(
        contamination=0.05, device="cpu", image_size=side, max_iter=1, tol=None,
        precision=precision, random_state=0,
    ).fit(list(crops))  # fmt: skip


@cache
def photographs(n: int, size: tuple[int, int]) -> list[str]:
    """Write n JPEG files that last as long as this process."""
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    return write_photographs(Path(folder.name), n, size)


def measure(
    images: int = 16,
    size: tuple[int, ...] = (4000, 3000),
    side: int = 128,
    precision: str = "auto",
) -> dict[str, float]:
    """Time the scores of files of a size (width, height)."""
    width, height = size
    files = photographs(images, (width, height))
    detector = fitted(side, precision)
    start = time.process_time()
    elapsed = seconds(lambda: detector.score_samples(files))
    busy = time.process_time() - start
    return {"seconds an image": elapsed / images, "CPU seconds an image": busy / images}


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
    arguments = parser(__doc__, runs=5)
    arguments.add_argument("--images", type=int, default=16)
    arguments.add_argument("--size", type=int, nargs=2, default=[4000, 3000], help="width, height")
    arguments.add_argument("--side", type=int, default=128, help="image_size of the detector")
    given = arguments.parse_args()
    size = tuple(given.size)
    files = photographs(given.images, size)
    measure(given.images, size, given.side)  # the first call of a process is slow
    figures = [measure(given.images, size, given.side) for _ in range(given.runs)]
    row: dict[str, Any] = {
        "images": given.images,
        "pixels": "{} x {}".format(*size),
        "MB a file": np.mean([Path(file).stat().st_size for file in files]) / 1e6,
    }
    row |= {name: median(each[name] for each in figures) for name in figures[0]}
    row |= {
        f"{part} ms (1 thread)": 1e3 * elapsed / given.images
        for part, elapsed in parts(given.side, files, given.runs).items()
    }
    for name, value in largest_differences(given.side, files[0]).items():
        row[f"grey levels, {name}"] = value
    report(__file__, [row], given.output)


if __name__ == "__main__":
    main()
