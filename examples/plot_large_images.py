"""
============================================
How do I find small defects in large images?
============================================

An image is shrunk to ``image_size`` before a detector sees it, and a defect of a few pixels may
vanish. With ``tile_size``, images are cut into overlapping tiles that keep their details.
"""

# %%
# Crops of a photograph stand for large images here, so that this page is made in a minute: those of
# its left half are for training, of the upper right quarter for setting the threshold, and of the
# lower right quarter for the test. The defects are synthetic, scratches of 14 pixels.

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from skimage import data, draw
from sklearn.metrics import roc_auc_score

import skmkd
from skmkd import MKDDetector

SIDE = 192  # pixels


def crop(photograph, step):
    """Cut square crops, one every ``step`` pixels: an array (n, SIDE, SIDE)."""
    windows = np.lib.stride_tricks.sliding_window_view(photograph, (SIDE, SIDE))
    return windows[::step, ::step].reshape(-1, SIDE, SIDE)


brick = data.brick()  # uint8, 512 x 512
X_train = crop(brick[:, :256], step=64)
X_calibration, X_good = crop(brick[:256, 256:], step=32), crop(brick[256:, 256:], step=32)
X_bad, masks = X_good.copy(), np.zeros(X_good.shape, dtype=bool)
rng = np.random.default_rng(0)
for image, mask in zip(X_bad, masks):
    row, column = rng.uniform(20, SIDE - 20, size=2)
    pixels = draw.ellipse(row, column, 7, 1, rotation=rng.uniform(0, np.pi))
    image[pixels], mask[pixels] = 230, True

# %%
# Each tile is learned and scored as an image of its own, and an image is as anomalous as its worst
# tile. Both detectors see 64 x 64 pixels at a time: the first the whole image, shrunk three times,
# the second one tile after the other, as they are.

X_test, y = np.concatenate([X_good, X_bad]), np.repeat([1, -1], len(X_good))
settings = {"validation_fraction": 0, "image_size": 64, "smoothing_sigma": 1, "random_state": 0}
detectors = {
    "whole images": MKDDetector(**settings).fit(X_train),
    "tiles": MKDDetector(tile_size=64, **settings).fit(X_train),
}
for name, detector in detectors.items():
    detector.calibrate(X_calibration, fpr=0.1)
    auroc = roc_auc_score(y, detector.score_samples(X_test))
    found = (detector.predict(X_bad) == -1).mean()
    false_alarms = (detector.predict(X_good) == -1).mean()
    print(f"{name:13} AUROC {auroc:.3f}, found {found:.0%}, false alarms {false_alarms:.0%}")

# %%
# The maps of the tiles are merged so that no seam shows. :func:`skmkd.regions` lists what exceeds
# the threshold: for each region its box, its area and how anomalous it is.

maps = detector.localize(X_bad[:4])
found = skmkd.regions(maps, detector.map_offset_)
for i, regions in enumerate(found):
    for region in regions:
        print(f"image {i}: box {region.box}, {region.area} pixels, peak {region.peak:.2f}")

# %%
# The boxes over the images (red), and the true defects (white outlines).

figure, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained")
for ax, image, mask, regions in zip(axes, X_bad, masks, found):
    ax.imshow(image, cmap="gray")
    ax.contour(mask, [0.5], colors="white", linewidths=1)
    for region in regions:
        top, left, bottom, right = region.box
        size = right - left, bottom - top
        ax.add_patch(Rectangle((left, top), *size, fill=False, color="tab:red", linewidth=2))
    ax.set_axis_off()
plt.show()

# %%
# To look only at a part of each image, give ``roi=(top, left, bottom, right)`` or a mask; see the
# guide's page on large images.
