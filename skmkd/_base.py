"""What every distillation detector shares: validation, training, thresholds, maps, state."""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OutlierMixin, _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skmkd._backend import (
    draw_seed,
    forked_rng,
    plain_arithmetic,
    portable_state,
    private_generator,
    resolve_device,
    restored_device,
)
from skmkd._distillation import Terms, distill, divergence, settle_batch_norm
from skmkd._localization import localization_maps, resize_map
from skmkd._preprocessing import (
    Preprocessing,
    fixed_batches,
    mild_augmentation,
    resized_shape,
    shuffled_batches,
)
from skmkd._sources import IDENTITY, build_source
from skmkd._thresholds import check_fpr, conformal_threshold, training_threshold
from skmkd._validation import Images, check_images

INFERENCE_PIXELS = {"cpu": 2**15, "cuda": 2**20, "mps": 2**20}  # a batch; enough to fill a device
MAP_THRESHOLD_IMAGES = 256  # training images, evenly spaced, whose maps set map_offset_

Maps = np.ndarray | list[np.ndarray]


class BaseDistillationDetector(OutlierMixin, BaseEstimator):
    """Fit, score and localize with a frozen source and a student that learns from it.

    A detector says what its student is (`_build_student`), what it learns (`_terms`), how
    anomalous an image is (`_anomaly`) and where (`_attribution`); the rest is here.
    """

    _localization_methods: ClassVar[tuple[str, ...]]
    _localization_defaults: ClassVar[dict[str, Any]]
    _localization_constraints: ClassVar[dict[str, list[Any]]]
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "source": [str, nn.Module],
        "source_weights": [str, os.PathLike, Mapping, None],
        "critical_layers": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            list,
            tuple,
        ],
        "normalization": [StrOptions({"source"}), None],
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "image_shape": [tuple, list, None],
        "augmentation": [StrOptions({"mild"}), None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left"), None],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "localization_params": [dict, None],
        "smoothing_sigma": [Interval(Real, 0, None, closed="left")],
        "opening_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    @abstractmethod
    def _build_student(self, source: Any, first_batch: Tensor, seed: int) -> None:
        """Set the student, as ``cloner_``, and what it needs to know of the first batch."""

    @abstractmethod
    def _terms(self, images: Tensor) -> Terms:
        """Return the loss terms of every image of a training batch."""

    @abstractmethod
    def _anomaly(self, images: Tensor) -> Tensor:
        """Return the anomaly score (n,) of every image, higher = more anomalous."""

    @abstractmethod
    def _attribution(self, images: Tensor, method: str) -> Tensor:
        """Return the raw attribution (n, H, W) of every image, higher = more anomalous."""

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: ArrayLike | Sequence[ArrayLike],
        y: Any = None,
        *,
        callback: Callable[[Self, int], Any] | None = None,
    ) -> Self:
        """Learn from normal images.

        If anything goes wrong or is interrupted, the detector stays as it was before.

        Parameters
        ----------
        X : array-like or list of array-like
            At least two normal images: of shape (n, H, W) or (n, H, W, C) with C in 1, 3, 4,
            (n, H * W * C) flattened, or a list of arrays (H, W) or (H, W, C) of any sizes. Bool,
            integer or float. RGBA is laid over white.
        y : None
            Ignored: every image of X is taken for normal.
        callback : callable, default=None
            Called after each epoch as ``callback(detector, epoch)`` with a detector that can
            already score and localize, but has no thresholds yet.

        Returns
        -------
        self : object
            The fitted detector.

        Raises
        ------
        ValueError
            If X or a parameter is not as described, or the loss diverges.
        """
        fitted = object.__new__(type(self))
        fitted.__dict__ = {k: v for k, v in vars(self).items() if not k.endswith("_")}
        fitted._fit(X, callback)
        self.__dict__ = fitted.__dict__
        return self

    def _fit(self, X: Any, callback: Callable[[Self, int], Any] | None) -> None:
        self._check_options()
        images = check_images(self, X, reset=True)
        size = resized_shape(self.image_size)
        self.device_ = resolve_device(self.device)
        self._seed = draw_seed(self.random_state)
        generator = private_generator(self._seed)
        with plain_arithmetic(True, self.device_), forked_rng(self._seed, self.device_):
            source = build_source(
                self.source, self.source_weights, self.critical_layers, size, self.device_,
                self._seed,
            )  # fmt: skip
            self.source_ = source.network
            self.critical_layers_ = tuple(s.layer for s in source.stages if s.critical)
            normalization = IDENTITY if self.normalization is None else source.normalization
            self._prepare = Preprocessing(size, self.pixel_range_, *normalization)
            batches = partial(self._training_batches, images, generator)
            self._build_student(source, next(iter(batches())), self._seed)
            self.loss_curve_ = distill(
                self.cloner_,
                batches,
                self._terms,
                learning_rate=self.learning_rate,
                max_iter=self.max_iter,
                tol=self.tol,
                n_iter_no_change=self.n_iter_no_change,
                after_epoch=partial(self._show, callback, images) if callback else None,
                verbose=self.verbose,
            )
            self.n_iter_ = len(self.loss_curve_["total"])
            self._settle(images)
            self._set_thresholds(images)

    def _settle(self, images: Images) -> None:
        """Bring the student's batch norms up to date; training goes on as if nothing was."""
        generator = private_generator(self._seed)
        batches = shuffled_batches(images, self._tensor, self.batch_size, generator)
        settle_batch_norm(self.cloner_, batches)

    def _show(self, callback: Callable[[Self, int], Any], images: Images, epoch: int) -> None:
        self._settle(images)
        callback(self, epoch)

    def _set_thresholds(self, images: Images) -> None:
        """Put the allowed share of training images on the far side of both thresholds."""
        scores = self._score(images)
        if not np.isfinite(scores).all():
            raise ValueError(divergence(self.n_iter_, self.learning_rate))
        chosen = np.linspace(0, len(images) - 1, min(len(images), MAP_THRESHOLD_IMAGES))
        maxima = self._map_maxima(images, chosen.astype(int).tolist())
        self._set_offsets(
            training_threshold(-scores, self.contamination),
            training_threshold(maxima, self.contamination),
        )

    def _set_offsets(self, anomaly: float, map_maximum: float) -> None:
        self.offset_, self.map_offset_ = -anomaly, map_maximum
        self._calibrated_for = copy.deepcopy(self._map_settings())

    def calibrate(self, X: ArrayLike | Sequence[ArrayLike], *, fpr: float = 0.05) -> Self:
        """Set both thresholds from normal images that were held out of `fit`.

        The student knows its training images better than any others, so the thresholds of `fit`
        raise more false alarms on new images than `contamination` says. Those set here raise
        them on a share of at most `fpr` of new normal images, in the mean over calibration sets.

        Parameters
        ----------
        X : array-like or list of array-like
            At least ``1 / fpr - 1`` normal images, as in `score_samples`.
        fpr : float in (0, 1), default=0.05
            False-positive rate, as a share of normal images.

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
        check_is_fitted(self)
        images = check_images(self, X, reset=False)
        check_fpr(fpr, len(images))
        scores, maxima = self._score(images), self._map_maxima(images, range(len(images)))
        self._set_offsets(conformal_threshold(-scores, fpr), conformal_threshold(maxima, fpr))
        return self

    def score_samples(self, X: ArrayLike | Sequence[ArrayLike]) -> np.ndarray:
        """Say how normal each image is.

        Parameters
        ----------
        X : array-like or list of array-like
            Images as in `fit`, of the same channels, kind of number and pixel range; arrays of
            the same size, too.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            The negative anomaly score: higher = more normal.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X is not as described.
        """
        check_is_fitted(self)
        return self._score(check_images(self, X, reset=False))

    def decision_function(self, X: ArrayLike | Sequence[ArrayLike]) -> np.ndarray:
        """Say how far on the normal side of the threshold each image is.

        Parameters
        ----------
        X : array-like or list of array-like
            Images as in `score_samples`.

        Returns
        -------
        decision : ndarray of shape (n,), float64
            ``score_samples(X) - offset_``: higher = more normal, negative = anomaly.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike | Sequence[ArrayLike]) -> np.ndarray:
        """Tell normal images from anomalies.

        Parameters
        ----------
        X : array-like or list of array-like
            Images as in `score_samples`.

        Returns
        -------
        labels : ndarray of shape (n,), int
            +1 for normal images, -1 for anomalies.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def localize(self, X: ArrayLike | Sequence[ArrayLike], method: str | None = None) -> Maps:
        """Map where each image is anomalous.

        Parameters
        ----------
        X : array-like or list of array-like
            Images as in `score_samples`.
        method : str, default=None
            One of the methods of the parameter `localization`; None takes that parameter's.

        Returns
        -------
        maps : ndarray of shape (n, H, W), or list of n ndarrays of shape (H, W); float32
            Localization maps of the images' own sizes, higher = more anomalous; a list if X is a
            list of arrays.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X is not as described or there is no such method.
        """
        check_is_fitted(self)
        method = self.localization if method is None else method
        if method not in self._localization_methods:
            raise ValueError(
                f"method must be one of {', '.join(self._localization_methods)}, or None; got "
                f"{method!r}."
            )
        self._localization_options()
        images = check_images(self, X, reset=False)
        maps = self._maps(images, range(len(images)), method)
        if not images.of_one_size:
            return list(maps)
        first = next(maps)
        stacked = np.empty((len(images), *first.shape), dtype=np.float32)
        stacked[0] = first
        for i, single in enumerate(maps, start=1):
            stacked[i] = single
        return stacked

    def predict_mask(self, X: ArrayLike | Sequence[ArrayLike]) -> Maps:
        """Mark the anomalous pixels of each image.

        Parameters
        ----------
        X : array-like or list of array-like
            Images as in `score_samples`.

        Returns
        -------
        masks : ndarray of shape (n, H, W), or list of n ndarrays of shape (H, W); bool
            Where the localization map exceeds ``map_offset_``: True = anomalous.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X is not as described, or the parameters that make maps were changed since
            ``map_offset_`` was set.
        """
        check_is_fitted(self)
        if self._map_settings() != self._calibrated_for:
            raise ValueError(
                f"map_offset_ holds for maps made with {self._calibrated_for}; they are now made "
                f"with {self._map_settings()}. Call calibrate or fit again."
            )
        maps = self.localize(X)
        if isinstance(maps, list):
            return [single > self.map_offset_ for single in maps]
        return maps > self.map_offset_

    def _score(self, images: Images) -> np.ndarray:
        scores = np.empty(len(images), dtype=np.float64)
        with plain_arithmetic(False, self.device_):
            for indices, batch in self._inference_batches(images, range(len(images))):
                scores[indices] = -self._anomaly(batch)[: len(indices)].cpu().numpy()
        return scores

    def _maps(self, images: Images, indices: Sequence[int], method: str) -> Iterator[np.ndarray]:
        for chosen, batch in self._inference_batches(images, indices):
            with plain_arithmetic(False, self.device_):
                raw = self._attribution(batch, method)[: len(chosen)].cpu().numpy()
            finished = localization_maps(raw, self.smoothing_sigma, self.opening_size)
            for single, size in zip(finished, images.sizes(chosen), strict=True):
                yield resize_map(single, size)

    def _map_maxima(self, images: Images, indices: Sequence[int]) -> list[float]:
        return [float(m.max()) for m in self._maps(images, indices, self.localization)]

    def _training_batches(self, images: Images, generator: torch.Generator) -> Iterator[Tensor]:
        for batch in shuffled_batches(images, self._tensor, self.batch_size, generator):
            yield batch if self.augmentation is None else mild_augmentation(batch, generator)

    def _inference_batches(
        self, images: Images, indices: Sequence[int]
    ) -> Iterable[tuple[Sequence[int], Tensor]]:
        height, width = self._prepare.size
        n = max(1, INFERENCE_PIXELS.get(self.device_.type, 2**15) // (height * width))
        return fixed_batches(images, self._tensor, indices, n)

    def _tensor(self, images: Sequence[np.ndarray]) -> Tensor:
        with plain_arithmetic(False, self.device_):
            return self._prepare(images).to(self.device_, memory_format=torch.channels_last)

    def _check_options(self) -> None:
        """Check what the limits of single parameters cannot say."""
        if self.opening_size % 2 == 0:
            raise ValueError(f"opening_size must be odd; got {self.opening_size}.")
        self._localization_options()

    def _localization_options(self) -> dict[str, Any]:
        """Return the checked options of the localization methods, defaults filled in."""
        given = self.localization_params or {}
        if unknown := set(given) - set(self._localization_defaults):
            raise ValueError(
                f"localization_params must be among {sorted(self._localization_defaults)}; got "
                f"{sorted(unknown)}."
            )
        constraints = self._localization_constraints
        validate_parameter_constraints(constraints, given, caller_name="localization_params")
        return self._localization_defaults | given

    def _map_settings(self) -> dict[str, Any]:
        """Return what a localization map and thus the threshold for its pixels depends on."""
        names = ("localization", "localization_params", "smoothing_sigma", "opening_size")
        return {name: getattr(self, name) for name in names}

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        return portable_state(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "device_" in state:
            self.device_ = restored_device(self.device_)
            self.source_.to(self.device_)
            self.cloner_.to(self.device_)
