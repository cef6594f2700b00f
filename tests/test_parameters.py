from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.utils._param_validation import validate_parameter_constraints

from skmkd import MemKDDetector, MKDDetector
from skmkd._images.tiles import Tiling
from skmkd._maps.attribution import METHODS, OPTIONS
from skmkd._parameters import (
    LOCALIZATION,
    MEMKD,
    MKD,
    check_memkd,
    check_mkd,
    score_layers,
    tiling,
)

# Each parameter alone


@pytest.mark.parametrize(("detector", "constraints"), [(MKDDetector, MKD), (MemKDDetector, MEMKD)])
def test_defaults_are_allowed(detector, constraints):
    defaults = detector().get_params(deep=False)
    assert set(defaults) == set(constraints)
    validate_parameter_constraints(constraints, defaults, caller_name="detector")
    assert set(LOCALIZATION) == set(OPTIONS)
    validate_parameter_constraints(LOCALIZATION, OPTIONS, caller_name="localization_params")


BOUNDS = {
    "image_size": ([1, (8, 9), [8, 9]], [0, 2.5, "8", None]),
    "max_iter": ([1, np.int64(3)], [0, 1.5, None]),
    "tol": ([0, 0.1, None], [-1e-9, "auto"]),
    "n_iter_no_change": ([1], [0, 2.5]),
    "batch_size": ([1], [0, 2.5]),
    "learning_rate": ([1e-9, 3], [0, -1.0, None]),
    "contamination": (["auto", 1e-9, 0.5], [0, 0.5001, "some"]),
    "validation_fraction": ([0, 0.99], [-0.1, 1, None]),
    "tile_size": ([None, 1, (3, 4), [3, 4]], [0, "auto", 1.5]),
    "tile_overlap": ([0, 0.5], [-0.1, 0.51]),
    "max_tiles": ([2], [1, None]),
    "smoothing_sigma": ([0, 2.5], [-0.1, None]),
    "opening_size": ([1, 3], [0, 2.5]),
    "cache": (["auto", 0, 10**12, None], [-1, 0.5, "all"]),
    "feature_store": (["folder", None], [1]),
    "critical_layers": (["auto", 1, ["a"], ("a",)], [0, "a", None]),
    "normalization": (["source", None], ["imagenet"]),
    "augmentation": (["mild", None], ["wild"]),
    "precision": (["auto", "float32", "bfloat16"], ["float16", None]),
    "on_error": (["raise", "skip"], ["ignore"]),
    "source": (["vgg16"], [16, None]),
    "source_weights": (["auto", None, {}], [1]),
}
OF_MKD = {
    "score_layers": ([1, ["a"], ("a",), None], [0, "a", 1.5]),
    "value_weight": ([0, 2.5], [-1e-9, "auto", None]),
    "direction_weight": ([0, 2.5, "auto"], [-1e-9, "equal", None]),
    "direction": (["position", "vector"], ["channel"]),
    "image_score": (["map_max", "loss"], ["mean"]),
    "localization": (METHODS, ["gradcam", None]),
    "localization_params": ([None, {}], ["value", []]),
    "cloner": (["compact", "equal"], ["tiny", None]),
}
OF_MEMKD = {
    "paradigm": (["reverse", "forward"], ["sideways"]),
    "memory_size": ([0, 50], [-1, 2.5]),
    "memory_levels": (["auto", [], [1], (1,)], [1, "all"]),
    "memory_temperature": ([1e-6, 2], [0, -1]),
    "n_exemplars": ([1], [0, 2.5]),
    "exemplar_weight": ([0, 2.5], [-1e-9]),
    "orthogonality_weight": ([0, 2.5], [-1e-9]),
    "betas": ([(0.5, 0.9), [0.5, 0.9]], [0.5]),
}
OF_OPTIONS = {
    "through_source": ([True, np.False_], [None, "yes"]),
    "n_samples": ([1], [0, 2.5]),
    "noise": ([0, 0.5], [-0.1, "a"]),
    "value": ([True, False], [None]),
}
ALL_BOUNDS = [
    (constraints, name, *values)
    for constraints, bounds in (
        (MKD, BOUNDS | OF_MKD), (MEMKD, BOUNDS | OF_MEMKD), (LOCALIZATION, OF_OPTIONS)
    )
    for name, values in bounds.items()
]  # fmt: skip


@pytest.mark.parametrize(
    ("constraints", "name", "good", "bad"), ALL_BOUNDS, ids=[bound[1] for bound in ALL_BOUNDS]
)
def test_limits_of_a_parameter(constraints, name, good, bad):
    for value in good:
        validate_parameter_constraints(constraints, {name: value}, caller_name="detector")
    for value in bad:
        with pytest.raises(ValueError, match=f"'{name}' parameter of detector") as raised:
            validate_parameter_constraints(constraints, {name: value}, caller_name="detector")
        assert str(raised.value).endswith(f"Got {value!r} instead.")


def test_tiling_of_either_kind():
    parameters = SimpleNamespace(tile_size=None, tile_overlap=0.25)
    assert tiling(parameters) == Tiling(None, 0.0)
    parameters.tile_size = 32
    assert tiling(parameters) == Tiling((32, 32), 0.25)
    parameters.tile_size = [16, 24]
    assert tiling(parameters) == Tiling((16, 24), 0.25)


# Layers of scores


