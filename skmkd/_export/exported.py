"""Exported detectors, scored by onnxruntime or OpenVINO; nothing here needs torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from skmkd._images.checks import check_images
from skmkd._images.images import Images
from skmkd._images.inputs import ImagesLike
from skmkd._images.pixel_range import PixelRange
from skmkd._packages import needed

ENGINES = ("onnxruntime", "openvino")
FORMAT = 1
INPUT, PREPARED = "images", "prepared"  # tensors: raw images, and what the networks take
OUTPUTS = ("score", "decision", "label", "map", "mask", "p_value")
BATCH_PIXELS = 2**20  # of images that an engine is given at once, if they have one size
CPU_BFLOAT16 = ("amx_bf16", "avx512_bf16")


class ExportedDetector(BaseEstimator):
    """A fitted detector that was exported, computed without torch.

    `skmkd.load_exported` makes one.

    Parameters
    ----------
    path : str or path
        The ONNX file that the method `export` of a detector wrote.
    engine : {"auto", "onnxruntime", "openvino"}, default="auto"
        What computes it; "auto" is the first of these that is installed.
    n_threads : int or None, default=None
        Threads of the engine; None lets it choose.
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
        What else the file says of the detector: its class, layers, source, versions and licence.
    """

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
        self.engine_ = _resolved(engine)
        content = Path(path).read_bytes()
        self._session: _OnnxRuntime | _OpenVINO
        if self.engine_ == "onnxruntime":
            self._session = _OnnxRuntime(content, n_threads)
        else:
            self._session = _OpenVINO(content, n_threads)
        try:
            self.description_ = json.loads(self._session.properties["skmkd"])
        except KeyError:
            raise ValueError(
                f"path must be a file that the method export of a detector wrote; {path} is not."
            ) from None
        if (found := self.description_["format"]) > FORMAT:
            raise ValueError(
                f"{path} has the format {found}, written by skmkd {self.description_['skmkd']}; "
                f"this version reads formats up to {FORMAT}."
            )
        self._describe()

    def _describe(self) -> None:
        """Set what checks of new images need to know."""
        told = self.description_
        self.offset_, self.map_offset_ = told["offset"], told["map_offset"]
        self.image_shape_ = tuple(told["image_shape"])
        self.pixel_range_ = PixelRange(*told["pixel_range"])
        self.image_shape: tuple[int, ...] | None = None
        seen = told["seen_pixels"]
        self._seen_pixels = None if seen is None else tuple(seen)
        if None not in self.image_shape_:
            self.n_features_in_ = int(np.prod(self.image_shape_))

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
            If the detector had no calibration scores.
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
        """
        return self._planes(X, "mask", True)

    def _numbers(self, X: ImagesLike, name: str) -> np.ndarray:
        images = check_images(self, X, reset=False)
        values = np.array([value for _, value in self._computed(images, name)], dtype=np.float64)
        values[list(images.unreadable)] = np.nan
        return values

    def _planes(self, X: ImagesLike, name: str, missing: Any) -> Any:
        images = check_images(self, X, reset=False)
        planes = [value for _, value in self._computed(images, name)]
        for index in images.unreadable:
            shape = images.frames([index])[0]
            planes[index] = np.full(shape, missing, planes[index].dtype)
        return np.stack(planes) if images.of_one_size else planes

    def _computed(self, images: Images, name: str) -> Iterator[tuple[int, Any]]:
        """Yield an output of each image, images of one size computed together."""
        kind = self.pixel_range_.kind
        dtype = np.dtype(np.float32 if kind == "float" else kind)
        for batch in self._batches(images):
            pixels = np.stack([image for _, image in batch]).astype(dtype, copy=False)
            yield from zip((i for i, _ in batch), self._session.run(name, pixels), strict=True)
            images.warn_of_unreadable(i for i, _ in batch)
        images.warn_of_scale()

    def _batches(self, images: Images) -> Iterator[list[tuple[int, np.ndarray]]]:
        for shape, group in groupby(enumerate(images), key=lambda pair: pair[1].shape):
            most = max(1, BATCH_PIXELS // (shape[0] * shape[1]))
            batch: list[tuple[int, np.ndarray]] = []
            for pair in group:
                batch.append(pair)
                if len(batch) == most:
                    yield batch
                    batch = []
            if batch:
                yield batch


class _OnnxRuntime:
    """A file computed by onnxruntime."""

    def __init__(self, content: bytes, n_threads: int | None) -> None:
        onnxruntime = needed("onnxruntime", "onnx", "engine='onnxruntime'")
        options = onnxruntime.SessionOptions()
        if n_threads is not None:
            options.intra_op_num_threads = n_threads
        self._session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        self.properties = self._session.get_modelmeta().custom_metadata_map
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, name: str, pixels: np.ndarray) -> np.ndarray:
        """Compute one output for images (n, H, W, C)."""
        return self._session.run([name], {INPUT: pixels})[0]


