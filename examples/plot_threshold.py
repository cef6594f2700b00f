"""
====================================================
How many false alarms does a threshold raise?
====================================================

A threshold set on training images raises too many, since the detector fits these better than new
images. A threshold set on held-out good images has the requested rate.
"""

# %%
# Crops of a brick wall that do not overlap: a third for training, a third for calibration, and a
# third for counting false alarms. The anomalies are crops of gravel and grass.

import matplotlib.pyplot as plt
import numpy as np
from skimage import data
from skimage.util import view_as_blocks

from skmkd import MKDDetector
from skmkd.inspection import ScoreDisplay

SIDE = 32

bricks = view_as_blocks(data.brick(), (SIDE, SIDE)).reshape(-1, SIDE, SIDE)
learn, held_out, good = np.array_split(np.random.default_rng(0).permutation(bricks), 3)
others = np.concatenate(
    [view_as_blocks(t, (SIDE, SIDE))[::3, ::3].reshape(-1, SIDE, SIDE)
     for t in (data.gravel(), data.grass())]
)  # fmt: skip
X = np.concatenate([good, others])
y = np.repeat([1, -1], [len(good), len(others)])  # +1 = normal, -1 = anomaly

detector = MKDDetector(image_size=SIDE, contamination=0.05, random_state=0).fit(learn)

# %%
# The target is 5 % false alarms in both cases.

fig, axes = plt.subplots(2, 1, figsize=(7, 7), sharex=True, layout="constrained")
for ax, name in zip(axes, ["fit", "calibrate"]):
    if name == "calibrate":
        detector.calibrate(held_out, fpr=0.05)
    alarms = np.mean(detector.predict(good) == -1)
    found = np.mean(detector.predict(others) == -1)
    print(f"{name:10} false alarms {alarms:.0%}   anomalies found {found:.0%}")
    ScoreDisplay.from_estimator(detector, X, y, ax=ax)
    ax.set_title(f"threshold of {name}: {alarms:.0%} false alarms")
plt.show()
