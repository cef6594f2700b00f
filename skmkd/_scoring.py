"""Scores and maps: of every tile, and from these of every image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skmkd._features.batches import Batch, Dataset, ImageDataset, consecutive, inference_batch_size
from skmkd._features.store import FeatureStore
from skmkd._images.checks import check_images
from skmkd._images.images import Images
from skmkd._images.inputs import ImagesLike
from skmkd._images.registration import Template
from skmkd._images.roi import RoiLike
from skmkd._images.tiles import Tiles
from skmkd._maps.finishing import (
    Maps,
    Output,
    localization_maps,
    resized_maps,
    resized_masks,
)
from skmkd._maps.merging import image_output
from skmkd._maps.usual import Sums, Usual
from skmkd._networks.engines import OWN, replayed, resolve_engine, source_engine
from skmkd._recording import waits
from skmkd._runtime import (
    CPU,
    one_behind,
    plain_arithmetic,
    uninterrupted,
    uninterrupted_steps,
)
from skmkd._warnings import warn

WEIGHTS = ("layer_weights_", "direction_weight_")  # learned numbers that a recording holds


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a detector says of one image; `iter_results` describes the attributes."""

    index: int
    path: str | None
    score: float
    decision: float
    p_value: float
    map: np.ndarray | None = field(repr=False)
    error: str | None

    @property
    def label(self) -> int:
        """+1 for a normal image, -1 for an anomaly and for an image without a score."""
        return 1 if self.decision >= 0 else -1


