"""
=======================================
How does it work in a pipeline?
=======================================

A detector takes what the step before it gives: here images that a transformer has cut out of larger
ones. Everything else is scikit-learn's.
"""

# %%
# Scans of brick, of which only the middle counts: their margin holds clutter that differs from scan
# to scan, made here of random numbers.

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
    """Put crops (n, SIDE, SIDE) into the middle of clutter."""
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
# The pipeline cuts the middle out, then learns. It has the detector's methods, and scikit-learn's
# tools take it like any other estimator.


def middle(scans):
    return scans[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


pipeline = make_pipeline(
    FunctionTransformer(middle),
    MKDDetector(
        image_size=SIDE, batch_size=16, max_iter=8, tol=None, smoothing_sigma=2, random_state=0
    ),
)
pipeline.fit(X_train)

# %%
# A pipeline has no method to calibrate; its last step has, and wants the images as that step gets
# them. So do displays.

pipeline[-1].calibrate(middle(X_calibration), fpr=0.05)
print("called anomalies:", np.sum(pipeline.predict(X_test) == -1), "of", len(X_test))
ScoreDisplay.from_estimator(pipeline[-1], middle(X_test), y_test)
plt.show()
