"""What every distillation detector shares: parameters, training, thresholds."""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from torch import nn

from skmkd._features.batches import Batch, Read, layer_keys
from skmkd._features.cache import byte_budget, feature_cache
from skmkd._images.checks import Images, ImagesLike, check_images
from skmkd._images.image_files import readable
from skmkd._images.preparation import (
    Preprocessing,
    mild_augmentation,
    resized_shape,
    shuffled_batches,
)
from skmkd._inference import BaseInference
from skmkd._maps.discrepancy import Features
from skmkd._networks.layers import LayerRule
from skmkd._networks.sources import IDENTITY, build_source
from skmkd._runtime import (
    PRECISIONS,
    draw_seed,
    plain_arithmetic,
    private_generator,
    resolve_device,
    resolve_precision,
)
from skmkd._thresholds import check_fpr, conformal_threshold, training_threshold
from skmkd._training import Terms, distill, divergence, settle_batch_norm

MAP_THRESHOLD_IMAGES = 256  # training images, evenly spaced, whose maps set map_offset_


class BaseDistillationDetector(BaseInference):
    """Fit a student to what a frozen source sees in normal images.

    A detector says what its student is (`_build_student`), what that answers (`_answer`) and
    learns (`_terms`), beside what `BaseInference` asks of it; the rest is here.
    """

    _layer_rule: ClassVar[LayerRule]
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
        "smoothing_sigma": [Interval(Real, 0, None, closed="left")],
        "opening_size": [Interval(Integral, 1, None, closed="left")],
        "cache": [StrOptions({"auto"}), Interval(Integral, 0, None, closed="left"), None],
        "memory": [str, os.PathLike, HasMethods(["cache"]), None],
        "device": [str],
        "precision": [StrOptions({"auto", *PRECISIONS})],
        "on_error": [StrOptions({"raise", "skip"})],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    @abstractmethod
    def _build_student(self, source: Any, first_batch: Batch, seed: int) -> None:
        """Set the student, as ``cloner_``, and what it needs to know of the first batch."""

    @abstractmethod
    def _answer(self, batch: Batch) -> Features:
        """Return what the student says to a batch, at the critical layers at least."""

    @abstractmethod
    def _terms(self, batch: Batch) -> Terms:
        """Return the loss terms of every image of a training batch."""

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: ImagesLike,
        y: Any = None,
        *,
        callback: Callable[[Self, int], Any] | None = None,
    ) -> Self:
        """Learn from normal images.

        If anything goes wrong or is interrupted, the detector stays as it was before.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            At least two normal images: of shape (n, H, W) or (n, H, W, C) with C in 1, 3, 4,
            (n, H * W * C) flattened, or a list of arrays (H, W) or (H, W, C) of any sizes. Bool,
            integer or float. RGBA is laid over white. Or a list or array of the paths of image
            files, which are read when they are needed.
        y : None
            Ignored: every image of X is taken for normal.
        callback : callable, default=None
            Called after each epoch as ``callback(detector, epoch)`` with a detector that can
            already score and localize, but has no thresholds yet. Parameters that it sets, such
            as another `image_score`, hold until it returns.

        Returns
        -------
        self : object
            The fitted detector.

        Raises
        ------
        ValueError
            If X or a parameter is not as described, or the loss diverges.

        Notes
        -----
        Of image files, grey ones become (H, W), of 8 bits uint8, of 16 bits uint16; 1 bit becomes
        0 and 255. With transparency of any kind they become RGBA, and all other colours (palettes,
        CMYK) RGB of 8 bits. The orientation that EXIF states is applied. Files give the scores of
        such arrays.
        """
        fitted = object.__new__(type(self))
        fitted.__dict__ = {k: v for k, v in vars(self).items() if not k.endswith("_")}
        fitted._fit(X, callback)
        self.__dict__ = dict(vars(fitted))  # a callback may have kept the other
        return self

    def _fit(self, X: Any, callback: Callable[[Self, int], Any] | None) -> None:
        self._check_options()
        images = check_images(self, self._without_unreadable(X), reset=True)
        size = resized_shape(self.image_size)
        self.device_ = resolve_device(self.device)
        self.precision_ = resolve_precision(self.precision, self.device_)
        self._seed = draw_seed(self.random_state)
        with plain_arithmetic(True, self.device_), self._draws():
            source = build_source(
                self.source, self.source_weights, self.critical_layers, self._layer_rule, size,
                self.device_, self.precision_, self._seed,
            )  # fmt: skip
            self.source_, self._origin = source.network, source.origin
            self._layer_keys = None if self.memory is None else layer_keys(self.source_)
            self.critical_layers_ = tuple(s.layer for s in source.stages if s.critical)
            normalization = IDENTITY if self.normalization is None else source.normalization
            self._prepare = Preprocessing(size, self.pixel_range_, *normalization)
            with self._cached(images, self._training_budget()) as read:
                epoch = self._epochs(read, len(images))
                self._build_student(source, _checked(next(epoch())), self._seed)
                self.loss_curve_ = distill(
                    self.cloner_,
                    self._optimizer(),
                    epoch,
                    self._terms,
                    max_iter=self.max_iter,
                    tol=self.tol,
                    n_iter_no_change=self.n_iter_no_change,
                    after_epoch=partial(self._show, callback, read, images) if callback else None,
                    verbose=self.verbose,
                )
                self.n_iter_ = len(self.loss_curve_["total"])
                self._settle(read, images)
                self._set_thresholds(read, images)

    def _draws(self) -> AbstractContextManager[None]:
        """Return what guards torch's global generators, if anything here draws from them."""
        return nullcontext()

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(trainable(self.cloner_), lr=self.learning_rate)

    def _training_budget(self) -> int | None:
        """Return the bytes for features of the training images, unless these keep changing."""
        if self.augmentation is None:
            return byte_budget(self.cache)
        if self.verbose >= 1:
            print("Augmented images differ in every epoch, so no feature is cached.")
        return None

    def _cached(self, images: Images, budget: int | None) -> AbstractContextManager[Read]:
        """Serve images again and again, with what the source sees in them."""
        anew = partial(self._observer(recall=False), images)
        once = anew if budget is None else self._reader(images)
        return feature_cache(once, anew, len(images), self._batch_size, budget, self.verbose)

    def _epochs(self, read: Read, n_images: int) -> Callable[[], Iterator[Batch]]:
        """Return what gives the batches of one more epoch at every call."""
        generator = private_generator(self._seed)
        observer = self._observer(recall=False)

        def epoch() -> Iterator[Batch]:
            for batch in read(shuffled_batches(n_images, self.batch_size, generator)):
                if self.augmentation is not None:
                    batch = observer.batch(mild_augmentation(batch.images, generator))
                yield batch

        return epoch

    def _settle(self, read: Read, images: Images) -> None:
        """Bring the student's batch norms up to date; training goes on as if nothing was."""
        generator = private_generator(self._seed)
        batches = shuffled_batches(len(images), self.batch_size, generator)
        settle_batch_norm(self.cloner_, self._answer, read(batches))

    def _show(
        self, callback: Callable[[Self, int], Any], read: Read, images: Images, epoch: int
    ) -> None:
        """Hand over the detector as it is now; parameters that are changed there change back."""
        self._settle(read, images)
        given = self.get_params(deep=False)
        callback(self, epoch)
        self.__dict__.update(given)

    def _set_thresholds(self, read: Read, images: Images) -> None:
        """Put the allowed share of training images on the far side of both thresholds."""
        scores = self._score(read, len(images))
        if not np.isfinite(scores).all():
            raise ValueError(divergence(self.n_iter_, self.learning_rate))
        chosen = np.linspace(0, len(images) - 1, min(len(images), MAP_THRESHOLD_IMAGES))
        maxima = self._map_maxima(read, images, chosen.astype(int).tolist())
        self._set_offsets(
            training_threshold(-scores, self.contamination),
            training_threshold(maxima, self.contamination),
        )

    def _set_offsets(self, anomaly: float, map_maximum: float) -> None:
        self.offset_, self.map_offset_ = -anomaly, map_maximum
        self._thresholds_hold_for = copy.deepcopy(self._threshold_settings())

    def calibrate(self, X: ImagesLike, *, fpr: float = 0.05) -> Self:
        """Set both thresholds from normal images that were held out of `fit`.

        The student knows its training images better than any others, so the thresholds of `fit`
        raise more false alarms on new images than `contamination` says: of `MKDDetector` in a
        benchmark with images of 32 px 60 % instead of 5 % after learning from 100, 26 % after 500.
        Those set here raise them on a share of at most `fpr` of new normal images, in the mean over
        calibration sets (4.9 % and 4.8 % there).

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
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
        images = self._take_in(self._without_unreadable(X))
        check_fpr(fpr, len(images))
        judged = [(score, single.max()) for score, single in self._scores_and_maps(images)]
        scores, maxima = np.array(judged, dtype=np.float64).T
        self._set_offsets(conformal_threshold(-scores, fpr), conformal_threshold(maxima, fpr))
        return self

    def _without_unreadable(self, X: Any) -> Any:
        """Leave out files that cannot be read, where these are to be skipped."""
        return readable(X) if self.on_error == "skip" else X

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def _checked(batch: Batch) -> Batch:
    """Check that the source gives numbers."""
    for layer, activations in batch.target.items():
        if not activations.isfinite().all():
            raise ValueError(
                f"source must give finite activations; at critical layer {layer!r} it does not."
            )
    return batch


def trainable(student: nn.Module) -> list[nn.Parameter]:
    """List the parameters that training changes."""
    return [parameter for parameter in student.parameters() if parameter.requires_grad]
