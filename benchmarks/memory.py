"""How much memory do fit, score_samples and aupro_score take at most?

Run as ``python benchmarks/memory.py`` on Linux. Each case runs in a process of its own, which
watches its anonymous memory (RssAnon): what a memory map holds can be dropped at any time and
does not count. So that so many images take minutes, scores come from a source that ends at its
first pool, past which activations only get smaller; ``--layers auto`` takes the whole of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from timing import parser, report, synthetic_maps, textures, watched

SIDE = 128
KINDS = ("paths", "opened", "ensemble")  # of photographs


def detector_of(crops: np.ndarray, layers: str) -> Any:
    """Fit a detector to a few colour crops."""
    from skmkd import MKDDetector

    chosen = "auto" if layers == "auto" else [layers]
    detector = MKDDetector.paper(
        contamination=0.05,
        device="cpu",
        critical_layers=chosen,
        max_iter=1,
        tol=None,
        random_state=0,
    )
    return detector.fit(crops[:8, ..., None].repeat(3, axis=3))


def paths(n: int, layers: str) -> dict:
    """Score n paths of PNG files, a hundred files over and over."""
    crops = textures(100, SIDE)
    detector = detector_of(crops, layers)
    result = {"work": "score_samples, paths", "images": n}
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.png" for i in range(len(crops))]
        for file, crop in zip(files, crops, strict=True):
            Image.fromarray(crop[..., None].repeat(3, axis=2)).save(file)
        with watched(result):
            detector.score_samples([files[i % len(files)] for i in range(n)])
    return result


def score(n: int, layers: str) -> dict:
    """Score n images on disk, the first few over and over; a sparse file would not be read."""
    crops = textures(100, SIDE)
    detector = detector_of(crops, layers)
    result = {"work": "score_samples", "images": n}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (n, SIDE, SIDE, 3))
        for start in range(0, n, len(crops)):
            images[start : start + len(crops)] = crops[: n - start, ..., None]
        images.flush()
        with watched(result):
            detector.score_samples(np.load(path, mmap_mode="r"))
    return result


def photographs(n: int, kind: str) -> dict:
    """Score n photographs of 3 megapixels at 32 px.

    They are JPEG files, for one detector or an ensemble of two, or the images that Pillow opens.
    """
    from skmkd import DetectorEnsemble

    side = 32
    detector = detector_of(textures(8, side), "features.4").set_params(image_size=side)
    if kind == "ensemble":
        detector = DetectorEnsemble([("first", detector), ("second", detector)])
    detector.fit(textures(8, side)[..., None].repeat(3, axis=3))
    result = {"work": f"score_samples, photographs ({kind})", "images": n}
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.jpg" for i in range(n)]
        for i, file in enumerate(files):
            large(1500, 2000, 3, i).save(file)
        X = [Image.open(file) for file in files] if kind == "opened" else files
        with watched(result):
            detector.score_samples(X)
    return result


def one(side: int, channels: int) -> dict:
    """Score one large PNG file at 32 px."""
    crops = textures(8, 32)[..., None].repeat(channels, axis=3)
    crops[..., 3:] |= 1
    detector = detector_of(crops[..., 0], "features.4").set_params(image_size=32).fit(crops)
    detector.score_samples(crops)
    result = {"work": f"score_samples, one PNG of {side} x {side} x {channels}", "images": 1}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "large.png"
        large(side, side, channels, 0).save(file, compress_level=1)
        with watched(result):
            detector.score_samples([file])
    return result


def large(height: int, width: int, channels: int, seed: int) -> Image.Image:
    """Return a smooth image with noise, whose first channel is above 0."""
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 200, (height // 64 + 1, width // 64 + 1, channels), dtype=np.uint8)
    image = as_image(smooth).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(1, 32, (height, width, 1), dtype=np.uint8)
    return as_image(np.asarray(image).reshape(height, width, channels) // 2 + noise)


def as_image(pixels: np.ndarray) -> Image.Image:
    """Return pixels (H, W, C) as an image, a grey one if C is 1."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def fit(n: int, budget: int) -> dict:
    """Fit n images within a budget; they need 1.15 MB each."""
    from skmkd import MKDDetector

    images = textures(n, SIDE)
    detector = MKDDetector.paper(
        contamination=0.05, device="cpu", cache=budget, max_iter=2, tol=None, random_state=0
    )
    result = {"work": "fit", "images": n, "cache MB": budget / 1e6}
    with watched(result):
        detector.fit(images)
    result["added - cache MB"] = result["added MB"] - result["cache MB"]
    return result


def aupro(n: int) -> dict:
    """Compute AUPRO as a histogram over n maps on disk, of 256 x 256 pixels."""
    from skmkd.metrics import aupro_score

    result = {"work": "aupro_score", "images": n}
    with TemporaryDirectory() as folder:
        masks, maps = (Path(folder) / name for name in ("masks.npy", "maps.npy"))
        synthetic_maps(n, masks, maps)
        with watched(result):
            aupro_score(np.load(masks, mmap_mode="r"), np.load(maps, mmap_mode="r"), exact=False)
    return result


def alone(function: str, *arguments: object) -> dict:
    """Run one case in a process of its own."""
    program = f"import json, memory; print(json.dumps(memory.{function}(*{arguments!r})))"
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {sys.path[0]!r}); {program}"]
    printed = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def main() -> None:
    """Print one row a case."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, nargs="+", default=[200, 20_000])
    arguments.add_argument("--paths", type=int, nargs="+", default=[200, 10_000])
    arguments.add_argument("--photographs", type=int, default=256)
    arguments.add_argument("--side", type=int, default=8192, help="of one large image")
    arguments.add_argument("--layers", default="features.4", help="a layer's name, or auto")
    arguments.add_argument("--fit", type=int, default=400, help="images to fit")
    arguments.add_argument(
        "--cache", type=int, nargs="+", default=[0, 1_150_000], help="bytes an image: disk, memory"
    )
    arguments.add_argument("--maps", type=int, nargs="+", default=[500, 5_000])
    arguments.add_argument(
        "--only", choices=["score", "paths", "photographs", "one", "fit", "aupro"]
    )
    given = arguments.parse_args()
    cases = {
        "score": [("score", n, given.layers) for n in given.images],
        "paths": [("paths", n, given.layers) for n in given.paths],
        "photographs": [("photographs", given.photographs, kind) for kind in KINDS],
        "one": [("one", given.side, channels) for channels in (1, 3, 4)],
        "aupro": [("aupro", n) for n in given.maps],
        "fit": [("fit", given.fit, given.fit * each) for each in given.cache],
    }
    chosen = [given.only] if given.only else cases
    rows = [alone(*case) for name in chosen for case in cases[name]]
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
