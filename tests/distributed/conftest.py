"""A small detector in a file, and images of which one cannot be read."""

from __future__ import annotations

from pathlib import Path
from shutil import copy

import numpy as np
import pytest
from PIL import Image
from skimage.data import lfw_subset

import skmkd
from skmkd import MKDDetector
from skmkd.distributed import Scorer

QUICK = {
    "source": "efficientnet_lite0", "image_size": 32, "max_iter": 1, "tol": None,
    "random_state": 0, "device": "cpu",
}  # fmt: skip
N_IMAGES = 2000
BROKEN = 1234


@pytest.fixture(scope="session")
def faces():
    return (255 * lfw_subset()).astype(np.uint8)


@pytest.fixture
def detector():
    """A detector that learns from a few images in no time."""
    return MKDDetector(**QUICK, validation_fraction=0, contamination=0.05)


@pytest.fixture(scope="session")
def model(tmp_path_factory, faces):
    path = tmp_path_factory.mktemp("model") / "faces.skmkd"
    MKDDetector(**QUICK).fit(faces[:100]).save(path, include_source=False)
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
        return MKDDetector(**{"contamination": 0.05, "validation_fraction": 0} | parameters | QUICK)

    monkeypatch.setattr(skmkd, "MKDDetector", briefly)
    page = Path(__file__).parents[2] / "docs" / "guide" / "many_machines.md"
    return page.read_text().replace("/data/", f"{data}/")


@pytest.fixture(scope="session")
def expected(model, paths):
    """What one process says of these images."""
    return Scorer(model)(paths)
