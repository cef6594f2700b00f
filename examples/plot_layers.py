"""
========================================
What does each layer detect?
========================================

Early layers of the source represent edges and grain, late ones parts and objects. Three defects on
a brick wall, and the map of each critical layer.
"""

# %%
# All four critical layers are trained; ``score_layers`` selects those used for scores and maps.

import matplotlib.pyplot as plt
import numpy as np
from skimage import data

from skmkd import MKDDetector
from skmkd.datasets import make_defects

SIDE = 64

windows = np.lib.stride_tricks.sliding_window_view(data.brick(), (SIDE, SIDE))[::32, ::32]
X_train = windows[:, :7].reshape(-1, SIDE, SIDE)
good = windows[4:7, 12].copy()
kinds = ["scratch", "stain", "cut_paste"]
bad = [make_defects(image[None], kind=kind, random_state=1) for image, kind in zip(good, kinds)]
X_bad = np.concatenate([images for images, _ in bad])
masks = np.concatenate([mask for _, mask in bad])

layers = ["features.9", "features.16", "features.23", "features.30"]  # VGG-16's last four pools
settings = {"validation_fraction": 0, "image_size": SIDE, "smoothing_sigma": 2, "random_state": 0}
detectors = [MKDDetector(score_layers=[layer], **settings).fit(X_train) for layer in layers]

# %%
# Each map has its own colour scale: the question is where, not how much.

fig, axes = plt.subplots(3, 6, figsize=(10, 5.4), layout="constrained")
for row, (kind, image, mask) in enumerate(zip(kinds, X_bad, masks)):
    axes[row, 0].imshow(image, cmap="gray")
    axes[row, 0].set_ylabel(kind.replace("_", " "))
    axes[row, 1].imshow(mask, cmap="gray")
    for column, detector in enumerate(detectors, start=2):
        axes[row, column].imshow(detector.localize(image[None])[0], cmap="magma")
for ax, title in zip(axes[0], ["image", "defect", *(f"pool {i}" for i in (2, 3, 4, 5))]):
    ax.set_title(title)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
plt.show()
