"""Thresholds of anomaly scores, from training images or from held-out normal images."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from math import ceil, floor
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skmkd._features.batches import Dataset
from skmkd._images.images import Images
from skmkd._images.inputs import ImagesLike
from skmkd._images.roi import RoiLike
from skmkd._maps.finishing import Maps
from skmkd._training import divergence

MAP_THRESHOLD_IMAGES = 256  # training images, evenly spaced, whose maps set map_offset_


def training_threshold(anomaly: ArrayLike, contamination: float) -> float:
    """Return the quantile of anomaly scores that a share `contamination` of them exceeds."""
    return -float(np.quantile(-np.asarray(anomaly), contamination))


def check_fpr(fpr: float, n: int, name: str = "X") -> None:
    """Check that `fpr` is in (0, 1) and that n held-out images are enough for it.

    Parameters
    ----------
    fpr : float
        False-positive rate.
    n : int
        Number of held-out images; at least ``1 / fpr - 1`` are needed.
    name : str, default="X"
        Name of the parameter that holds the images, for the error message.

    Raises
    ------
    ValueError
        If `fpr` is out of range or n too small.
    """
    if not isinstance(fpr, Real) or not 0 < fpr < 1:
        raise ValueError(f"fpr must be a float between 0 and 1, both excluded; got {fpr!r}.")
    if n_above(fpr, n) == 0:
        enough = ceil(1 / fpr) - 1
        raise ValueError(f"{name} must hold at least {enough} images for fpr={fpr}; got {n}.")


def n_above(fpr: float, n: int) -> int:
    """Return the number of held-out images, of n, that score at or above the threshold."""
    return floor((n + 1) * fpr * (1 + 1e-12))  # against rounding: 20 * 0.05 must give 1


def conformal_threshold(anomaly: ArrayLike, fpr: float) -> float:
    """Return the ``ceil((n + 1) * (1 - fpr))``-th smallest of n held-out anomaly scores.

    The score of a new normal image, if exchangeable with these, exceeds it with a probability of
    at most fpr (split conformal prediction; Vovk et al., Algorithmic Learning in a Random World,
    2005).
    """
    ordered = np.sort(anomaly)
    return float(ordered[-n_above(fpr, len(ordered))])


class ThresholdMixin(BaseEstimator, ABC):
    """Thresholds of scores and maps, and the labels and masks that they give."""

    @abstractmethod
    def _settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return all that scores and maps depend on and that can change after `fit`."""

    def _set_training_thresholds(self, images: Images, dataset: Dataset | None) -> None:
        """Set the thresholds that the allowed share of training images exceeds."""
        scores = [o.score for o in self._outputs(images, maps=False, dataset=dataset)]
        if not np.isfinite(scores).all():
            raise ValueError(divergence(self.n_iter_, self.learning_rate))
        chosen = np.linspace(0, len(images) - 1, min(len(images), MAP_THRESHOLD_IMAGES))
        outputs = self._outputs(
            images, scores=False, dataset=dataset, indices=chosen.astype(int).tolist()
        )
        maxima = [float(np.max(o.map)) for o in outputs]
        self._set_offsets(
            -training_threshold(-np.array(scores), self.contamination),
            training_threshold(maxima, self.contamination),
        )

    def _set_offsets(self, offset: float, map_offset: float) -> None:
        self.offset_, self.map_offset_ = offset, map_offset
        settings = dict(zip(("offset_", "map_offset_"), self._settings(), strict=True))
        self._thresholds_hold_for = copy.deepcopy(settings)

    def calibrate(self, X: ImagesLike, *, fpr: float = 0.05, roi: RoiLike = None) -> Self:
        """Set both thresholds from normal images that were held out of `fit`.

        The cloner fits its training images better than new ones, so the thresholds of `fit` raise
        more false alarms on new images than `contamination` says: in a benchmark with `MKDDetector`
        and images of 32 px, 60 % instead of 5 % after training on 100 images, and 26 % after 500.
        The thresholds set here raise false alarms on at most a share `fpr` of new normal images, on
        average over calibration sets (4.9 % and 4.8 % in that benchmark).

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            At least ``1 / fpr - 1`` normal images, as in `score_samples`.
        fpr : float in (0, 1), default=0.05
            False-positive rate, as a share of normal images.
        roi : region or list of n regions, default=None
            As in `score_samples`.

        Returns
        -------
        self : object
            The detector, with ``offset_`` the negative of the ``ceil((n + 1) * (1 - fpr))``-th
            smallest anomaly score, and ``map_offset_`` likewise of the maxima of the maps.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If `fpr` is out of range, or X is not as described or too small for it.
        """
        images = self._check_images(X, roi=roi)
        if self.on_error == "skip":
            images = images.usable()
        check_fpr(fpr, len(images))
        outputs = [(o.score, np.max(o.map)) for o in self._outputs(images)]
        scores, maxima = np.array(outputs, dtype=np.float64).T
        self._set_offsets(-conformal_threshold(-scores, fpr), conformal_threshold(maxima, fpr))
        return self

    def decision_function(self, X: ImagesLike, *, roi: RoiLike = None) -> np.ndarray:
        """Compute the signed distance of each score to the threshold.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.
        roi : region or list of n regions, default=None
            As in `score_samples`.

        Returns
        -------
        decision : ndarray of shape (n,), float64
            ``score_samples(X) - offset_``: higher = more normal, negative = anomaly.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X is not as described, or parameters that scores depend on were changed since
            ``offset_`` was set.
        """
        threshold = self._threshold("offset_")
        return self.score_samples(X, roi=roi) - threshold

    def predict(self, X: ImagesLike, *, roi: RoiLike = None) -> np.ndarray:
        """Classify images as normal or anomalous.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.
        roi : region or list of n regions, default=None
            As in `score_samples`.

        Returns
        -------
        labels : ndarray of shape (n,), int
            +1 for normal images, -1 for anomalies and for images without a score.
        """
        return np.where(self.decision_function(X, roi=roi) >= 0, 1, -1)  # NaN is not normal

    def predict_mask(self, X: ImagesLike, *, roi: RoiLike = None) -> Maps:
        """Mark the anomalous pixels of each image.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.
        roi : region or list of n regions, default=None
            As in `score_samples`.

        Returns
        -------
        masks : ndarray of shape (n, H, W), or list of n ndarrays of shape (H, W); bool
            Where the localization map exceeds ``map_offset_``: True = anomalous. All True for a
            file that cannot be read where ``on_error="skip"``.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X is not as described, or the parameters that make maps were changed since
            ``map_offset_`` was set.
        """
        threshold = self._threshold("map_offset_")
        maps = self.localize(X, roi=roi)
        if isinstance(maps, list):
            return [~(single <= threshold) for single in maps]
        return ~(maps <= threshold)

    def _threshold(self, name: str) -> float:
        """Return a threshold, if it holds for the scores or maps of the current parameters."""
        check_is_fitted(self, name)
        self._validate_params()
        self._check_options()
        score_settings, map_settings = self._settings()
        now = score_settings if name == "offset_" else map_settings
        if now != (then := self._thresholds_hold_for[name]):
            raise ValueError(
                f"{name} was set for the parameters {then}; they are now {now}. Call calibrate or "
                "fit again."
            )
        return getattr(self, name)
