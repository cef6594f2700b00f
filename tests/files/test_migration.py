from __future__ import annotations

import copy

from skmkd._files.migration import FORMAT, upgrade
from skmkd._images.tiles import Tiling

NOT_FOLDED = {"_folded": False}
NOT_KEPT = {"_score_calibration": None, "_peak_calibration": None, **NOT_FOLDED}
WHOLE = {"_tiling": Tiling(None, 0.0), "_roi": None, "_roi_of_each": False, **NOT_KEPT}
SETTINGS = {
    "offset_": {"image_score": "loss", "value_weight": 1.0},
    "map_offset_": {"localization": "gradient"},
}


def values_of(detector, **attributes):
    return {"detector": detector, "parameters": {}, "attributes": attributes, "networks": {}}


def of_today(detector, **attributes):
    """Return values as a file of a format up to 2 has them after its upgrade."""
    known = {"_cloner_precision": "float32", "_seen_pixels": None, **WHOLE}
    values = values_of(detector, **attributes, **known)
    return {**values, "parameters": {"schedule": "constant"}}


def test_score_layers_move_into_the_settings_of_both_thresholds():
    layers = ("features.9", "features.16")
    old = values_of(
        "MKDDetector", offset_=-0.5, score_layers_=layers, _layer_keys=None,
        _thresholds_hold_for=SETTINGS,
    )  # fmt: skip
    before = copy.deepcopy(old)
    assert upgrade(old, 1) == of_today(
        "MKDDetector",
        offset_=-0.5,
        _thresholds_hold_for={
            "offset_": {"image_score": "loss", "value_weight": 1.0, "score_layers": layers},
            "map_offset_": {"localization": "gradient", "score_layers": layers},
        },
    )
    assert old == before


def test_detector_saved_before_its_thresholds_were_set():
    old = values_of("MKDDetector", score_layers_=("a",), _layer_keys={"a": "0f"}, n_iter_=1)
    assert upgrade(old, 1) == of_today("MKDDetector", n_iter_=1)


def test_memkd_has_no_score_layers():
    old = values_of("MemKDDetector", _layer_keys=None, _thresholds_hold_for=SETTINGS)
    new = of_today("MemKDDetector", _thresholds_hold_for=SETTINGS)
    assert upgrade(old, 1) == new


def test_cloners_up_to_format_2_are_in_float32_and_were_trained_at_a_constant_rate():
    old = values_of("MKDDetector", precision_="bfloat16")
    new = of_today("MKDDetector", precision_="bfloat16")
    assert upgrade(old, 2) == new
    assert upgrade(new, FORMAT) == new


def test_extremes_were_not_noted_up_to_format_3():
    old = values_of("MKDDetector", _cloner_precision="bfloat16")
    new = values_of("MKDDetector", _cloner_precision="bfloat16", _seen_pixels=None)
    assert upgrade(old, 3) == {**new, "attributes": new["attributes"] | WHOLE}


def test_images_were_whole_up_to_format_4():
    old = values_of("MKDDetector", precision_="float32")
    assert upgrade(old, 4) == values_of("MKDDetector", precision_="float32", **WHOLE)


def test_calibration_scores_were_not_kept_up_to_format_5():
    old = values_of("MKDDetector", _roi=None)
    assert upgrade(old, 5) == values_of("MKDDetector", _roi=None, **NOT_KEPT)


def test_batch_norms_were_not_folded_up_to_format_6():
    old = values_of("MKDDetector", _roi=None)
    assert upgrade(old, 6) == values_of("MKDDetector", _roi=None, **NOT_FOLDED)


def test_detectors_of_an_ensemble_are_upgraded():
    member = values_of("MKDDetector", _roi=None)
    attributes = {"offset_": -0.5}
    old = {"detector": "DetectorEnsemble", "attributes": attributes, "detectors": [("a", member)]}
    new = upgrade(old, 6)
    assert new == {**old, "detectors": [("a", upgrade(member, 6))]}
    assert new["detectors"][0][1] == values_of("MKDDetector", _roi=None, **NOT_FOLDED)
