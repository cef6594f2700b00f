"""What many tests share: a tiny random source, synthetic images, a fitted detector."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path
from shutil import copy

os.environ["MPLBACKEND"] = "agg"  # no window opens
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of torch; workers share the cores as they are
os.environ.setdefault("SCIPY_ARRAY_API", "1")  # read when scipy is imported; some checks need it

import numpy as np
import pytest
import torch
from hypothesis import settings
from matplotlib import pyplot
from PIL import Image
from skimage.data import lfw_subset
from torch import nn
from torchvision.models import get_model

import skmkd
from skmkd import MKDDetector
from skmkd._cli import main
from skmkd._networks.layers import LayerIndex
from skmkd._networks.residual import Style, style_of
from skmkd.distributed import Scorer

settings.register_profile("same everywhere", deadline=None, derandomize=True, database=None)
settings.register_profile(
    "thorough", settings.get_profile("same everywhere"), max_examples=1000, deadline=10_000
)
settings.load_profile("same everywhere")


@cache
def layers_and_style(name: str) -> tuple[LayerIndex, Style]:
    """Return the layers and the style of a torchvision network."""
    with torch.device("meta"):
        network = get_model(name).eval()
    return LayerIndex(network), style_of(network)


class TinySource(nn.Module):
    """Two convolutions with in-place ReLUs and two max-pools: a source for unit tests."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        with torch.device("meta"):
            first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.features = nn.Sequential(
            first, nn.ReLU(inplace=True), nn.MaxPool2d(2),
            second, nn.ReLU(inplace=True), nn.MaxPool2d(2),
        ).to_empty(device="cpu")  # fmt: skip
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images).mean((2, 3))

    def __reduce__(self):
        """Pickle tensors as arrays: joblib's hash of a tensor differs from time to time."""
        arrays = {name: tensor.numpy() for name, tensor in self.state_dict().items()}
        return _restore, (arrays, self.training, [p.requires_grad for p in self.parameters()])


def _restore(arrays: dict[str, np.ndarray], training: bool, differentiable: list[bool]):
    source = TinySource().train(training)
    source.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in arrays.items()})
    for parameter, required in zip(source.parameters(), differentiable, strict=True):
        parameter.requires_grad_(required)
    return source


class Counting(nn.Module):
    """A source that notes how many images come with each pass."""

    def __init__(self, source: nn.Module, passes: list[int] | None = None) -> None:
        super().__init__()
        self.source, self.passes = source, [] if passes is None else passes

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.passes.append(len(images))
        return self.source(images)


TINY = {
    "critical_layers": 2,
    "image_size": 16,
    "max_iter": 2,
    "tol": None,
    "precision": "float32",
    "random_state": 0,
    "validation_fraction": 0,  # as many images to learn from as a test gives
}


def tiny_detector(**parameters) -> MKDDetector:
    """Return a detector with the default terms, scores and maps that fits in under a second."""
    return MKDDetector(**({"source": TinySource()} | TINY | parameters))


def paper_detector(**parameters) -> MKDDetector:
    """Return a detector with the paper's terms, scores and maps that fits in under a second."""
    normalized = {"source": TinySource(), "normalization": "source"}
    return MKDDetector.paper(**(normalized | TINY | parameters))


