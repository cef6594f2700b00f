"""The values that parameters of the detectors may have, each and together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
from sklearn.utils._param_validation import (
    HasMethods,
    Hidden,
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from torch import nn

from skmkd._images.sizes import height_and_width
from skmkd._images.tiles import Tiling
from skmkd._maps.attribution import METHODS, OPTIONS, USED
from skmkd._runtime import ENGINES, PRECISIONS

Detector = TypeVar("Detector")

SHARED: dict[str, list[Any]] = {
    "source": [str, nn.Module],
    "source_weights": [str, os.PathLike, Mapping, None],
    "critical_layers": [
        StrOptions({"auto"}),
        Interval(Integral, 1, None, closed="left"),
        list,
        tuple,
    ],
    "normalization": [StrOptions({"source"}), None],
    "image_size": [
        StrOptions({"auto"}),
        Interval(Integral, 1, None, closed="left"),
        tuple,
        list,
    ],
    "tile_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
    "tile_overlap": [Interval(Real, 0, 0.5, closed="both")],
    "max_tiles": [Interval(Integral, 2, None, closed="left")],
    "roi": ["array-like", str, os.PathLike, None],
    "pose": [StrOptions({"fixed", "rigid"}), None],
    "image_shape": [tuple, list, None],
    "pixel_range": [StrOptions({"auto"}), tuple, list],
    "augmentation": [StrOptions({"mild"}), None],
    "max_iter": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
    "tol": [Interval(Real, 0, None, closed="left"), None],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
    "learning_rate": [Interval(Real, 0, None, closed="neither")],
    "schedule": [StrOptions({"one_cycle", "constant"})],
    "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
    "validation_fraction": [Interval(Real, 0, 1, closed="left")],
    "smoothing_sigma": [Interval(Real, 0, None, closed="left")],
    "opening_size": [Interval(Integral, 1, None, closed="left")],
    "cache": [StrOptions({"auto"}), Interval(Integral, 0, None, closed="left"), None],
    "feature_store": [str, os.PathLike, None],
    "device": [str],
    "precision": [StrOptions({"auto", *PRECISIONS})],
    "engine": [StrOptions({"auto", *ENGINES})],
    "on_error": [StrOptions({"raise", "skip"})],
    "max_pixels": [Interval(Integral, 1, None, closed="left")],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
    "memory": [Hidden(StrOptions({"deprecated"})), str, os.PathLike, HasMethods(["cache"]), None],
}

MKD: dict[str, list[Any]] = {
    **SHARED,
    "cloner": [StrOptions({"compact", "equal"}), nn.Module],
    "score_layers": [Interval(Integral, 1, None, closed="left"), list, tuple, None],
    "layer_weights": [StrOptions({"auto"}), None],
    "value_weight": [Interval(Real, 0, None, closed="left")],
    "direction_weight": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
    "direction": [StrOptions({"position", "vector"})],
    "image_score": [StrOptions({"map_max", "loss"})],
    "localization": [StrOptions(set(METHODS))],
    "localization_params": [dict, None],
}
MEMKD: dict[str, list[Any]] = {
    **SHARED,
    "paradigm": [StrOptions({"reverse", "forward"})],
    "memory_size": [Interval(Integral, 0, None, closed="left")],
    "memory_levels": [StrOptions({"auto"}), list, tuple],
    "memory_temperature": [Interval(Real, 1e-6, None, closed="left")],
    "n_exemplars": [Interval(Integral, 1, None, closed="left")],
    "exemplar_weight": [Interval(Real, 0, None, closed="left")],
    "orthogonality_weight": [Interval(Real, 0, None, closed="left")],
    "betas": [tuple, list],
}
PAPER: dict[str, Any] = {
    "layer_weights": None,
    "value_weight": 1.0,
    "direction_weight": "auto",
    "direction": "vector",
    "image_score": "loss",
    "localization": "gradient",
    "normalization": None,
    "max_iter": 200,
    "tol": 2e-2,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "schedule": "constant",
}
FINISHING = "smoothing_sigma", "opening_size"
STANDARDISED = "map_max", "discrepancy"  # the image score and the maps for objects with a pose
LOCALIZATION: dict[str, list[Any]] = {
    "through_source": ["boolean"],
    "n_samples": [Interval(Integral, 1, None, closed="left")],
    "noise": [Interval(Real, 0, None, closed="left")],
    "value": ["boolean"],
}


def unfitted(detector: Detector) -> Detector:
    """Return a shallow copy of a detector without what it has learned."""
    copied = object.__new__(type(detector))
    copied.__dict__ = {n: v for n, v in vars(detector).items() if not n.endswith("_")}
    return copied


def tiling(detector: Any) -> Tiling:
    """Return how a detector's parameters cut images into tiles."""
    if detector.tile_size is None:
        return Tiling()
    size = height_and_width(detector.tile_size, "tile_size")
    return Tiling(size, float(detector.tile_overlap))


def check_pixel_range(pixel_range: Any) -> None:
    """Check that a range is "auto" or two finite numbers in ascending order."""
    if pixel_range == "auto":
        return
    numbers = all(isinstance(value, Real) and np.isfinite(float(value)) for value in pixel_range)
    if len(pixel_range) != 2 or not numbers or not pixel_range[0] < pixel_range[1]:
        raise ValueError(
            f"pixel_range must be 'auto' or (low, high) with low < high; got {pixel_range!r}."
        )


def attribute(value: Callable[[Any], Any]) -> property:
    """Return a property that is missing where its value has an error, as `hasattr` expects."""

    def found(detector: Any) -> Any:
        try:
            return value(detector)
        except (TypeError, ValueError) as error:
            raise AttributeError(str(error)) from error

    return property(found)


