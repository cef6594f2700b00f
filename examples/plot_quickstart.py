"""
==========================================
Which bricks are bad, and where?
==========================================

A detector is trained on crops of a good brick wall, and then separates new good crops from
defective ones. The photograph comes with scikit-image; the defects are synthetic.
"""

# %%
# Crops of the left half of the wall are for training, of the upper right quarter for setting the
# threshold, and of the lower right quarter for the test. These parts do not overlap.

import matplotlib.pyplot as plt
import numpy as np
from skimage import data, draw
from sklearn.metrics import roc_auc_score

from skmkd import MKDDetector
from skmkd.inspection import LocalizationDisplay
from skmkd.metrics import aupro_score, pixel_roc_auc_score

SIDE = 64  # pixels


def crop(photograph, step):
    """Cut square crops, one every ``step`` pixels: an array (n, SIDE, SIDE)."""
    windows = np.lib.stride_tricks.sliding_window_view(photograph, (SIDE, SIDE))
    return windows[::step, ::step].reshape(-1, SIDE, SIDE)


brick, gravel = data.brick(), data.gravel()  # uint8, 512 x 512
X_train = crop(brick[:, :256], step=32)
X_calibration = crop(brick[:256, 256:], step=32)
X_good = crop(brick[256:, 256:], step=32)


# %%
# Every test crop gets one of three defects: a dark stain, a bright scratch, or a piece of gravel. A
# mask marks its pixels.


def stain(image, rng):
    row, column, height, width = *rng.uniform(16, 48, size=2), *rng.uniform(5, 9, size=2)
    pixels = draw.ellipse(row, column, height, width, rotation=rng.uniform(0, np.pi))
    image[pixels] = 0.6 * image[pixels]
    return pixels


def scratch(image, rng):
    row, column = rng.uniform(24, 40, size=2)
    pixels = draw.ellipse(row, column, 18, 1, rotation=rng.uniform(0, np.pi))
    image[pixels] = 230
    return pixels


def foreign_piece(image, rng):
    row, column, elsewhere, there = rng.integers(8, 44, size=4)
    pixels = np.s_[row : row + 12, column : column + 12]
    image[pixels] = gravel[elsewhere : elsewhere + 12, there : there + 12]
    return pixels


rng = np.random.default_rng(0)
X_bad, masks = X_good.copy(), np.zeros(X_good.shape, dtype=bool)
for i, (image, mask) in enumerate(zip(X_bad, masks, strict=True)):
    mask[(stain, scratch, foreign_piece)[i % 3](image, rng)] = True

# %%
# ``fit`` takes good images only. The detector fits these better than new ones, so its threshold is
# then set on other good images. ``fit`` could hold some out for that itself, as it does by default,
# but these crops overlap.

detector = MKDDetector(image_size=SIDE, smoothing_sigma=2, validation_fraction=0, random_state=0)
detector.fit(X_train).calibrate(X_calibration, fpr=0.05)

# %%
# Scores are higher for normal images, as everywhere in scikit-learn; maps are higher at anomalous
# pixels.

X_test = np.concatenate([X_good, X_bad])
y_test = np.repeat([1, -1], [len(X_good), len(X_bad)])
truth = np.concatenate([np.zeros_like(masks), masks])

scores = detector.score_samples(X_test)
labels = detector.predict(X_test)
maps = detector.localize(X_test)

print(f"good crops to learn from     {len(X_train)}")
print(f"image AUROC                  {roc_auc_score(y_test, scores):.3f}")
print(f"pixel AUROC                  {pixel_roc_auc_score(truth, maps):.3f}")
print(f"AUPRO                        {aupro_score(truth, maps):.3f}")
print(f"spoiled crops found          {np.mean(labels[y_test == -1] == -1):.0%}")
print(f"false alarms on good crops   {np.mean(labels[y_test == 1] == -1):.0%}")

# %%
# All maps share one colour scale, which starts at the detector's threshold for pixels. Below it the
# image stays uncoloured.

shown = [0, 24, *range(len(X_good) + 9, len(X_good) + 15)]
display = LocalizationDisplay.from_maps(
    X_test[shown], maps[shown], truth[shown], threshold=detector.map_offset_
)
for ax, label in zip(display.axes_[0], labels[shown], strict=True):
    ax.set_title("normal" if label == 1 else "anomaly", fontsize=10)
display.figure_.savefig("quickstart.png", dpi=110)
plt.show()
