from __future__ import annotations

import copy

import numpy as np

from skmkd._files import migration
from skmkd._files.migration import FORMAT
from skmkd._images.tiles import Tiling

NO_POSE = dict.fromkeys(("_template", "_usual_terms", "_sums_of_held", "_left_out"))
NOT_FOLDED = {"_folded": False, **NO_POSE}
NOT_KEPT = {"_score_calibration": None, "_peak_calibration": None, **NOT_FOLDED}
WHOLE = {"_tiling": Tiling(None, 0.0), "_roi": None, "_roi_of_each": False, **NOT_KEPT}
SETTINGS = {
    "offset_": {"image_score": "loss", "value_weight": 1.0},
    "map_offset_": {"localization": "gradient"},
}


def values_of(detector, **attributes):
    attributes = {"critical_layers_": ("a", "b"), **attributes}
    return {"detector": detector, "parameters": {}, "attributes": attributes, "networks": {}}


def upgraded(values, version):
    """Upgrade values; weights become a list, which can be compared."""
    return listed(migration.upgrade(values, version))


def listed(values):
    attributes = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in values["attributes"].items()
    }
    return {**values, "attributes": attributes}


def weighing_alike(detector, parameters=None, **attributes):
    """Return values of today, of a detector whose layers weigh the same."""
    values = values_of(detector, **attributes) | {"parameters": parameters or {}}
    if detector == "MKDDetector":
        values["parameters"] = {**values["parameters"], "layer_weights": None}
        values["attributes"]["layer_weights_"] = [1.0, 1.0]
    return values


def of_today(detector, **attributes):
    """Return values as a file of a format up to 2 has them after its upgrade."""
    known = {"_cloner_precision": "float32", "_seen_pixels": None, **WHOLE}
    return weighing_alike(detector, {"schedule": "constant"}, **attributes, **known)


def test_score_layers_move_into_the_settings_of_both_thresholds():
    layers = ("features.9", "features.16")
    old = values_of(
        "MKDDetector", offset_=-0.5, score_layers_=layers, _layer_keys=None,
        _thresholds_hold_for=SETTINGS,
    )  # fmt: skip
    before = copy.deepcopy(old)
    assert upgraded(old, 1) == of_today(
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
    assert upgraded(old, 1) == of_today("MKDDetector", n_iter_=1)


def test_memkd_has_no_score_layers():
    old = values_of("MemKDDetector", _layer_keys=None, _thresholds_hold_for=SETTINGS)
    new = of_today("MemKDDetector", _thresholds_hold_for=SETTINGS)
    assert upgraded(old, 1) == new


def test_cloners_up_to_format_2_are_in_float32_and_were_trained_at_a_constant_rate():
    old = values_of("MKDDetector", precision_="bfloat16")
    new = of_today("MKDDetector", precision_="bfloat16")
    assert upgraded(old, 2) == new
    assert upgraded(new, FORMAT) == new


def test_extremes_were_not_noted_up_to_format_3():
    old = values_of("MKDDetector", _cloner_precision="bfloat16")
    known = {"_cloner_precision": "bfloat16", "_seen_pixels": None}
    assert upgraded(old, 3) == weighing_alike("MKDDetector", **known, **WHOLE)


def test_images_were_whole_up_to_format_4():
    old = values_of("MKDDetector", precision_="float32")
    assert upgraded(old, 4) == weighing_alike("MKDDetector", precision_="float32", **WHOLE)


def test_calibration_scores_were_not_kept_up_to_format_5():
    old = values_of("MKDDetector", _roi=None)
    assert upgraded(old, 5) == weighing_alike("MKDDetector", _roi=None, **NOT_KEPT)


def test_batch_norms_were_not_folded_up_to_format_6():
    old = values_of("MKDDetector", _roi=None)
    assert upgraded(old, 6) == weighing_alike("MKDDetector", _roi=None, **NOT_FOLDED)


def test_layers_weighed_alike_up_to_format_7():
    old = values_of("MKDDetector", _roi=None)
    assert upgraded(old, 7) == weighing_alike("MKDDetector", _roi=None, **NO_POSE)
    memkd = values_of("MemKDDetector", _roi=None)
    assert upgraded(memkd, 7) == values_of("MemKDDetector", _roi=None, **NO_POSE)


def test_objects_had_no_pose_up_to_format_8():
    old = values_of("MemKDDetector", _roi=None)
    assert upgraded(old, 8) == values_of("MemKDDetector", _roi=None, **NO_POSE)


def test_detectors_of_an_ensemble_are_upgraded():
    member = values_of("MKDDetector", _roi=None)
    attributes = {"offset_": -0.5}
    old = {"detector": "DetectorEnsemble", "attributes": attributes, "detectors": [("a", member)]}
    new = upgraded(old, 6)
    assert new["attributes"] == attributes
    ((name, upgraded_member),) = new["detectors"]
    assert name == "a"
    assert listed(upgraded_member) == weighing_alike("MKDDetector", _roi=None, **NOT_FOLDED)
