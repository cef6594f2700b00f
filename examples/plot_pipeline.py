"""
=======================================
How do I use it in a pipeline?
=======================================

A detector takes the output of the previous step: here images that a transformer has cropped from
larger ones. The pipeline is scikit-learn's.
"""

# %%
# Scans of brick with an irrelevant margin, here of random noise that differs from scan to scan.

import matplotlib.pyplot as plt
import numpy as np
from skimage import data
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skmkd import MKDDetector
from skmkd.datasets import make_defects
from skmkd.inspection import ScoreDisplay

SIDE, MARGIN = 64, 16

windows = np.lib.stride_tricks.sliding_window_view(data.brick(), (SIDE, SIDE))[::32, ::32]
rng = np.random.default_rng(0)


def scan(crops):
    """Surround crops (n, SIDE, SIDE) by noise."""
    size = SIDE + 2 * MARGIN
    scans = rng.integers(0, 256, (len(crops), size, size), dtype=np.uint8)
    scans[:, MARGIN:-MARGIN, MARGIN:-MARGIN] = crops
    return scans


X_train = scan(windows[:, :7].reshape(-1, SIDE, SIDE))
X_calibration = scan(windows[:7, 9:].reshape(-1, SIDE, SIDE))
good = windows[9:, 9:].reshape(-1, SIDE, SIDE)
bad, _ = make_defects(good, random_state=0)
X_test = np.concatenate([scan(good), scan(bad)])
y_test = np.repeat([1, -1], len(good))  # +1 = normal, -1 = anomaly

# %%
# The pipeline crops the middle and fits the detector. It has scikit-learn's methods of a detector
# and works like any other estimator.


def middle(scans):
    return scans[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


pipeline = make_pipeline(
    FunctionTransformer(middle),
    MKDDetector(image_size=SIDE, smoothing_sigma=2, validation_fraction=0, random_state=0),
)
pipeline.fit(X_train)

# %%
# A pipeline has no ``calibrate`` method. Call that of its last step, with transformed images.
# Displays also take the last step and transformed images.

pipeline[-1].calibrate(middle(X_calibration), fpr=0.05)
print("called anomalies:", np.sum(pipeline.predict(X_test) == -1), "of", len(X_test))
ScoreDisplay.from_estimator(pipeline[-1], middle(X_test), y_test)
plt.show()