class _OpenVINO:
    """A file computed by OpenVINO, in the precision that the detector was calibrated with.

    Of a detector that computes in bfloat16, only the networks do: what comes before and after them
    is compiled apart, since OpenVINO has one precision for all of a model.
    """

    def __init__(self, content: bytes, n_threads: int | None) -> None:
        self._openvino = needed("openvino", "openvino", "engine='openvino'")
        core = self._openvino.Core()
        model = core.read_model(content)
        told = model.get_rt_info(["framework", "skmkd"]).astype(str)
        self.properties = {"skmkd": told}
        self.outputs = [output.get_any_name() for output in model.outputs]
        threads = {} if n_threads is None else {"INFERENCE_NUM_THREADS": n_threads}

        def compiled(part: Any, precision: str) -> Any:
            hint = {"INFERENCE_PRECISION_HINT": precision}
            return core.compile_model(part, "CPU", hint | threads)

        description = json.loads(told)
        fast = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if description["precision"] != "bfloat16" or not fast:
            self._parts = [compiled(model, "f32")]
            return
        layers = description["layers"]
        features = [f"{net}.{layer}" for net in ("source", "cloner") for layer in layers]
        cuts = [
            ([INPUT], [PREPARED], "f32"),
            ([PREPARED], features, "bf16"),
            ([INPUT, *features], self.outputs, "f32"),
        ]
        self._parts = [
            compiled(self._cut(core.read_model(content), before, after), precision)
            for before, after, precision in cuts
        ]

    def _cut(self, model: Any, before: Sequence[str], after: Sequence[str]) -> Any:
        """Return the part of a model between tensors."""
        ports = {
            name: port
            for node in model.get_ordered_ops()
            if node.get_type_name() != "Result"
            for port in node.outputs()
            for name in port.get_names()
        }
        parameters = []
        for name in before:
            port = ports[name]
            parameter = self._openvino.op.Parameter(port.get_element_type(), port.partial_shape)
            parameter.output(0).set_names({name})
            for target in port.get_target_inputs():
                target.replace_source_output(parameter.output(0))
            parameters.append(parameter)
        results = []
        for name in after:
            result = self._openvino.op.Result(ports[name])
            result.output(0).set_names({name})
            results.append(result)
        return self._openvino.Model(results, parameters)

    def run(self, name: str, pixels: np.ndarray) -> np.ndarray:
        """Compute one output for images (n, H, W, C)."""
        known = {INPUT: np.ascontiguousarray(pixels)}
        for part in self._parts:
            request = part.create_infer_request()  # so that threads share none
            request.infer([known[given.get_any_name()] for given in part.inputs])
            for output in part.outputs:
                known[output.get_any_name()] = request.get_tensor(output).data
        return known[name].copy()


def _resolved(engine: str) -> str:
    """Return the engine that a name stands for.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if engine == "auto":
        installed: Sequence[str] = [name for name in ENGINES if find_spec(name) is not None]
        return installed[0] if installed else ENGINES[0]
    if engine not in ENGINES:
        raise ValueError(f"engine must be 'auto', {', '.join(map(repr, ENGINES))}; got {engine!r}.")
    return engine


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
        Threads of the engine; None lets it choose.
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
    """
    return ExportedDetector(path, engine=engine, n_threads=n_threads, on_error=on_error)
