"""
==================================================
Which localization method is best?
==================================================

Four localization methods of one fitted detector, compared by pixel metrics. The detector has the
paper's setting, for which the three gradient methods are meant; the defects are synthetic.
"""

# %%

import matplotlib.pyplot as plt
import numpy as np
from skimage import data

from skmkd import MKDDetector
from skmkd.datasets import make_defects
from skmkd.metrics import aupro_score, pixel_roc_auc_score

SIDE = 64

windows = np.lib.stride_tricks.sliding_window_view(data.brick(), (SIDE, SIDE))[::32, ::32]
X_train = windows[:, :7].reshape(-1, SIDE, SIDE)
good = windows[::2, 9::2].reshape(-1, SIDE, SIDE)
bad, masks = make_defects(good, random_state=0)

detector = MKDDetector.paper(
    image_size=SIDE, batch_size=16, max_iter=10, tol=None, smoothing_sigma=2, validation_fraction=0,
    random_state=0,
    localization_params={"n_samples": 8},
).fit(X_train)  # fmt: skip

# %%
# ``method`` overrides the parameter ``localization`` for one call.

methods = ["discrepancy", "gradient", "smooth_grad", "guided_backprop"]
maps = {method: detector.localize(bad, method=method) for method in methods}
for method in methods:
    auroc, aupro = pixel_roc_auc_score(masks, maps[method]), aupro_score(masks, maps[method])
    print(f"{method:16} pixel AUROC {auroc:.3f}   AUPRO {aupro:.3f}")

# %%
# Four defects. The maps of a method share a colour scale, which ends at their 99.5th percentile.

shown = range(0, len(bad), len(bad) // 4 + 1)
fig, axes = plt.subplots(len(shown), 6, figsize=(10, 7), layout="constrained")
for row, i in enumerate(shown):
    axes[row, 0].imshow(bad[i], cmap="gray")
    axes[row, 1].imshow(masks[i], cmap="gray")
    for column, method in enumerate(methods, start=2):
        top = np.quantile(maps[method], 0.995)
        axes[row, column].imshow(maps[method][i], cmap="magma", vmin=0, vmax=top)
for ax, title in zip(axes[0], ["image", "defect", *methods]):
    ax.set_title(title, fontsize=10)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
plt.show()
