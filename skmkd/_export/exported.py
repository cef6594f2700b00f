"""Exported detectors, scored by onnxruntime or OpenVINO; nothing here needs torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import groupby, islice
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions

from skmkd._export.description import read_description
from skmkd._export.sessions import SESSIONS
from skmkd._images.checks import check_images
from skmkd._images.image_files import UnreadableImageError
from skmkd._images.images import Images
from skmkd._images.inputs import ImagesLike
from skmkd._images.pixel_range import rounded
from skmkd._packages import MissingExtraError
from skmkd._regular import read_regular

FORMAT = 1
BATCH_PIXELS = 2**17  # of images of one size that an engine is given at once, raw or resized
MOST_THREADS = 1024
EXTERNAL = b"location"  # the key, in an ONNX file, of another file that holds numbers


class ExportedDetector(BaseEstimator):
    """A fitted detector that was exported, computed without torch.

    `skmkd.load_exported` makes one. Copies and pickles hold the path of the file and read it again.
    Several threads may use one at the same time.

    Parameters
    ----------
    path : str or path
        The ONNX file that the method `export` of a detector wrote.
    engine : {"auto", "onnxruntime", "openvino"}, default="auto"
        What computes it; "auto" is the first of these that is installed.
    n_threads : int or None, default=None
        Threads of the engine, 1 to 1024; None lets it choose.
    on_error : {"raise", "skip"}, default="raise"
        How to treat an image that cannot be read or does not fit the others. "skip" warns; its
        score and map are NaN, its prediction -1, its mask True.
    max_pixels : int, default=268435456
        Largest image file that is read, in pixels.

    Attributes
    ----------
    offset_, map_offset_ : float
        Thresholds of `predict` and `predict_mask`.
    image_shape_ : tuple (H, W, C)
        Shape of the images at fit; H and W are None if they differed.
    pixel_range_ : tuple (low, high, kind)
        Range and kind of the pixels at fit.
    engine_ : str
        The engine in use.
    description_ : dict
        All that the file says of the detector: its class, layers, source, versions and licence.

    See Also
    --------
    skmkd.MKDDetector.export : Writes the file.

    Examples
    --------
    >>> from skmkd import ExportedDetector
    >>> detector = ExportedDetector("model.onnx", engine="openvino")  # doctest: +SKIP
    >>> masks = detector.predict_mask(["new/1.png", "new/2.png"])  # doctest: +SKIP
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "path": [str, os.PathLike],
        "engine": [StrOptions({"auto", *SESSIONS})],
        "n_threads": [Interval(Integral, 1, MOST_THREADS, closed="both"), None],
        "on_error": [StrOptions({"raise", "skip"})],
        "max_pixels": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        engine: str = "auto",
        n_threads: int | None = None,
        on_error: str = "raise",
        max_pixels: int = 2**28,
    ) -> None:
        self.path = path
        self.engine = engine
        self.n_threads = n_threads
        self.on_error = on_error
        self.max_pixels = max_pixels
        self._open()

    def _open(self) -> None:
        """Read the file and make it ready to be computed.

        Raises
        ------
        ValueError
            If a parameter is not as described, or a detector's method `export` did not write the
            file, that of a later version did, or it refers to other files.
        """
        self._validate_params()
        self.engine_ = _resolved(self.engine)
        content = read_regular(self.path)
        if EXTERNAL in content:
            raise ValueError(f"path must be one whole file; {self.path!r} refers to others.")
        try:
            self._session = SESSIONS[self.engine_](content, self.n_threads)
            told = json.loads(self._session.properties["skmkd"])
            found, writer = int(told["format"]), told["skmkd"]
        except (MissingExtraError, MemoryError):
            raise
        except Exception as error:  # engines have their own
            raise ValueError(
                "path must be a file that the method export of a detector wrote; "
                f"{os.fspath(self.path)!r} is not."
            ) from error
        if found > FORMAT:
            raise ValueError(
                f"{os.fspath(self.path)!r} has the format {found}, written by skmkd {writer}; "
                f"this version reads formats up to {FORMAT}."
            )
        try:
            self._describe(told)
        except ValueError as error:
            raise ValueError(f"{os.fspath(self.path)!r}: {error}. Export it again.") from error

    def _describe(self, told: dict[str, Any]) -> None:
        """Set what checks of new images need to know."""
        known = read_description(told)
        self.description_ = told
        self.offset_, self.map_offset_ = known.offset, known.map_offset
        self.image_shape_, self.pixel_range_ = known.image_shape, known.pixel_range
        self.image_shape = None  # of rows; the shape at fit is known
        self._seen_pixels, self._roi = known.seen_pixels, known.roi
        self._most_pixels = known.image_size[0] * known.image_size[1]
        height, width, channels = known.image_shape
        if height is not None and width is not None:
            self.n_features_in_ = height * width * channels

    def set_params(self, **params: Any) -> Self:
        """Set parameters, and read the file again.

        Parameters
        ----------
        **params : dict
            Any of those of the constructor.

        Returns
        -------
        self : ExportedDetector
            The same detector.

        Raises
        ------
        ValueError
            If there is no such parameter, or it or the file is not as described.
        OSError
            If the file cannot be read.
        ImportError
            If the engine is not installed.
        """
        super().set_params(**params)
        self._open()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self.get_params()), ()

    def score_samples(self, X: ImagesLike) -> np.ndarray:
        """Compute how normal each image is.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples` of the detector.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            Higher = more normal.

        Raises
        ------
        ValueError
            If X is not as described.
        """
        return self._numbers(X, "score")

    def decision_function(self, X: ImagesLike) -> np.ndarray:
        """Compute the signed distance of each score to the threshold.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.

        Returns
        -------
        decision : ndarray of shape (n,), float64
            Negative = anomaly.

        Raises
        ------
        ValueError
            If X is not as described.
        """
        return self._numbers(X, "decision")

    def predict(self, X: ImagesLike) -> np.ndarray:
        """Classify images as normal or anomalous.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.

        Returns
        -------
        labels : ndarray of shape (n,), int
            +1 for normal images, -1 for anomalies and for images without a score.

        Raises
        ------
        ValueError
            If X is not as described.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def p_value(self, X: ImagesLike) -> np.ndarray:
        """Compute how many normal images are at least as anomalous, as a share.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.

        Returns
        -------
        p : ndarray of shape (n,), float64
            Conformal p-values.

        Raises
        ------
        ValueError
            If the detector had no calibration scores, or X is not as described.
        """
        if "p_value" not in self._session.outputs:
            raise ValueError(
                "The exported detector must have calibration scores; those of this one are of its "
                "training images. Calibrate it, then export it again."
            )
        return self._numbers(X, "p_value")

    def localize(self, X: ImagesLike) -> np.ndarray | list[np.ndarray]:
        """Compute maps of where each image is anomalous.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.

        Returns
        -------
        maps : ndarray of shape (n, H, W), or list of n ndarrays of shape (H, W); float32
            Higher = more anomalous.

        Raises
        ------
        ValueError
            If X is not as described.
        """
        return self._planes(X, "map", np.nan)

    def predict_mask(self, X: ImagesLike) -> np.ndarray | list[np.ndarray]:
        """Mark the anomalous pixels of each image.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.

        Returns
        -------
        masks : ndarray of shape (n, H, W), or list of n ndarrays of shape (H, W); bool
            True = anomalous.

        Raises
        ------
        ValueError
            If X is not as described.
        """
        return self._planes(X, "mask", True)

    def _numbers(self, X: ImagesLike, name: str) -> np.ndarray:
        images = check_images(self, X, reset=False, roi=self._roi)
        found = self._computed(images, name)
        return np.array([np.nan if value is None else value for value in found], dtype=np.float64)

    def _planes(self, X: ImagesLike, name: str, missing: Any) -> Any:
        images = check_images(self, X, reset=False, roi=self._roi)
        planes = [
            np.full(images.frames([i])[0], missing) if plane is None else plane
            for i, plane in enumerate(self._computed(images, name))
        ]
        return np.stack(planes) if images.of_one_size else planes

    def _computed(self, images: Images, name: str) -> Iterator[Any]:
        """Yield an output of each image, None for one that cannot be used.

        Successive images of one size are computed together.
        """
        usable = self._usable(images)
        for shape, group in groupby(usable, lambda image: None if image is None else image.shape):
            if shape is None:
                yield from group
                continue
            most = max(1, BATCH_PIXELS // max(self._most_pixels, shape[0] * shape[1]))
            while batch := list(islice(group, most)):
                yield from self._session.run(name, np.stack(batch))
        images.warn_of_scale()

    def _usable(self, images: Images) -> Iterator[Any]:
        """Yield each image (H, W, C), None if it cannot be used; only the region of it is read."""
        for index in range(len(images)):
            image = images.read(index)
            try:
                image = rounded(image, self.pixel_range_)
            except ValueError as error:
                images.replaced(index, UnreadableImageError(f"{images.name(index)} {error}"))
            images.warn_of_unreadable([index])
            if index in images.unreadable:
                yield None
            elif self._roi is None:
                yield image
            else:
                whole = np.zeros((*images.frames([index])[0], image.shape[2]), image.dtype)
                self._roi.rectangle(whole)[:] = image
                yield whole


def _resolved(engine: str) -> str:
    """Return the engine that a name stands for."""
    if engine != "auto":
        return engine
    return next((name for name in SESSIONS if find_spec(name) is not None), "onnxruntime")


def load_exported(
    path: str | os.PathLike[str],
    *,
    engine: str = "auto",
    n_threads: int | None = None,
    on_error: str = "raise",
) -> ExportedDetector:
    """Load a detector that was exported with its method `export`; torch is not needed.

    Parameters
    ----------
    path : str or path
        The ONNX file.
    engine : {"auto", "onnxruntime", "openvino"}, default="auto"
        What computes it; "auto" is the first of these that is installed.
    n_threads : int or None, default=None
        Threads of the engine, 1 to 1024; None lets it choose.
    on_error : {"raise", "skip"}, default="raise"
        How to treat an image that cannot be read or does not fit the others.

    Returns
    -------
    detector : ExportedDetector
        With the methods `score_samples`, `decision_function`, `predict`, `p_value`, `localize` and
        `predict_mask` of the detector that was exported.

    Raises
    ------
    ValueError
        If the file was not exported from a detector, or there is no such engine.
    OSError
        If the file cannot be read.
    ImportError
        If the engine is not installed.

    Examples
    --------
    >>> import skmkd
    >>> detector = skmkd.load_exported("model.onnx")  # doctest: +SKIP
    >>> labels = detector.predict(["new/1.png", "new/2.png"])  # doctest: +SKIP
    """
    return ExportedDetector(path, engine=engine, n_threads=n_threads, on_error=on_error)
