"""The file format, and how values of older formats become those of the current one."""

from __future__ import annotations

from typing import Any

FORMAT = 2  # raised whenever what a file holds, or its meaning, changes


def from_format_1(values: dict[str, Any]) -> dict[str, Any]:
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
