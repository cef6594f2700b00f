"""How fast does a fitted detector score and map one image, and many, beside other libraries?

Run as ``python benchmarks/peers.py`` after ``pip install ".[peers]"``. Methods of a package that is
not installed are named, but not timed. Times are medians of interleaved runs in one process, on the
same images and with the same threads, per image. "one" is an image in a call of its own. "many" is
an image among many: skmkd takes all in one call, or each alone if that is faster; the others take
1, 8 or 32 a call, whichever is fastest. The table tells how many.

Times of skmkd start from pixels in memory and include their preparation. Those of the others are
forward passes of anomalib's networks on tensors that are ready, without preparation. Their weights
are random, which does not change the time. They compute in float32 by default; where the machine
has bfloat16, they are timed under autocast, too, and OpenVINO computes them in bfloat16.

PatchCore's memory bank holds a tenth of the features of normal images. They are chosen at random,
since the search takes as long for any choice. EfficientAD's autoencoder needs at least 256 pixels,
so that smaller images are enlarged to that beforehand; with ``--side 256`` all have one size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from timing import medians, parser, report, textures
from torch import Tensor, nn
from torch.nn import functional as F

from skmkd import MKDDetector
from skmkd._runtime import resolve_precision

SOURCES = {"VGG-16": "vgg16", "EfficientNet-Lite0": "efficientnet_lite0"}
ENGINES = ("torch", "openvino")  # by the names of their packages
BATCHES = (1, 8, 32)
CORESET = 0.1  # the share of normal features that PatchCore keeps
LEAST_SIDE = 256  # of EfficientAD's images


class Method(NamedTuple):
    """What the table says of a method, and what scores and maps a batch."""

    row: dict[str, Any]
    score: Callable[[Any], Any] | None = None  # None if a package is missing
    images: Any = None
    batches: tuple[int, ...] = ()


def detectors(normal: np.ndarray, images: np.ndarray) -> Iterator[Method]:
    """Yield skmkd's detectors; for how long they train has no part in what scoring costs."""
    side = images.shape[1]
    for name, source in SOURCES.items():
        for engine in ENGINES:
            row = {"method": f"MKD, {name}", "library": "skmkd", "engine": engine, "pixels": side}
            if not find_spec(engine):
                yield Method(missing(row, engine))
                continue
            detector = MKDDetector(
                source=source,
                engine=engine,
                contamination=0.05,
                device="cpu",
                image_size=side,
                max_iter=1,
                tol=None,
                random_state=0,
            ).fit(normal[:16])
            row["precision"] = detector.precision_
            score = partial(scored, detector)
            yield Method(row, score, images, (1, len(images)))


def scored(detector: MKDDetector, images: np.ndarray) -> list[Any]:
    """Return the results of images, each with its score and its map."""
    return list(detector.iter_results(images))


def peers(normal: np.ndarray, images: np.ndarray) -> Iterator[Method]:
    """Yield the other methods, under each engine in each precision."""
    library = "anomalib"
    native = resolve_precision("auto", torch.device("cpu"))
    batches = tuple(size for size in BATCHES if size <= len(images))
    for name, (build, least) in NETWORKS.items():
        side = max(images.shape[1], least)
        row = {"method": name, "library": library, "engine": "torch", "pixels": side}
        if not find_spec(library):
            yield Method(missing(row, library))
            continue
        row["library"] = f"{library} {version(library)}"
        network = Outputs(build(tensors(normal, side))).eval().requires_grad_(False)
        ready = tensors(images, side)
        for precision in dict.fromkeys(["float32", native]):
            score = partial(forward, network, precision)
            yield Method(row | {"precision": precision}, score, ready, batches)
        row["engine"] = "openvino"
        if not find_spec("openvino"):
            yield Method(missing(row, "openvino"))
            continue
        score = compiled(network, ready[:1], native)
        yield Method(row | {"precision": native}, score, ready, batches)


def missing(row: dict[str, Any], package: str) -> dict[str, Any]:
    """Return a row without times."""
    return row | {"one ms": f"needs {package}"}