class ScoringMixin(BaseEstimator, ABC):
    """Score and localize images."""

    @abstractmethod
    def _outputs(
        self,
        images: Images,
        *,
        scores: bool = True,
        maps: bool = True,
        method: str | None = None,
        dataset: Dataset | None = None,
        indices: Sequence[int] | None = None,
    ) -> Iterator[Output]:
        """Yield score and localization map of each image; all methods go through here.

        The images at `indices`, all by default, are read from `dataset` if there is one. Maps are
        made by `method`, or as the detector's parameters say.
        """

    @abstractmethod
    def _check_options(self, method: str | None = None) -> None:
        """Check what the limits of single parameters cannot say."""

    @uninterrupted
    def score_samples(self, X: ImagesLike, *, roi: RoiLike = None) -> np.ndarray:
        """Compute how normal each image is.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `fit`, of the same channels, kind of number and pixel range; arrays of
            the same size, too.
        roi : region or list of n regions, default=None
            The region of interest of these images, as in the parameter `roi`, or of each of them;
            None is the one that `fit` took from the parameter.

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
        images = self._check_images(X, roi=roi)
        return np.array([output.score for output in self._outputs(images, maps=False)])

    @uninterrupted
    def localize(self, X: ImagesLike, method: str | None = None, *, roi: RoiLike = None) -> Maps:
        """Compute maps of where each image is anomalous.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.
        method : str, default=None
            One of the methods of the parameter `localization` of `MKDDetector`; None takes that
            parameter's. `MemKDDetector` has no others.
        roi : region or list of n regions, default=None
            As in `score_samples`. Outside, maps are 0.

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
            If X or a parameter is not as described, or there is no such method.
        """
        images = self._check_images(X, method, roi)
        outputs = self._outputs(images, scores=False, method=method)
        if not images.of_one_size:
            return [output.map for output in outputs]
        height, width, _ = images.shape
        maps = np.empty((len(images), height or 0, width or 0), dtype=np.float32)
        for output in outputs:
            maps[output.index] = output.map
        return maps

    @uninterrupted
    def iter_results(
        self, X: ImagesLike, *, maps: bool = False, roi: RoiLike = None
    ) -> Iterator[Result]:
        """Score images one after the other, whether or not some of them cannot be read.

        Each image is read once and computed as in `score_samples`. Memory does not grow with the
        number of files, with maps neither.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.
        maps : bool, default=False
            Whether results have localization maps.
        roi : region or list of n regions, default=None
            As in `score_samples`.

        Returns
        -------
        results : iterator of Result
            One for each image, in order, with the attributes

            - ``index``: its place in X;
            - ``path``: its path as a str, None if it is not a file;
            - ``score``: as of `score_samples`;
            - ``decision``: ``score - offset_``; negative = anomaly;
            - ``label``: +1 for a normal image, -1 for an anomaly or an image without a score;
            - ``p_value``: as of `p_value`; NaN if there are no calibration scores;
            - ``map``: as of `localize`, ndarray of shape (H, W), float32; None without `maps`;
            - ``error``: None, or why the image has no score, whatever `on_error` is. Then score,
              decision and p-value are NaN and there is no map.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X as a whole or a parameter is not as described, or parameters that scores depend on
            were changed since ``offset_`` was set.

        Examples
        --------
        >>> from skimage.data import lfw_subset
        >>> from skmkd import MKDDetector
        >>> images = lfw_subset()  # 100 faces, then 100 others
        >>> detector = MKDDetector(image_size=32, max_iter=8, random_state=0).fit(images[:100])
        >>> images[199, 0, 0] = float("nan")
        >>> for result in detector.iter_results(images[197:]):
        ...     print(result.index, result.label, result.error or f"{result.p_value:.2f}")
        0 -1 0.05
        1 -1 0.05
        2 -1 X[2] contains NaN. If it marks missing pixels, replace it by a likely value first; ...
        """
        self._threshold("offset_")
        tolerant = object.__new__(type(self))
        tolerant.__dict__ = vars(self) | {"on_error": "skip"}  # so that images have no errors
        images = tolerant._check_images(X, roi=roi)
        images.silent = True
        return uninterrupted_steps(tolerant._results(images, maps))

    def _results(self, images: Images, maps: bool) -> Generator[Result]:
        """Yield the result of each image; errors are those of the images."""
        threshold, calibration = self.offset_, self._score_calibration
        for output in self._outputs(images, maps=maps):
            index, score = output.index, output.score
            error = images.errors.pop(index, None)
            p_value = np.nan if calibration is None else float(calibration.p_values(-score))
            yield Result(
                index, images.path(index), score, score - threshold, p_value,
                None if error else output.map, error,
            )  # fmt: skip

    def _check_images(
        self, X: ImagesLike, method: str | None = None, roi: RoiLike = None
    ) -> Images:
        """Check new images, and parameters, which may have changed since `fit`."""
        check_is_fitted(self)
        self._validate_params()
        self._check_options(method)
        if roi is None and self._roi_of_each:
            raise ValueError("roi must be given, since images had one each at fit; got None.")
        return check_images(self, X, reset=False, roi=self._roi if roi is None else roi)


class NetworkScoringMixin(ScoringMixin):
    """Score and localize images with networks that have learned, tile by tile."""

    _template: Template | None  # that images are registered to
    _usual: Usual | None  # how maps are standardised at each position
    _usual_terms: dict[str, Any] | None  # of the maps that this is of
    _sums_of_held: Sums | None  # of maps of held-out images, until `fit` has set thresholds
    _left_out: Sums | None  # the same, while each of these images is compared with the others

    @abstractmethod
    def _judge(
        self, batch: Batch, scores: bool, maps: bool, method: str | None, inside: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return anomaly scores (n,) and raw maps (n, H, W), each None unless asked for.

        Maxima are of what is `inside` (n, H, W), or of everything.
        """

    def _outputs(
        self,
        images: Images,
        *,
        scores: bool = True,
        maps: bool = True,
        method: str | None = None,
        dataset: Dataset | None = None,
        indices: Sequence[int] | None = None,
    ) -> Iterator[Output]:
        """Yield score and map of each image, which has the score of its most anomalous tile."""
        dataset = dataset or self._dataset(self._tiles(images))
        tiles = dataset.tiles
        chosen = tiles.of(range(len(images)) if indices is None else indices)
        of_tiles = self._tile_outputs(dataset, chosen, scores, maps, method)
        for index, parts in groupby(of_tiles, key=lambda part: tiles.place(part.index)[0]):
            yield image_output(index, parts, tiles)
        images.warn_of_scale()

    def _tile_outputs(
        self, dataset: Dataset, chosen: Sequence[int], scores: bool, maps: bool, method: str | None
    ) -> Iterator[Output]:
        """Yield score and map of each tile, in pixels of its image."""
        batches = consecutive(chosen, dataset.batch_size)
        judged = self._judgements(dataset, batches, scores, maps, method)
        for batch, anomaly, finished in judged if self.device_ == CPU else one_behind(judged):
            n = len(batch)
            normal = [np.nan] * n if anomaly is None else (-anomaly).tolist()
            own: Iterable[Any] = [None] * n
            if finished is not None:
                own = resized_maps(finished, dataset.tiles.sizes(batch))
            for tile, score, single in zip(batch, normal, own, strict=True):
                yield Output(tile, score, single)

    def _judgements(
        self,
        dataset: Dataset,
        batches: Sequence[Sequence[int]],
        scores: bool,
        maps: bool,
        method: str | None,
    ) -> Iterator[tuple[Sequence[int], Tensor | None, Tensor | None]]:
        """Yield each batch of tiles with anomaly scores and finished maps, on the device."""
        known = self.device_.type == "cuda" and isinstance(self.cloner_, OWN)
        of_features = (method or getattr(self, "localization", "discrepancy")) == "discrepancy"
        replays = known and self._usual is None and (of_features or not maps)
        for chosen, batch in zip(batches, dataset.batches(batches), strict=True):
            with plain_arithmetic(False, self.device_):
                inside = self._inside(dataset.tiles, chosen)
                judged = partial(self._judged, scores, maps, method, inside)
                if replays and inside is None and waits(batch.images):
                    fitted = [str(vars(self).get(name)) for name in WEIGHTS]
                    settings = [*self._settings(), *fitted]
                    found = replayed(self.cloner_, (scores, maps), settings, judged, batch)
                else:
                    found = judged(batch)
                anomaly, finished = found
                if self._template is not None and finished is not None:
                    finished = self._template.returned(finished, dataset.tiles.poses[chosen])
            yield chosen, anomaly, finished

    def _judged(
        self, scores: bool, maps: bool, method: str | None, inside: Tensor | None, batch: Batch
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return anomaly scores (n,) and finished maps (n, H, W), each None unless asked for."""
        anomaly, raw = self._judge(batch, scores, maps, method, inside)
        if raw is not None:
            raw = localization_maps(raw, self.smoothing_sigma, self.opening_size)
            if self._usual is not None and inside is not None:
                raw = raw * inside
        return anomaly, raw

    def _inside(self, tiles: Tiles, chosen: Sequence[int]) -> Tensor | None:
        """Return what counts of prepared tiles (n, H, W), bool; None for everything."""
        size, inside = self._prepare.size, None
        if tiles.images.regions is not None:
            inside = resized_masks(tiles.masks(chosen), size, self.device_)
        if self._template is not None:
            if inside is None:
                inside = torch.ones(len(chosen), *size, dtype=torch.bool, device=self.device_)
            inside = self._template.covered(inside, tiles.poses[chosen])
        if self._usual is not None and not (known := self._usual.known).all():
            known = known.to(self.device_)
            inside = known.expand(len(chosen), -1, -1) if inside is None else inside & known
        return inside

    def _compared(self, maps: Tensor, inside: Tensor | None) -> Tensor:
        """Return by how much maps (n, H, W) exceed what is usual at each position, if that counts.

        Maps that are among those behind it are compared with the others.
        """
        if self._usual is None:
            return maps
        usual = self._usual
        if self._left_out is not None:
            usual = self._left_out.without(Sums.each(maps, inside)).usual(1)
        return usual.excess(maps, inside)

    def _sums(self, dataset: Dataset) -> Sums:
        """Return the sums over the maps of images from which what is usual follows."""
        batches = consecutive(range(len(dataset.tiles)), dataset.batch_size)
        sums: Sums | None = None
        for chosen, batch in zip(batches, dataset.batches(batches), strict=True):
            inside = self._inside(dataset.tiles, chosen)
            _, maps = self._judge(batch, False, True, None, inside)
            assert maps is not None  # asked for
            of_batch = Sums.each(maps, inside).over_all()
            sums = of_batch if sums is None else sums.plus(of_batch)
        assert sums is not None  # of one image at least
        return sums

    def _tiles(self, images: Images) -> Tiles:
        """Return the tiles that images are cut into; each is whole if `tile_size` is None."""
        return Tiles.cut(images, self._tiling)

    def _dataset(self, tiles: Tiles, *, stored: bool = True) -> ImageDataset:
        """Return tiles with the source's features, through the feature store if there is one."""
        engine = resolve_engine(self.engine, self.device_)
        replays = self.device_.type == "cuda" and self._origin.weights != "module"
        source = compute = source_engine(self.source_, self.precision_, engine, replays)
        folder = self.feature_store
        if self.memory != "deprecated":
            warn("memory was renamed to feature_store and will be removed.", FutureWarning)
            folder = getattr(self.memory, "location", self.memory)
        if stored and folder is not None:
            place = self.device_.type if engine == "torch" else engine
            source = FeatureStore(folder, self.source_, f"{self.precision_} {place}", compute)
        batch_size = inference_batch_size(self._prepare.size, self.device_)
        # on a CPU, torch's threads wait for each other where several of Python's use them
        overlaps = tiles.images.are_files or self.device_ != CPU or engine == "openvino"
        prefetch = overlaps and len(tiles) > 1
        return ImageDataset(
            tiles, self._prepare, source, self.device_, batch_size, prefetch, self._template
        )
