"""
=========================================
How do I use my own folder of images?
=========================================

A folder of good images and a folder of new ones: paths go in, and are read when they are needed.
"""

# %%
# Two folders, made here of faces that come with scikit-image; yours are there already. Some of the
# new images are no faces, and one file is broken.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from skimage.data import lfw_subset

import skmkd
from skmkd import MKDDetector
from skmkd.datasets import list_images

place = Path(tempfile.mkdtemp())
images = (255 * lfw_subset()).astype(np.uint8)
for name, chosen in [("good", images[:80]), ("new", images[92:106])]:
    (place / name).mkdir()
    for i, image in enumerate(chosen):
        Image.fromarray(image).save(place / name / f"{i:02}.png")
(place / "new" / "99.png").write_bytes(b"not an image")

# %%
# Learn from three quarters of the good ones, and set the threshold with the others.

good = list_images(place / "good")
detector = MKDDetector(
    image_size=32, batch_size=8, max_iter=10, tol=None, on_error="skip", random_state=0
)
detector.fit(good[:60]).calibrate(good[60:], fpr=0.05)
detector.save(place / "model.skmkd")

# %%
# Somewhere else, later: read the detector, and score. A file that cannot be read gets no score,
# with a warning, since that was asked for.

import warnings

detector = skmkd.load(place / "model.skmkd")
new = list_images(place / "new")
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    scores = detector.score_samples(new)
print(str(told[0].message).replace(str(place), "..."))
for path, score in zip(new, scores):
    verdict = (
        "normal" if score >= detector.offset_ else "anomaly" if score == score else "unreadable"
    )
    print(f"{path.name}  {score:8.3f}  {verdict}")

# %%

readable = ~np.isnan(scores)
fig, axes = plt.subplots(2, 7, figsize=(9, 3), layout="constrained")
for ax, path, score in zip(axes.flat, new[readable], scores[readable]):
    ax.imshow(Image.open(path), cmap="gray")
    ax.set_title(f"{score:.2f}", color="black" if score >= detector.offset_ else "tab:red")
    ax.axis("off")
plt.show()
