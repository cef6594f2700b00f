"""The file format, and how values of older formats become those of the current one."""

from __future__ import annotations

from typing import Any

import numpy as np

from skmkd._images.tiles import Tiling

FORMAT = 9  # raised whenever what a file holds, or its meaning, changes


def upgrade(values: dict[str, Any], version: int) -> dict[str, Any]:
    """Return the values of a file of any earlier format as the current one has them."""
    if "detectors" in values:  # an ensemble's
        members = [(name, upgrade(member, version)) for name, member in values["detectors"]]
        return {**values, "detectors": members}
    for step in STEPS[version - 1 :]:
        values = step(values)
    return values


def _from_format_1(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file of format 1 as format 2 has them.

    The attribute `_layer_keys` is gone, and `score_layers_` of an `MKDDetector` is derived from
    its parameter; the settings that a threshold was set with name the score layers instead.
    """
    attributes = {n: v for n, v in values["attributes"].items() if n != "_layer_keys"}
    if values["detector"] == "MKDDetector":
        layers = attributes.pop("score_layers_")
        if "_thresholds_hold_for" in attributes:  # not in a detector saved by a callback of fit
            attributes["_thresholds_hold_for"] = {
                threshold: {**settings, "score_layers": layers}
                for threshold, settings in attributes["_thresholds_hold_for"].items()
            }
    return {**values, "attributes": attributes}


def _from_format_2(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file of format 2 as format 3 has them.

    The cloner was always computed in float32, and trained at a constant learning rate.
    """
    return {
        **values,
        "parameters": {**values["parameters"], "schedule": "constant"},
        "attributes": {**values["attributes"], "_cloner_precision": "float32"},
    }


def _from_format_3(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file of format 3 as format 4 has them.

    The extremes of the training images' pixels were not noted.
    """
    return {**values, "attributes": {**values["attributes"], "_seen_pixels": None}}


def _from_format_4(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file of format 4 as format 5 has them.

    Images were taken as a whole.
    """
    whole = {"_tiling": Tiling(), "_roi": None, "_roi_of_each": False}
    return {**values, "attributes": {**values["attributes"], **whole}}


def _from_format_5(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file of format 5 as format 6 has them.

    The scores of calibration images were not kept.
    """
    kept = {"_score_calibration": None, "_peak_calibration": None}
    return {**values, "attributes": {**values["attributes"], **kept}}


def _from_format_6(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file of format 6 as format 7 has them.

    Batch norms of cloners were not folded, which rounds otherwise in bfloat16.
    """
    return {**values, "attributes": {**values["attributes"], "_folded": False}}


def _from_format_7(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file of format 7 as format 8 has them.

    All layers of an `MKDDetector` counted alike in maps.
    """
    if values["detector"] != "MKDDetector":
        return values
    alike = np.ones(len(values["attributes"]["critical_layers_"]))
    return {
        **values,
        "parameters": {**values["parameters"], "layer_weights": None},
        "attributes": {**values["attributes"], "layer_weights_": alike},
    }


def _from_format_8(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file of format 8 as format 9 has them.

    Objects had no pose.
    """
    none = dict.fromkeys(("_template", "_usual_terms", "_sums_of_held", "_left_out"))
    return {**values, "attributes": {**values["attributes"], **none}}


STEPS = (
    _from_format_1, _from_format_2, _from_format_3, _from_format_4, _from_format_5, _from_format_6,
    _from_format_7, _from_format_8,
)  # fmt: skip