def score_layers(detector: Any) -> tuple[str, ...]:
    """Return the layers that scores and maps use: the last k critical ones, some by name, or all.

    Raises
    ------
    ValueError
        If a layer is not critical, or there is none.
    """
    chosen, layers = detector.score_layers, detector.critical_layers_
    if chosen is None:
        return layers
    if isinstance(chosen, Sequence):
        scored = tuple(layer for layer in layers if layer in chosen)
        fits = 0 < len(scored) == len(chosen)
    else:
        scored, fits = layers[-chosen:], chosen <= len(layers)
    if not fits:
        raise ValueError(
            f"score_layers must be among the critical layers {layers}, each once; got {chosen}."
        )
    return scored


def check_common(detector: Any) -> None:
    """Check what the limits of single parameters cannot say, of those that all detectors have.

    Raises
    ------
    ValueError
        If `image_size` or `tile_size` has no meaning, `pose` is given for tiles, `opening_size` is
        even, or `tol` would cut a cycle short.
    """
    if detector.image_size != "auto":
        height_and_width(detector.image_size, "image_size")
    tiling(detector)
    if detector.pose is not None and detector.tile_size is not None:
        raise ValueError(
            "pose must be None with tile_size, since the object is in the whole image; got "
            f"{detector.pose!r}."
        )
    check_pixel_range(detector.pixel_range)
    if detector.opening_size % 2 == 0:
        raise ValueError(f"opening_size must be odd; got {detector.opening_size}.")
    if detector.tol is not None and detector.schedule == "one_cycle":
        raise ValueError(
            "tol must be None with schedule='one_cycle', which would be cut short; got "
            f"{detector.tol}. Use schedule='constant' to stop when the loss has converged."
        )


def check_mkd(detector: Any, method: str | None = None) -> None:
    """Check the parameters of `MKDDetector` together, for maps by a method or the default one.

    Raises
    ------
    ValueError
        If there is no such method or option in ``localization_params``, if scores or maps are of a
        term that is not learned, if a score layer is not critical, if `pose` is given for other
        scores or maps than the discrepancy's, or as in `check_common`.
    """
    check_common(detector)
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, or None; got {method!r}.")
    given = detector.localization_params or {}
    if unknown := set(given) - set(OPTIONS):
        raise ValueError(
            f"localization_params must be among {sorted(OPTIONS)}; got {sorted(unknown)}."
        )
    validate_parameter_constraints(LOCALIZATION, given, caller_name="localization_params")
    with_value = (OPTIONS | given)["value"]
    localization = method or detector.localization
    if detector.value_weight == 0 and detector.direction_weight == 0:
        raise ValueError("value_weight and direction_weight must not both be 0.")
    if detector.value_weight == 0 and with_value:
        raise ValueError(
            "localization_params={'value': True} must come with a value_weight above 0; got 0."
        )
    of_features = detector.image_score == "map_max" or localization == "discrepancy"
    if detector.direction_weight == 0 and of_features and not with_value:
        raise ValueError(
            "direction_weight must not be 0 where scores or maps are of directions alone; got 0 "
            f"with image_score={detector.image_score!r}, localization={localization!r} and without "
            "localization_params={'value': True}."
        )
    if detector.pose is not None and (detector.image_score, localization) != STANDARDISED:
        raise ValueError(
            "pose must be None unless image_score='map_max' and localization='discrepancy', whose "
            f"maps it standardises; got {detector.pose!r} with image_score="
            f"{detector.image_score!r}, localization={localization!r}."
        )
    if hasattr(detector, "critical_layers_"):
        score_layers(detector)
        then = detector._usual_terms
        if then is not None and then != (now := map_terms(detector)):
            raise ValueError(f"With pose, maps must be of {then}, as at fit; got {now}. Fit again.")


def map_terms(detector: Any) -> dict[str, Any]:
    """Return all that maps depend on and that can change after `fit`, before they are finished."""
    _, maps = detector._settings()
    return {name: maps[name] for name in maps if name not in FINISHING}


def check_memkd(detector: Any, method: str | None = None) -> None:
    """Check the parameters of `MemKDDetector` together.

    Raises
    ------
    ValueError
        If `betas` are out of range, a method is given, or as in `check_common`.
    """
    check_common(detector)
    if method is not None:
        raise ValueError(f"method must be None for MemKDDetector; got {method!r}.")
    betas = detector.betas
    if len(betas) != 2 or not all(
        isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in betas
    ):
        raise ValueError(f"betas must be two numbers from 0 to below 1; got {betas}.")


def mkd_settings(detector: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all that scores and maps depend on and that can change after `fit`."""
    options = OPTIONS | (detector.localization_params or {})
    layers = {"score_layers": score_layers(detector)}
    sigma = {"smoothing_sigma": detector.smoothing_sigma}
    loss = {"value_weight": detector.value_weight, "direction": detector.direction}
    discrepancy: dict[str, Any] = {"value": options["value"]}
    if options["value"]:
        discrepancy["value_weight"] = detector.value_weight
    scores: dict[str, Any] = {"image_score": detector.image_score, **layers}
    scores |= discrepancy | sigma if detector.image_score == "map_max" else loss
    maps = {
        "localization": detector.localization,
        "opening_size": detector.opening_size,
        **layers,
        **sigma,
    }
    if detector.localization == "discrepancy":
        return scores, maps | discrepancy
    return scores, maps | loss | {name: options[name] for name in USED[detector.localization]}
