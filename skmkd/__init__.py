"""Image anomaly detection and localization by multiresolution knowledge distillation."""

from skmkd import datasets, inspection, metrics, model_selection, monitoring
from skmkd._ensemble import DetectorEnsemble
from skmkd._loading import load
from skmkd._memkd import MemKDDetector
from skmkd._mkd import MKDDetector
from skmkd._regions import regions
from skmkd._version import __version__

__all__ = [
    "DetectorEnsemble",
    "MKDDetector",
    "MemKDDetector",
    "__version__",
    "datasets",
    "inspection",
    "load",
    "metrics",
    "model_selection",
    "monitoring",
    "regions",
]
