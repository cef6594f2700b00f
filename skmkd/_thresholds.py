"""Thresholds of anomaly scores, from training images or from held-out normal images."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skmkd._conformal import Calibration, check_fpr, held_out
from skmkd._features.batches import Dataset, evenly_spaced
from skmkd._images.checks import check_images
from skmkd._images.images import Images
from skmkd._images.inputs import ImagesLike
from skmkd._images.roi import RoiLike, as_roi
from skmkd._maps.finishing import Maps
from skmkd._runtime import draw_seed, uninterrupted
from skmkd._training import divergence
from skmkd._warnings import warn

FPR = 0.05  # false-positive rate of thresholds, if nothing else is said
MAP_THRESHOLD_IMAGES = 256  # training images, evenly spaced, whose maps set map_offset_


def training_threshold(anomaly: ArrayLike, contamination: float) -> float:
    """Return the quantile of anomaly scores that a share `contamination` of them exceeds."""
    return -float(np.quantile(-np.asarray(anomaly), contamination))


class ThresholdMixin(BaseEstimator, ABC):
    """Thresholds of scores and maps, and the labels and masks that they give."""

    @abstractmethod
    def _settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return all that scores and maps depend on and that can change after `fit`."""

    @property
    def calibration_scores_(self) -> np.ndarray | None:
        """Scores of held-out normal images, ascending; None if thresholds are of other images."""
        check_is_fitted(self, "offset_")
        return None if self._score_calibration is None else -self._score_calibration.anomaly[::-1]

    @property
    def calibration_peaks_(self) -> np.ndarray | None:
        """Maxima of the maps of held-out normal images, ascending."""
        check_is_fitted(self, "map_offset_")
        return None if self._peak_calibration is None else self._peak_calibration.anomaly.copy()

    @property
    def _share_held_out(self) -> float:
        """Share of the images that `fit` holds out for the thresholds."""
        return self.validation_fraction if self.contamination == "auto" else 0.0

    def _admit(self, X: Any, groups: Any, roi: Any) -> tuple[Images, Images | None]:
        """Check X; return the images to learn from, and those held out for the thresholds."""
        self._check_options()
        self._roi = None if self.roi is None else as_roi(self.roi)
        self._roi_of_each = roi is not None
        images = check_images(self, X, reset=True, roi=self._roi if roi is None else roi)
        self._seed = draw_seed(self.random_state)
        if not (share := self._share_held_out):
            return images, None
        labels = images.groups_of(groups)
        judges = [each for _, each in getattr(self, "detectors", [("", self)])]
        if labels is not None and any(each.pose is not None for each in judges):
            raise ValueError(
                "groups must be None in fit with a pose, whose thresholds compare each image with "
                "others of its group; call calibrate with images of other groups, and with theirs."
            )
        rng = np.random.default_rng(self._seed)
        learned, held = held_out(len(images), share, labels, rng)
        if not held:
            warn(
                f"{len(images)} images are too few to hold some out; thresholds are of the "
                "training images, and will raise too many false alarms. Call calibrate."
            )
            return images, None
        return images.of(learned), images.of(held)

    def _set_training_thresholds(self, images: Images, dataset: Dataset | None) -> None:
        """Set the thresholds that the allowed share of training images exceeds."""
        scores = [o.score for o in self._outputs(images, maps=False, dataset=dataset)]
        self._check_scores(scores)
        chosen = evenly_spaced(len(images), MAP_THRESHOLD_IMAGES)
        outputs = self._outputs(images, scores=False, dataset=dataset, indices=chosen)
        maxima = [float(np.max(o.map)) for o in outputs]
        share = FPR if self.contamination == "auto" else self.contamination
        self._set_thresholds(
            -training_threshold(-np.array(scores), share), training_threshold(maxima, share)
        )

    def _set_held_out_thresholds(self, images: Images) -> None:
        """Set the thresholds for the usual false-positive rate, or the lowest that is possible."""
        scores, peaks = self._calibrations(images, None)
        fpr = max(FPR, scores.lowest_fpr)
        if fpr > FPR:
            warn(
                f"{len(images)} held-out image(s) allow a false-positive rate of {fpr:.1%} at the "
                f"lowest, which the thresholds have, not {FPR:.0%}. Fit to more images, or call "
                "calibrate with other normal ones."
            )
        self._set_thresholds(-scores.threshold(fpr), peaks.threshold(fpr), scores, peaks)

    def _calibrations(
        self, images: Images, groups: ArrayLike | None
    ) -> tuple[Calibration, Calibration]:
        """Return the scores of held-out normal images, and the maxima of their maps."""
        outputs = [(o.score, np.max(o.map)) for o in self._outputs(images)]
        scores, maxima = np.array(outputs, dtype=np.float64).T
        self._check_scores(scores)
        return Calibration.of(-scores, groups), Calibration.of(maxima, groups)

    def _check_scores(self, scores: ArrayLike) -> None:
        if not np.isfinite(scores).all():
            raise ValueError(divergence(self.n_iter_, self.learning_rate))

    def _set_thresholds(
        self,
        offset: float,
        map_offset: float,
        scores: Calibration | None = None,
        peaks: Calibration | None = None,
    ) -> None:
        """Set all that thresholds are in one step, so that no interrupt falls between."""
        settings = dict(zip(("offset_", "map_offset_"), self._settings(), strict=True))
        self.__dict__.update(
            offset_=offset, map_offset_=map_offset, _score_calibration=scores,
            _peak_calibration=peaks, _thresholds_hold_for=copy.deepcopy(settings),
        )  # fmt: skip

    @uninterrupted
    def calibrate(
        self,
        X: ImagesLike,
        *,
        fpr: float = 0.05,
        groups: ArrayLike | None = None,
        roi: RoiLike = None,
    ) -> Self:
        """Set both thresholds from normal images that were held out of `fit`.

        They raise false alarms on at most a share `fpr` of new normal images, on average over
        calibration sets. `fit` does the same with images that it holds out itself; images of other
        days or lots than those of `fit` make thresholds that also hold there.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            At least ``1 / fpr - 1`` normal images, as in `score_samples`.
        fpr : float in (0, 1), default=0.05
            False-positive rate, as a share of normal images.
        groups : array-like of shape (n,), default=None
            The lot, day or machine of each image, at least ``1 / fpr - 1`` different ones. The
            rate then holds for images of *new* groups, in which all may be more anomalous.
        roi : region or list of n regions, default=None
            As in `score_samples`.

        Returns
        -------
        self : object
            The detector, with ``offset_`` the negative of the ``ceil((n + 1) * (1 - fpr))``-th
            smallest anomaly score, and ``map_offset_`` likewise of the maxima of the maps. With
            groups, images weigh so that each group weighs the same.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If `fpr` is out of range, or X or `groups` is not as described or too small for it.
        """
        images = self._check_images(X, roi=roi)
        if self.on_error == "skip":
            images = images.usable()
        labels = images.groups_of(groups)
        if labels is None:
            check_fpr(fpr, len(images))
        else:
            check_fpr(fpr, len(np.unique(labels)), "groups", "different labels")
        scores, peaks = self._calibrations(images, labels)
        self._set_thresholds(-scores.threshold(fpr), peaks.threshold(fpr), scores, peaks)
        return self

    def set_fpr(self, fpr: float) -> Self:
        """Set both thresholds for another false-positive rate, from the calibration scores.

        Parameters
        ----------
        fpr : float in (0, 1)
            False-positive rate, as a share of new normal images.

        Returns
        -------
        self : object
            The detector.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If `fpr` is out of range or lower than the calibration images allow; if there are none,
            or parameters that scores or maps depend on were changed.
        """
        scores, peaks = self._calibration("offset_"), self._calibration("map_offset_")
        check_fpr(fpr, scores.n_groups, "Calibration", "images or groups")
        self._set_thresholds(-scores.threshold(fpr), peaks.threshold(fpr), scores, peaks)
        return self

    def p_value(self, X: ImagesLike, *, roi: RoiLike = None) -> np.ndarray:
        """Compute how many normal images are at least as anomalous, as a share.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.
        roi : region or list of n regions, default=None
            As in `score_samples`.

        Returns
        -------
        p : ndarray of shape (n,), float64
            Conformal p-values: ``(1 + m) / (1 + n)`` for an image that is less normal than all but
            m of n calibration images. Small = anomalous; a new normal image has a value of at most
            p with a probability of at most p. NaN for an image without a score.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X is not as described, there are no calibration scores, or parameters that scores
            depend on were changed since.
        """
        calibration = self._calibration("offset_")
        return calibration.p_values(-self.score_samples(X, roi=roi))

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

    def _calibration(self, name: str) -> Calibration:
        """Return what a threshold was set from, if it holds for the current parameters."""
        self._threshold(name)
        found = self._score_calibration if name == "offset_" else self._peak_calibration
        if found is None:
            raise ValueError(
                "The thresholds must come from held-out images; those of this detector are of its "
                "training images. Call calibrate with other normal images."
            )
        return found
