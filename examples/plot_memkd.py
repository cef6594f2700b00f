"""
===================================
MKD or MemKD?
===================================

Both detectors on the same bricks: MKD, with a small cloner of the image, and MemKD, with a decoder
that reconstructs the source's features, with and without memories of normal features.
"""

# %%

import time

import matplotlib.pyplot as plt
import numpy as np
from skimage import data
from sklearn.metrics import roc_auc_score

from skmkd import MemKDDetector, MKDDetector
from skmkd.datasets import make_defects
from skmkd.metrics import aupro_score

SIDE = 64

windows = np.lib.stride_tricks.sliding_window_view(data.brick(), (SIDE, SIDE))[::32, ::32]
X_train = windows[:, :7:2].reshape(-1, SIDE, SIDE)
good = windows[::2, 9::2].reshape(-1, SIDE, SIDE)
bad, masks = make_defects(good, random_state=0)
X_test, y_test = np.concatenate([good, bad]), np.repeat([1, -1], len(good))

common = {"validation_fraction": 0, "image_size": SIDE, "smoothing_sigma": 2, "random_state": 0}
detectors = {
    "MKD": MKDDetector(**common),
    "RD (no memory)": MemKDDetector(memory_size=0, **common),
    "MemKD": MemKDDetector(**common),
}
maps = {}
for name, detector in detectors.items():
    start = time.perf_counter()
    detector.fit(X_train)
    seconds = time.perf_counter() - start
    auroc = roc_auc_score(y_test, detector.score_samples(X_test))
    maps[name] = detector.localize(bad)
    aupro = aupro_score(masks, maps[name])
    print(f"{name:15} image AUROC {auroc:.3f}   AUPRO {aupro:.3f}   fit {seconds:.0f} s")

# %%
# How selective the memories are: the entropy of the recall weights, compared with uniform weights.

for level, spread in detectors["MemKD"].recall_entropy(good).items():
    print(f"memory {level}: {spread.mean():.2f} of at most {np.log(50):.2f} nats")

# %%

shown = range(0, len(bad), len(bad) // 5 + 1)
fig, axes = plt.subplots(5, len(shown), figsize=(8, 8), layout="constrained")
for column, i in enumerate(shown):
    axes[0, column].imshow(bad[i], cmap="gray")
    axes[1, column].imshow(masks[i], cmap="gray")
    for row, found in enumerate(maps.values(), start=2):
        top = np.quantile(found, 0.995)
        axes[row, column].imshow(found[i], cmap="magma", vmin=0, vmax=top)
for ax, title in zip(axes[:, 0], ["image", "defect", *maps]):
    ax.set_ylabel(title)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
plt.show()
