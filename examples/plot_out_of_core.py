"""
================================================
How do I score more images than fit into memory?
================================================

Arrays are read batch by batch, so a memory-mapped array is never loaded as a whole. The same holds
for lists of paths.
"""

# %%
# A file of 2,000 images on disk.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from skimage.data import lfw_subset

from skmkd import MKDDetector

faces, others = np.split((255 * lfw_subset()).astype(np.uint8), 2)
path = Path(tempfile.mkdtemp()) / "images.npy"
archive = np.lib.format.open_memmap(path, "w+", np.uint8, (2000, 25, 25))
rng = np.random.default_rng(0)
archive[:] = faces[rng.integers(80, 100, 2000)]
wrong = np.sort(rng.choice(2000, 20, replace=False))
archive[wrong] = others[:20]
archive.flush()

# %%
# The detector is trained and calibrated on faces that are not in the archive.

detector = MKDDetector(image_size=32, validation_fraction=0, random_state=0)
detector.fit(faces[:55]).calibrate(faces[55:80], fpr=0.05)

images = np.load(path, mmap_mode="r")
scores = detector.score_samples(images)
worst = np.argsort(scores)[:20]
print(f"{np.isin(worst, wrong).sum()} of the 20 wrong images are among the 20 lowest scores")

# %%

fig, ax = plt.subplots(figsize=(8, 3), layout="constrained")
ax.plot(scores, ".", markersize=2, label="image")
ax.plot(wrong, scores[wrong], "x", color="tab:red", label="wrong image")
ax.axhline(detector.offset_, linestyle="--", color="black", label="threshold")
ax.set(xlabel="index in the archive", ylabel="score")
ax.legend(loc="lower left")
plt.show()