def smooth_and_noisy(n_normal=30, n_anomalous=10, seed=0):
    """Synthetic images (n, 16, 16, 3): gradients in brightness are normal, noise is not."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, 16)[:, None, None] * rng.random((n_normal, 1, 1, 3))
    normal = np.broadcast_to(ramp, (n_normal, 16, 16, 3)) + 0.02 * rng.random((n_normal, 16, 16, 3))
    X = np.concatenate([normal / 1.02, rng.random((n_anomalous, 16, 16, 3))])
    return X, np.repeat([1, -1], [n_normal, n_anomalous])


@pytest.fixture
def images() -> np.ndarray:
    """Twelve synthetic colour images, uint8, of shape (12, 20, 24, 3)."""
    return np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)


@pytest.fixture
def detector(images: np.ndarray) -> MKDDetector:
    """A detector fitted to those images."""
    return tiny_detector().fit(images)


@pytest.fixture(scope="session")
def exported() -> tuple[MKDDetector, bytes]:
    """A calibrated detector and the content of its exported file.

    Warnings are errors meanwhile, and nothing global may change, inference mode included.
    """
    from skmkd._export.writing import exported_content

    good = np.random.default_rng(0).integers(0, 256, (20, 20, 24, 3), dtype=np.uint8)
    fitted = tiny_detector().fit(good[:12]).calibrate(good)
    state = global_state()
    with torch.inference_mode():
        content = exported_content(fitted)
        assert torch.is_inference_mode_enabled()
    assert global_state() == state
    return fitted, content


def global_state() -> tuple:
    """Return what an export might change."""
    return (
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(),
        torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist(),
        list(warnings.filters), torch.get_num_threads(), torch.is_autocast_enabled("cpu"),
    )  # fmt: skip


ACCELERATOR = "cuda" if torch.cuda.is_available() else "mps"
needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() or torch.backends.mps.is_available()),
    reason="needs a GPU, of CUDA or MPS",
)
needs_bfloat16 = pytest.mark.skipif(  # if slowly
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this processor has no products in bfloat16",
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

QUICK = "--image-size 32 --batch-size 8 --max-iter 2 --tol None --random-state 0 --device cpu"


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder of faces to learn from, a data set with masks, and a fitted model."""
    place = tmp_path_factory.mktemp("cli")
    images = (255 * lfw_subset()).astype(np.uint8)
    kinds = {
        "learn": images[:16], "held_out": images[16:36],
        "set/good": images[36:42], "set/other": images[100:106],
    }  # fmt: skip
    for kind, chosen in kinds.items():
        (place / kind).mkdir(parents=True)
        for i, image in enumerate(chosen):
            Image.fromarray(image).save(place / kind / f"{i}.png")
    (place / "set/ground_truth/other").mkdir(parents=True)
    for i in range(6):
        mask = np.zeros((25, 25), np.uint8)
        mask[5:15, 5 + i : 15 + i] = 255
        Image.fromarray(mask).save(place / f"set/ground_truth/other/{i}.png")
    words = f"fit {place / 'learn'} -o {place / 'model.skmkd'} --calibrate {place / 'held_out'}"
    assert main([*words.split(), *QUICK.split()]) == 0
    return place


@pytest.fixture(autouse=True)
def _closed_figures():
    """No figure outlives its test."""
    yield
    pyplot.close("all")


# For the tests of skmkd.distributed: a detector in a file, and images of which one is broken

BRIEF = {
    "source": "efficientnet_lite0", "image_size": 32, "max_iter": 1, "tol": None,
    "random_state": 0, "device": "cpu",
}  # fmt: skip
N_IMAGES = 2000
BROKEN = 1234


@pytest.fixture(scope="session")
def faces():
    return (255 * lfw_subset()).astype(np.uint8)


@pytest.fixture
def brief():
    """A detector that learns from a few images in no time."""
    return MKDDetector(**BRIEF, validation_fraction=0, contamination=0.05)


@pytest.fixture(scope="session")
def model(tmp_path_factory, faces):
    path = tmp_path_factory.mktemp("model") / "faces.skmkd"
    MKDDetector(**BRIEF).fit(faces[:100]).save(path, include_source=False)
    return path


@pytest.fixture(scope="session")
def paths(tmp_path_factory, faces):
    """Two thousand different images; one is broken."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    found = []
    for i in range(N_IMAGES):
        found.append(str(folder / f"{i:04}.png"))
        noise = rng.integers(0, 20, (25, 25), dtype=np.uint8)
        Image.fromarray(faces[i % 200] // 2 + noise).save(found[-1])
    (folder / f"{BROKEN:04}.png").write_bytes(b"broken")
    return found


@pytest.fixture
def guide(tmp_path, model, faces, monkeypatch):
    """The guide's page, its folder /data being here, and detectors that learn in no time."""
    data = tmp_path / "data"
    numbers = {"good": 12, "bad": 6, "archive": 20, "products/a": 4, "products/b": 4}
    for folder, n in numbers.items():
        (data / folder).mkdir(parents=True)
        for i, image in enumerate(faces[:n]):
            Image.fromarray(image).save(data / folder / f"{i:02}.png")
    copy(model, data / "part.skmkd")
    archive = sorted((data / "archive").iterdir())
    (data / "images.txt").write_text("".join(f"{path}\n" for path in archive))

    def briefly(**parameters):
        return MKDDetector(**{"contamination": 0.05, "validation_fraction": 0} | parameters | BRIEF)

    monkeypatch.setattr(skmkd, "MKDDetector", briefly)
    page = Path(__file__).parents[1] / "docs" / "guide" / "many_machines.md"
    return page.read_text().replace("/data/", f"{data}/")


@pytest.fixture(scope="session")
def expected(model, paths):
    """What one process says of these images."""
    return Scorer(model)(paths)
