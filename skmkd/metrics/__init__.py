"""Metrics of localization maps: `(masks, maps)` take the place of `(y_true, y_score)`."""

from skmkd.metrics._per_region_overlap import aupro_score, per_region_overlap_curve
from skmkd.metrics._pixelwise import (
    pixel_average_precision_score,
    pixel_f1_max_score,
    pixel_roc_auc_score,
)

__all__ = [
    "aupro_score",
    "per_region_overlap_curve",
    "pixel_average_precision_score",
    "pixel_f1_max_score",
    "pixel_roc_auc_score",
]