def with_layers(chosen, layers=("a", "b", "c")):
    return SimpleNamespace(score_layers=chosen, critical_layers_=layers)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, ("a", "b", "c")),
        (1, ("c",)),
        (2, ("b", "c")),
        (3, ("a", "b", "c")),
        (["b"], ("b",)),
        (("c", "a"), ("a", "c")),  # in the order of the critical layers
    ],
)
def test_score_layers(chosen, expected):
    assert score_layers(with_layers(chosen)) == expected


@pytest.mark.parametrize("chosen", [4, 99, [], ["d"], ["a", "d"], ["a", "a"]], ids=str)
def test_bad_score_layers(chosen):
    with pytest.raises(ValueError, match=r"score_layers must .*\('a', 'b', 'c'\)") as raised:
        score_layers(with_layers(chosen))
    assert str(raised.value).endswith(f"got {chosen}.")


def test_score_layers_of_a_detector_that_is_not_fitted():
    assert not hasattr(MKDDetector(), "score_layers_")
    check_mkd(MKDDetector(score_layers=99))  # nothing to compare with


def test_score_layers_of_a_fitted_detector_are_checked():
    detector = MKDDetector(score_layers=3)
    detector.critical_layers_, detector._usual_terms = ("a", "b"), None
    with pytest.raises(ValueError, match="score_layers must be among .*; got 3"):
        check_mkd(detector)
    with pytest.raises(AttributeError, match="score_layers must be among .*; got 3"):
        _ = detector.score_layers_
    assert "score_layers_" not in dir(detector)
    check_mkd(detector.set_params(score_layers=2))


# Parameters of MKDDetector together

VALUE = {"localization_params": {"value": True}}
NO_DIRECTION = {"direction_weight": 0, "value_weight": 1.0}


@pytest.mark.parametrize(
    ("parameters", "method"),
    [
        ({}, None),
        ({"value_weight": 1.0} | VALUE, None),
        (NO_DIRECTION | VALUE, None),
        (NO_DIRECTION | {"image_score": "loss", "localization": "gradient"}, None),
        (NO_DIRECTION | {"image_score": "loss"}, "gradient"),
        (NO_DIRECTION | {"image_score": "loss", "localization": "gradient"} | VALUE, "discrepancy"),
        ({"value_weight": 0, "direction_weight": "auto"}, None),
        ({"localization_params": {"n_samples": 1, "noise": 0, "through_source": True}}, None),
    ],
    ids=str,
)
def test_parameters_of_mkd_that_fit_together(parameters, method):
    check_mkd(MKDDetector(**parameters), method)


@pytest.mark.parametrize(
    ("parameters", "method", "message"),
    [
        ({"direction_weight": 0}, None, "value_weight and direction_weight must not both be 0"),
        (VALUE, None, r"localization_params=\{'value': True\} must come with .*got 0"),
        (NO_DIRECTION, None, "scores or maps are of directions alone; got 0 with image_score"),
        (NO_DIRECTION | {"image_score": "loss"}, None, "directions alone.*'loss'.*'discrepancy'"),
        (NO_DIRECTION | {"localization": "gradient"}, None, "alone.*'map_max'.*'gradient'"),
        (
            NO_DIRECTION | {"image_score": "loss", "localization": "gradient"}, "discrepancy",
            "directions alone.*'loss', localization='discrepancy'",
        ),
        ({}, "gradcam", "method must be one of discrepancy, .*or None; got 'gradcam'"),
        ({"opening_size": 2}, None, "opening_size must be odd; got 2"),
        ({"image_size": (8, 8, 8)}, None, r"image_size must be .*got \(8, 8, 8\)"),
        ({"localization_params": {"zz": 1}}, None, r"must be among \[.*'value'\]; got \['zz'\]"),
        (
            {"localization_params": {"n_samples": 0}}, None,
            "'n_samples' parameter of localization_params .* Got 0",
        ),
        (
            {"localization_params": {"noise": "a"}}, None,
            "'noise' parameter of localization_params .* Got 'a'",
        ),
        ({"localization_params": {"value": None}}, None, "'value' parameter of localization_param"),
    ],
    ids=str,
)  # fmt: skip
def test_parameters_of_mkd_that_do_not_fit_together(parameters, method, message):
    with pytest.raises(ValueError, match=message):
        check_mkd(MKDDetector(**parameters), method)


# Parameters of MemKDDetector together


@pytest.mark.parametrize("betas", [(0, 0), (0.5, 0.999), [0.5, 0.999]], ids=str)
def test_betas(betas):
    check_memkd(MemKDDetector(betas=betas))


@pytest.mark.parametrize(
    "betas", [(0.5,), (0.5, 0.9, 0.9), (0.5, 1), (-0.1, 0.9), (0.5, "a"), (0.5, None)], ids=str
)
def test_bad_betas(betas):
    with pytest.raises(ValueError, match="betas must be two numbers from 0 to below 1") as raised:
        check_memkd(MemKDDetector(betas=betas))
    assert str(raised.value).endswith(f"got {betas}.")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"opening_size": 4}, "opening_size must be odd; got 4"),
        ({"image_size": (8,)}, "image_size"),
    ],
)
def test_parameters_that_all_detectors_have_are_checked_for_memkd(parameters, message):
    with pytest.raises(ValueError, match=message):
        check_memkd(MemKDDetector(**parameters))
