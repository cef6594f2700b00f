"""What a fitted detector answers: scores, labels, maps and masks, computed in a stream."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, check_memory
from torch import Tensor

from skmkd._features.batches import (
    Batch,
    Observer,
    Read,
    Recall,
    batch_size,
    fixed_batches,
    layer_keys,
)
from skmkd._files.persistence import save_detector
from skmkd._images.checks import Images, ImagesLike, check_images
from skmkd._maps.discrepancy import Features
from skmkd._maps.finishing import localization_maps, resize_map
from skmkd._runtime import plain_arithmetic, portable_state, restored_device
from skmkd._version import __version__

Maps = np.ndarray | list[np.ndarray]
Attribute = Callable[[Batch], Tensor]  # (n, H, W)


class BaseInference(OutlierMixin, BaseEstimator):
    """Score and localize with the networks of a fitted detector.

    A detector says how anomalous an image is (`_anomaly`) and where (`_attribution`), or both at
    once (`_judge`), and what of its parameters scores and maps depend on after `fit`.
    """

    @abstractmethod
    def _anomaly(self, batch: Batch) -> Tensor:
        """Return the anomaly score (n,) of every image, higher = more anomalous."""

    @abstractmethod
    def _attribution(self, batch: Batch) -> Tensor:
        """Return the raw attribution (n, H, W) of every image, higher = more anomalous."""

    def _judge(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return both."""
        return self._anomaly(batch), self._attribution(batch)

    @abstractmethod
    def _score_settings(self) -> dict[str, Any]:
        """Return what scores are made with, of all that can change after `fit`."""

    def _map_settings(self) -> dict[str, Any]:
        """Return what maps are made with, of all that can change after `fit`."""
        return {"smoothing_sigma": self.smoothing_sigma, "opening_size": self.opening_size}

    def _check_options(self) -> None:
        """Check what the limits of single parameters cannot say."""
        if self.opening_size % 2 == 0:
            raise ValueError(f"opening_size must be odd; got {self.opening_size}.")

    def _take_in(self, X: ImagesLike) -> Images:
        """Check the detector, whose parameters may have changed since `fit`, and new images."""
        check_is_fitted(self)
        self._validate_params()
        self._check_options()
        return check_images(self, X, reset=False)

    def score_samples(self, X: ImagesLike) -> np.ndarray:
        """Say how normal each image is.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `fit`, of the same channels, kind of number and pixel range; arrays of
            the same size, too.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            The negative anomaly score: higher = more normal. NaN for a file that cannot be read
            where ``on_error="skip"``.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X or a parameter is not as described.
        """
        images = self._take_in(X)
        scores = self._score(self._reader(images), len(images))
        scores[list(images.unreadable)] = np.nan
        return scores

    def decision_function(self, X: ImagesLike) -> np.ndarray:
        """Say how far on the normal side of the threshold each image is.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.

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
        return self.score_samples(X) - threshold

    def predict(self, X: ImagesLike) -> np.ndarray:
        """Tell normal images from anomalies.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.

        Returns
        -------
        labels : ndarray of shape (n,), int
            +1 for normal images, -1 for anomalies and for images without a score.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)  # NaN is no normal image

    def localize(self, X: ImagesLike) -> Maps:
        """Map where each image is anomalous.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.

        Returns
        -------
        maps : ndarray of shape (n, H, W), or list of n ndarrays of shape (H, W); float32
            Localization maps of the images' own sizes, higher = more anomalous; a list if X is a
            list of arrays or paths.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X or a parameter is not as described.
        """
        return self._localize(X, self._attribution)

    def _localize(self, X: ImagesLike, attribute: Attribute) -> Maps:
        images = self._take_in(X)
        maps = self._maps(self._reader(images), images, range(len(images)), attribute)
        if not images.of_one_size:
            return list(maps)
        first = next(maps)
        stacked = np.empty((len(images), *first.shape), dtype=np.float32)
        stacked[0] = first
        for i, single in enumerate(maps, start=1):
            stacked[i] = single
        return stacked

    def predict_mask(self, X: ImagesLike) -> Maps:
        """Mark the anomalous pixels of each image.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.

        Returns
        -------
        masks : ndarray of shape (n, H, W), or list of n ndarrays of shape (H, W); bool
            Where the localization map exceeds ``map_offset_``: True = anomalous. All True for a
            file that cannot be read where ``on_error="skip"``, which is no normal image.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X is not as described, or the parameters that make maps were changed since
            ``map_offset_`` was set.
        """
        threshold = self._threshold("map_offset_")
        maps = self.localize(X)
        if isinstance(maps, list):
            return [~(single <= threshold) for single in maps]
        return ~(maps <= threshold)

    def save(self, path: str | os.PathLike[str], *, include_source: bool = True) -> Self:
        """Write the fitted detector into one file, which `skmkd.load` reads.

        Unlike a pickle, the file runs no code when it is loaded. An older file of that name stays
        whole until the new one is.

        Parameters
        ----------
        path : str or path
            The file, by custom with the suffix ``.skmkd``.
        include_source : bool, default=True
            Whether the file holds the source's weights, or only a hash to know them by, which
            makes it smaller: by 59 MB with VGG-16, by half of that in bfloat16. The weights that
            come with skmkd are then found again; `skmkd.load` has to be given others.

        Returns
        -------
        self : object
            The detector.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If a parameter or attribute is of a kind that the file cannot hold, or the detector's
            class is not one of skmkd's own.
        OSError
            If the file cannot be written.

        See Also
        --------
        skmkd.load : Read the file.

        Notes
        -----
        The file is a safetensors file; parameters and attributes are JSON in its metadata, and a
        checksum covers all of it. These parameters it does not hold: a `random_state` that is a
        generator, which comes back as None; `memory`, likewise, since a store belongs to its
        machine; a `source` or `cloner` that is a module, whose code no file can hold, so that
        `skmkd.load` has to be given it (of a source its hash is kept, of a cloner its trained
        weights); `source_weights` that are a dict, which come back as the source's own.

        Examples
        --------
        >>> import os, tempfile
        >>> from skimage.data import lfw_subset
        >>> import skmkd
        >>> faces = lfw_subset()[:20]
        >>> detector = skmkd.MKDDetector(image_size=32, max_iter=1, tol=None).fit(faces)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "faces.skmkd")
        ...     detector = detector.save(path, include_source=False)
        ...     loaded = skmkd.load(path)
        >>> bool((loaded.score_samples(faces) == detector.score_samples(faces)).all())
        True
        """
        check_is_fitted(self)
        save_detector(self, path, include_source)
        return self

    def _observer(self, *, recall: bool) -> Observer:
        """Return what reads images; `recall` goes through the store that `memory` names."""
        look = self._recall() if recall and self.memory is not None else self.source_
        return Observer(self._prepare, look, self.device_, self._batch_size)

    def _recall(self) -> Callable[[Tensor], Features]:
        """Return the source with the store, or alone if that cannot be opened."""
        place = os.fspath(self.memory) if isinstance(self.memory, os.PathLike) else self.memory
        keys = self._layer_keys or layer_keys(self.source_)
        conditions = f"{self.precision_} {self.device_.type}"
        try:
            return Recall(self.source_, keys, check_memory(place), conditions)
        except OSError as error:
            warnings.warn(
                f"memory={self.memory!r} cannot be used, and the source is computed instead: "
                f"{error}.",
                UserWarning,
                stacklevel=2,
            )
            return self.source_

    @property
    def _batch_size(self) -> int:
        return batch_size(self._prepare.size, self.device_, self.precision_)

    def _reader(self, images: Images) -> Read:
        return partial(self._observer(recall=True), images)

    def _score(self, read: Read, n_images: int) -> np.ndarray:
        scores = np.empty(n_images, dtype=np.float64)
        for chosen, batch in fixed_batches(read, range(n_images), self._batch_size):
            with plain_arithmetic(False, self.device_):
                scores[chosen] = -self._anomaly(batch)[: len(chosen)].cpu().numpy()
        return scores

    def _maps(
        self, read: Read, images: Images, indices: Sequence[int], attribute: Attribute
    ) -> Iterator[np.ndarray]:
        for chosen, batch in fixed_batches(read, indices, self._batch_size):
            with plain_arithmetic(False, self.device_):
                raw = attribute(batch)
            yield from self._finished_maps(raw, images, chosen)

    def _scores_and_maps(self, images: Images) -> Iterator[tuple[float, np.ndarray]]:
        """Yield score and localization map of each image, from one look at it."""
        read, indices = self._reader(images), range(len(images))
        for chosen, batch in fixed_batches(read, indices, self._batch_size):
            with plain_arithmetic(False, self.device_):
                anomaly, raw = self._judge(batch)
            scores = -anomaly[: len(chosen)].cpu().numpy().astype(np.float64)
            scores[[index in images.unreadable for index in chosen]] = np.nan
            maps = self._finished_maps(raw, images, chosen)
            yield from zip(scores.tolist(), maps, strict=True)

    def _finished_maps(
        self, raw: Tensor, images: Images, chosen: Sequence[int]
    ) -> Iterator[np.ndarray]:
        """Yield the localization maps of a batch, of which the tail may be padding."""
        plain = raw[: len(chosen)].cpu().numpy()
        finished = localization_maps(plain, self.smoothing_sigma, self.opening_size)
        for index, single, size in zip(chosen, finished, images.sizes(chosen), strict=True):
            readable = index not in images.unreadable
            yield resize_map(single, size) if readable else np.full(size, np.nan, np.float32)

    def _map_maxima(self, read: Read, images: Images, indices: Sequence[int]) -> list[float]:
        return [float(m.max()) for m in self._maps(read, images, indices, self._attribution)]

    def _threshold_settings(self) -> dict[str, dict[str, Any]]:
        """Return what each threshold holds for."""
        return {"offset_": self._score_settings(), "map_offset_": self._map_settings()}

    def _threshold(self, name: str) -> float:
        """Return a threshold, if it holds for the scores or maps that are made now."""
        check_is_fitted(self, name)
        now, then = self._threshold_settings()[name], self._thresholds_hold_for[name]
        if now != then:
            raise ValueError(
                f"{name} holds for what is made with {then}; it would now be made with {now}. Call "
                "calibrate or fit again."
            )
        return getattr(self, name)

    def __getstate__(self) -> dict[str, Any]:
        return portable_state(super().__getstate__()) | {"_skmkd_version": __version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        version = state.pop("_skmkd_version", "unknown")
        if version != __version__:
            warnings.warn(
                f"This {type(self).__name__} was pickled by skmkd {version} and is read by "
                f"{__version__}; what it answers may differ, and it may fail.",
                UserWarning,
                stacklevel=2,
            )
        super().__setstate__(state)
        if "device_" in state:
            self.device_ = restored_device(state["device_"])
            self.source_.to(self.device_)
            self.cloner_.to(self.device_)
