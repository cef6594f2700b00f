"""Image anomaly detection and localization by multiresolution knowledge distillation."""

from skmkd import datasets, inspection, metrics, model_selection
from skmkd._detector import MKDDetector

__version__ = "0.1.0.dev0"

__all__ = ["MKDDetector", "__version__", "datasets", "inspection", "metrics", "model_selection"]
