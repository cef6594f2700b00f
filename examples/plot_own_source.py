"""
===================================
Can I use my own source network?
===================================

Any convolutional network that takes images (n, 3, H, W) can be the source. Here it is a small one
without any training: fixed Gabor filters, which detect oriented edges.
"""

# %%
# The absolute responses of twelve Gabor filters, pooled twice: an edge detector at two scales.

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage import data
from skimage.filters import gabor_kernel
from sklearn.metrics import roc_auc_score
from torch import nn

from skmkd import MKDDetector
from skmkd.datasets import make_defects
from skmkd.inspection import LocalizationDisplay

SIDE = 64


class Edges(nn.Module):
    def __init__(self):
        super().__init__()
        kernels = [
            part(gabor_kernel(0.25, theta=np.pi * i / 6, n_stds=2)) for i in range(6)
            for part in (np.real, np.imag)
        ]  # fmt: skip
        size = max(max(kernel.shape) for kernel in kernels)
        bank = np.zeros((12, 3, size, size), dtype=np.float32)
        for i, kernel in enumerate(kernels):
            top, left = ((size - side) // 2 for side in kernel.shape)
            bank[i, :, top : top + kernel.shape[0], left : left + kernel.shape[1]] = kernel / 3
        self.filters = nn.Conv2d(3, 12, size, padding=size // 2, bias=False)
        self.filters.weight.data = torch.from_numpy(bank)
        self.fine, self.coarse = nn.MaxPool2d(2), nn.AvgPool2d(4)

    def forward(self, images):
        return self.coarse(self.fine(self.filters(images).abs()))


# %%
# ``critical_layers`` names the layers to compare; for VGG-16 "auto" finds those where the
# resolution is halved. The network is copied and never modified.

windows = np.lib.stride_tricks.sliding_window_view(data.brick(), (SIDE, SIDE))[::32, ::32]
X_train = windows[:, :7].reshape(-1, SIDE, SIDE)
good = windows[::2, 9::2].reshape(-1, SIDE, SIDE)
bad, masks = make_defects(good, random_state=0)
y = np.repeat([1, -1], len(good))  # +1 = normal, -1 = anomaly

settings = {"validation_fraction": 0, "image_size": SIDE, "smoothing_sigma": 2, "random_state": 0}
for source in (Edges(), "vgg16"):
    layers = ["fine", "coarse"] if isinstance(source, Edges) else "auto"
    detector = MKDDetector(source=source, critical_layers=layers, **settings).fit(X_train)
    auroc = roc_auc_score(y, detector.score_samples(np.concatenate([good, bad])))
    print(f"{type(source).__name__ if isinstance(source, Edges) else source}: {auroc:.3f}")
    if isinstance(source, Edges):
        LocalizationDisplay.from_estimator(detector, bad[:6], masks[:6])

plt.show()
