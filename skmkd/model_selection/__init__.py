"""Model selection for detectors that are trained on normal images only.

Anomalies are the positive class of the scorers, which work with any scikit-learn outlier detector.

Examples
--------
>>> from sklearn.datasets import load_digits
>>> from sklearn.ensemble import IsolationForest
>>> from sklearn.model_selection import cross_validate
>>> from skmkd.model_selection import (
...     NormalOnlySplit, anomaly_average_precision, anomaly_roc_auc
... )
>>> X, digit = load_digits(return_X_y=True)
>>> results = cross_validate(
...     IsolationForest(random_state=0),
...     X,
...     [1 if d == 0 else -1 for d in digit],  # zeros are normal
...     scoring={"roc_auc": anomaly_roc_auc, "ap": anomaly_average_precision},
...     cv=NormalOnlySplit(3, random_state=0),
... )
>>> bool(results["test_roc_auc"].min() > 0.9)
True
"""

from skmkd.model_selection._scorers import (
    anomaly_average_precision,
    anomaly_f1_max,
    anomaly_roc_auc,
    mean_normal_score,
    neg_anomaly_fpr95,
)
from skmkd.model_selection._split import NormalOnlySplit

__all__ = [
    "NormalOnlySplit",
    "anomaly_average_precision",
    "anomaly_f1_max",
    "anomaly_roc_auc",
    "mean_normal_score",
    "neg_anomaly_fpr95",
]