def tensors(images: np.ndarray, side: int) -> Tensor:
    """Return images of shape (n, 3, side, side), from 0 to 1."""
    grey = torch.from_numpy(images)[:, None].float() / 255
    return F.interpolate(grey, size=(side, side), mode="bilinear").repeat(1, 3, 1, 1)


def stfpm(normal: Tensor) -> nn.Module:
    """Build STFPM, whose teacher would be downloaded."""
    import timm
    from anomalib.models.image.stfpm.torch_model import STFPMModel

    def untrained(*names: str, pretrained: bool, **options: Any) -> nn.Module:
        return create(*names, pretrained=False, **options)

    create = timm.create_model
    with patch("timm.create_model", untrained):
        return STFPMModel(["layer1", "layer2", "layer3"], "resnet18")


def patchcore(normal: Tensor) -> nn.Module:
    """Build PatchCore and fill its memory bank."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(["layer2", "layer3"], "wide_resnet50_2", pre_trained=False).train()
    kept = []
    for batch in normal.split(BATCHES[-1]):
        features = model(batch)  # of its patches
        kept.append(features[torch.randperm(len(features))[: int(CORESET * len(features))]])
        model.embedding_store.clear()
    model.memory_bank = torch.cat(kept)
    return model


def efficientad(normal: Tensor) -> nn.Module:
    """Build EfficientAD-S: teacher, student and autoencoder."""
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel

    return EfficientAdModel()


NETWORKS = {
    "STFPM, ResNet-18": (stfpm, 1),
    "PatchCore, WideResNet-50": (patchcore, 1),
    "EfficientAD-S": (efficientad, LEAST_SIDE),
}


class Outputs(nn.Module):
    """A network of anomalib's that returns tensors only, so that OpenVINO can trace it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and maps."""
        found = self.network(images)
        return found.pred_score, found.anomaly_map


def forward(network: nn.Module, precision: str, batch: Tensor) -> Any:
    """Compute scores and maps in torch."""
    half = precision == "bfloat16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        return network(batch)


def compiled(network: nn.Module, example: Tensor, precision: str) -> Callable[[Tensor], Any]:
    """Return what computes scores and maps in OpenVINO, for batches of any size."""
    import openvino

    shape = openvino.PartialShape([-1, *example.shape[1:]])
    model = openvino.convert_model(network, example_input=example, input=shape)
    settings = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    run = openvino.Core().compile_model(model, "CPU", settings)
    return lambda batch: run([batch.numpy()])


def in_turn(method: Method, size: int) -> None:
    """Score and map all images, so many a call."""
    assert method.score is not None
    for start in range(0, len(method.images), size):
        method.score(method.images[start : start + size])


def main() -> None:
    """Print one row a method, engine and precision."""
    arguments = parser(__doc__, runs=3)
    arguments.add_argument("--images", type=int, default=32)
    arguments.add_argument("--side", type=int, default=128)
    arguments.add_argument("--normal", type=int, default=200, help="images of PatchCore's bank")
    given = arguments.parse_args()
    crops = textures(given.normal + given.images, given.side)
    normal, images = crops[: given.normal], crops[given.normal :]
    methods = list(detectors(normal, images))
    with warnings.catch_warnings(action="ignore"):  # of anomalib's imports, and of tracing
        methods += peers(normal, images)
    works = {
        (i, size): partial(in_turn, method, size)
        for i, method in enumerate(methods)
        for size in method.batches
    }
    each = {key: 1e3 * time / given.images for key, time in medians(works, given.runs).items()}
    rows = []
    for i, method in enumerate(methods):
        if method.batches:
            size = min(method.batches, key=lambda size: each[i, size])
            one, many = each[i, 1], each[i, size]
            if i == 0:
                default = one, many
            method.row.update(
                {
                    "one ms": one,
                    "one / default": one / default[0],
                    "many ms": many,
                    "a call": size,
                    "many / default": many / default[1],
                }
            )
        rows.append(method.row)
    report(__file__, rows, given.output)


if __name__ == "__main__":
    main()
