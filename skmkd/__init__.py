"""Image anomaly detection and localization by multiresolution knowledge distillation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skmkd._version import __version__

if TYPE_CHECKING:
    from skmkd import datasets, distributed, inspection, metrics, model_selection, monitoring
    from skmkd._ensemble import DetectorEnsemble
    from skmkd._export.exported import ExportedDetector, load_exported
    from skmkd._loading import load
    from skmkd._memkd import MemKDDetector
    from skmkd._mkd import MKDDetector
    from skmkd._regions import regions

MODULES = {  # of what is imported when it is first used, since exported detectors need no torch
    "DetectorEnsemble": "_ensemble",
    "ExportedDetector": "_export.exported",
    "MKDDetector": "_mkd",
    "MemKDDetector": "_memkd",
    "load": "_loading",
    "load_exported": "_export.exported",
    "regions": "_regions",
}

__all__ = [
    "DetectorEnsemble",
    "ExportedDetector",
    "MKDDetector",
    "MemKDDetector",
    "__version__",
    "datasets",
    "distributed",
    "inspection",
    "load",
    "load_exported",
    "metrics",
    "model_selection",
    "monitoring",
    "regions",
]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        value = getattr(import_module(f"skmkd.{MODULES[name]}"), name)
    elif name in __all__:
        value = import_module(f"skmkd.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
