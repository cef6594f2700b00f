from __future__ import annotations

import copy

from skmkd._files.migration import FORMAT, upgrade

SETTINGS = {
    "offset_": {"image_score": "loss", "value_weight": 1.0},
    "map_offset_": {"localization": "gradient"},
}


FLOAT32 = {"_cloner_precision": "float32"}  # of all cloners up to format 2


def values_of(detector, **attributes):
    return {"detector": detector, "parameters": {}, "attributes": attributes, "networks": {}}


def test_score_layers_move_into_the_settings_of_both_thresholds():
    layers = ("features.9", "features.16")
    old = values_of(
        "MKDDetector", offset_=-0.5, score_layers_=layers, _layer_keys=None,
        _thresholds_hold_for=SETTINGS,
    )  # fmt: skip
    before = copy.deepcopy(old)
    assert upgrade(old, 1) == values_of(
        "MKDDetector",
        offset_=-0.5,
        _thresholds_hold_for={
            "offset_": {"image_score": "loss", "value_weight": 1.0, "score_layers": layers},
            "map_offset_": {"localization": "gradient", "score_layers": layers},
        },
        **FLOAT32,
    )
    assert old == before


def test_detector_saved_before_its_thresholds_were_set():
    old = values_of("MKDDetector", score_layers_=("a",), _layer_keys={"a": "0f"}, n_iter_=1)
    assert upgrade(old, 1) == values_of("MKDDetector", n_iter_=1, **FLOAT32)


def test_memkd_has_no_score_layers():
    old = values_of("MemKDDetector", _layer_keys=None, _thresholds_hold_for=SETTINGS)
    new = values_of("MemKDDetector", _thresholds_hold_for=SETTINGS, **FLOAT32)
    assert upgrade(old, 1) == new


def test_cloners_up_to_format_2_are_in_float32():
    old = values_of("MKDDetector", precision_="bfloat16")
    new = values_of("MKDDetector", precision_="bfloat16", **FLOAT32)
    assert upgrade(old, 2) == new
    assert upgrade(new, FORMAT) == new
