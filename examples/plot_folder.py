"""
=========================================
How do I use my own folder of images?
=========================================

Train on a folder of good images and score a folder of new ones. X is a list of paths; files are
read batch by batch.
"""

# %%
# Two folders, created here from scikit-image's faces. Some of the new images are not faces, and one
# file is broken.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from skimage.data import lfw_subset

import skmkd
from skmkd import MKDDetector
from skmkd.datasets import list_images

root = Path(tempfile.mkdtemp())
images = (255 * lfw_subset()).astype(np.uint8)
for name, subset in [("good", images[:95]), ("new", images[95:109])]:
    (root / name).mkdir()
    for i, image in enumerate(subset):
        Image.fromarray(image).save(root / name / f"{i:02}.png")
(root / "new" / "99.png").write_bytes(b"not an image")

# %%
# Train on four fifths of the good images and set the threshold on the others.

good = list_images(root / "good")
detector = MKDDetector(image_size=32, on_error="skip", random_state=0)
detector.fit(good)
detector.save(root / "model.skmkd")

# %%
# Later, in another process: load the detector and score. With ``on_error="skip"``, an unreadable
# file gets the score NaN and a warning.

import warnings

detector = skmkd.load(root / "model.skmkd")
new = list_images(root / "new")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    scores = detector.score_samples(new)
print(str(caught[0].message).replace(str(root), "..."))
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
