"""Memory follows what networks see, not the size of the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, re, sys, threading
sys.path[:0] = {folders!r}
import numpy as np, torch
from PIL import Image
from conftest import tiny_detector
from skmkd import DetectorEnsemble

def anonymous():
    with open("/proc/self/status") as file:
        return int(re.search(r"RssAnon:\\s+(\\d+)", file.read())[1]) / 1e3

def added(detector, X):
    before = anonymous()
    peak, done = [before], threading.Event()
    def watch():
        while not done.wait(0.003):
            peak.append(anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    detector.score_samples(X)
    done.set()
    thread.join()
    return max(peak) - before

torch.set_num_threads(1)
few = np.random.default_rng(0).integers(1, 255, (8, 32, 32, 4), dtype=np.uint8)
detector = tiny_detector(image_size=32).fit(few)
detector.score_samples([Image.fromarray(image) for image in few])
ensemble = DetectorEnsemble([(name, tiny_detector(image_size=32)) for name in "ab"]).fit(few)
print(json.dumps([
    added(detector, ["photograph.jpg"] * 16),
    added(detector, [Image.open("photograph.jpg") for _ in range(16)]),
    added(ensemble, ["photograph.jpg"] * 16),
    added(detector, ["large.png"]),
]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory as Linux tells it")
def test_peaks_of_scoring(tmp_path):
    rows, columns = np.ogrid[:4096, :4096]
    pixels = np.stack(np.broadcast_arrays(rows, columns, rows + columns, 255), axis=2)
    image = Image.fromarray(pixels.astype(np.uint8))
    image.save(tmp_path / "large.png", compress_level=1)
    image.convert("RGB").crop((0, 0, 2000, 1500)).save(tmp_path / "photograph.jpg")
    program = PROGRAM.format(folders=[str(ROOT), str(ROOT / "tests")])
    run = [sys.executable, "-c", program]
    printed = subprocess.run(run, check=True, cwd=tmp_path, capture_output=True, text=True).stdout
    paths, opened, of_two, large = json.loads(printed)
    assert paths < 100  # MB; if Pillow keeps each of them, they are 192
    assert opened < 100
    assert of_two < 100
    assert large < 170  # as Pillow decodes it and as an array it is 134
