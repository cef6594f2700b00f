"""Displays of detectors and of their output. They need matplotlib, imported when they draw."""

from skmkd.inspection._localization_display import LocalizationDisplay
from skmkd.inspection._loss_curve_display import LossCurveDisplay
from skmkd.inspection._per_region_overlap_display import PerRegionOverlapDisplay
from skmkd.inspection._score_display import ScoreDisplay

__all__ = [
    "LocalizationDisplay",
    "LossCurveDisplay",
    "PerRegionOverlapDisplay",
    "ScoreDisplay",
]
