"""
==================================================
Does augmentation help with few images?
==================================================

There are only ten good images to train on. ``augmentation="mild"`` rotates and scales them slightly
at every step, as the paper does for its smallest data set.
"""

# %%
# Faces are normal; new ones are tilted by up to 15 degrees. Crops without a face are the anomalies.

import matplotlib.pyplot as plt
import numpy as np
from skimage.data import lfw_subset
from skimage.transform import rotate
from sklearn.metrics import roc_auc_score

from skmkd import MKDDetector

images = lfw_subset()
rng = np.random.default_rng(0)
X_train = images[:10]
tilted = [rotate(image, angle, mode="reflect") for image, angle in
          zip(images[10:100], rng.uniform(-15, 15, 90))]  # fmt: skip
X_test = np.concatenate([tilted, images[100:]])
y_test = np.repeat([1, -1], [90, 100])  # +1 = normal, -1 = anomaly

# %%
# A callback computes the AUROC of both detectors during training.

EPOCHS = 15
curves = {None: [], "mild": []}
for augmentation, curve in curves.items():

    def watch(detector, epoch, curve=curve):
        if epoch % 3 == 0:
            curve.append(roc_auc_score(y_test, detector.score_samples(X_test)))

    detector = MKDDetector(
        image_size=32,
        max_iter=EPOCHS,
        augmentation=augmentation,
        validation_fraction=0,
        random_state=0,
    )
    detector.fit(X_train, callback=watch)
    print(f"augmentation={augmentation!r:7} image AUROC at the end {curve[-1]:.3f}")

fig, ax = plt.subplots(layout="constrained")
for augmentation, curve in curves.items():
    ax.plot(range(3, EPOCHS + 1, 3), curve, "o-", label=f"augmentation={augmentation!r}")
ax.set(xlabel="epoch", ylabel="image AUROC")
ax.legend()
plt.show()

# %%
# Here both end alike: ten faces are enough without it. Augmentation can help only if rotated images
# are as normal as upright ones. Measure it on your own images, as here.
