"""
=============================================
Which digits are not threes?
=============================================

One class is normal and all others are anomalies, as in the paper's first tables; here with
scikit-learn's small digits.
"""

# %%

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from skmkd import MKDDetector

NORMAL = 3

X, digit = load_digits(return_X_y=True)
X = X.reshape(-1, 8, 8) / 16
inside = X[digit == NORMAL]
X_train, X_good = inside[::2], inside[1::2]
X_test = np.concatenate([X_good, X[digit != NORMAL]])
digit_test = np.concatenate([np.full(len(X_good), NORMAL), digit[digit != NORMAL]])

detector = MKDDetector(image_size=32, validation_fraction=0, random_state=0)
scores = detector.fit(X_train).score_samples(X_test)
auroc = roc_auc_score(digit_test == NORMAL, scores)
print(f"trained on {len(X_train)} threes; image AUROC {auroc:.3f}")

# %%
# Scores by digit, and the images with the highest and the lowest scores.

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.boxplot([scores[digit_test == d] for d in range(10)], orientation="horizontal")
left.set_yticks(range(1, 11), range(10))
left.set(xlabel="score (higher = more normal)", ylabel="digit", title=f"image AUROC {auroc:.3f}")
order = np.argsort(-scores)
rows = [np.hstack(X_test[order[i * 8 : i * 8 + 8]]) for i in (0, 1)]
rows += [np.hstack(X_test[order[len(order) - 16 + i * 8 :][:8]]) for i in (0, 1)]
right.imshow(np.vstack(rows), cmap="gray")
right.axhline(15.5, color="tab:orange", linewidth=3)
right.set(xticks=[], yticks=[], title="most normal (top), least normal (bottom)")
plt.show()
