"""Watch whether the scores of recent normal images are still those that thresholds were set on.

No labels are needed, and a small share of the recent images may be anomalies.

Examples
--------
>>> import numpy as np
>>> from skmkd.monitoring import drift_test
>>> rng = np.random.default_rng(0)
>>> calibration_scores = rng.normal(size=99)
>>> drift_test(calibration_scores, rng.normal(size=50)).drifted
False
>>> drift_test(calibration_scores, rng.normal(size=50) - 1).drifted
True
"""

from skmkd.monitoring._drift import DriftResult, drift_test
from skmkd.monitoring._monitor import DriftMonitor

__all__ = ["DriftMonitor", "DriftResult", "drift_test"]
