"""
=======================================================
Which weight, which layers? A grid search
=======================================================

Faces are normal, crops without a face are anomalies. A grid search over the weight λ of the
direction discrepancy and over the critical layers trains on faces only and evaluates on both. λ
matters only with the value discrepancy, which the paper's setting has and the default does not.
"""

# %%
# The images come with scikit-image: a hundred faces and a hundred other crops. Half of them are for
# the search, the others for the final test.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
from skimage.data import lfw_subset
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split

from skmkd import MKDDetector
from skmkd.model_selection import NormalOnlySplit, anomaly_roc_auc

images, y = lfw_subset(), np.repeat([1, -1], 100)  # +1 = normal, -1 = anomaly
X, X_test, y, y_test = train_test_split(images, y, test_size=0.5, stratify=y, random_state=0)

# %%
# ``feature_store`` stores the source's features on disk, so that all candidates and folds share
# them. The splitter keeps anomalies out of the training folds; ``refit=False``, since scikit-learn
# would refit on them.

detector = MKDDetector.paper(
    image_size=32, batch_size=8, max_iter=6, tol=None, validation_fraction=0, random_state=0
)
weights, layers = [0.1, 1.0, 10.0], [1, 2, 4]
with tempfile.TemporaryDirectory() as folder:
    search = GridSearchCV(
        clone(detector).set_params(feature_store=folder),
        {"direction_weight": weights, "critical_layers": layers},
        scoring=anomaly_roc_auc,
        cv=NormalOnlySplit(2, random_state=0),
        refit=False,
    ).fit(X, y)

best = clone(detector).set_params(**search.best_params_).fit(X[y == 1])
print("best:", search.best_params_)
print(f"image AUROC in the search {search.best_score_:.3f}")
print(f"image AUROC on the test set {roc_auc_score(y_test, best.score_samples(X_test)):.3f}")

# %%
# The score of each candidate.

scores = search.cv_results_["mean_test_score"].reshape(len(layers), len(weights))
fig, ax = plt.subplots(layout="constrained")
picture = ax.imshow(scores, cmap="viridis")
for (row, column), score in np.ndenumerate(scores):
    shade = "black" if score > scores.mean() else "white"
    ax.text(column, row, f"{score:.3f}", ha="center", va="center", color=shade)
ax.set_xticks(range(len(weights)), weights)
ax.set_yticks(range(len(layers)), [f"last {n}" for n in layers])
ax.set(xlabel="direction_weight (λ)", ylabel="critical_layers")
fig.colorbar(picture, label="image AUROC in cross-validation")
plt.show()
