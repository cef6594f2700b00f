"""What the distillation detectors share: training, scores and maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import OutlierMixin, _fit_context
from sklearn.utils import Tags
from torch import Tensor, nn

from skmkd._export.exporting import ExportMixin
from skmkd._features.batches import Batch, Dataset, evenly_spaced
from skmkd._features.cache import cached
from skmkd._files.saving import SavingMixin
from skmkd._images.images import Images
from skmkd._images.inputs import ImagesLike
from skmkd._images.preparation import Preprocessing
from skmkd._images.registration import TEMPLATE_IMAGES, Template
from skmkd._images.roi import RoiLike
from skmkd._images.sizes import network_size
from skmkd._images.tiles import Tiles
from skmkd._interrupts import outside
from skmkd._maps.discrepancy import Features
from skmkd._maps.usual import COVERED
from skmkd._networks.engines import cloner_output
from skmkd._networks.layers import LayerRule
from skmkd._networks.sources import IDENTITY, Source, build_source
from skmkd._parameters import map_terms, tiling, unfitted
from skmkd._runtime import (
    CACHE_SHARE,
    available_memory,
    forked_rng,
    plain_arithmetic,
    private_generator,
    resolve_device,
    resolve_precision,
    uninterrupted,
)
from skmkd._scoring import NetworkScoringMixin
from skmkd._thresholds import ThresholdMixin
from skmkd._training import (
    Plan,
    Terms,
    distill,
    divergence,
    plan_training,
    settle_batch_norm,
    training_epochs,
)

OF_POSE = "_template", "_usual", "_usual_terms", "_sums_of_held", "_left_out"
ENOUGH = 10  # images held out, at least, from which the deviation at each position is learned


class BaseDistillationDetector(
    OutlierMixin, NetworkScoringMixin, ThresholdMixin, SavingMixin, ExportMixin, ABC
):
    """Train a cloner to reproduce a frozen source's features of normal images.

    A subclass declares its parameters, builds its cloner, says what it outputs and learns, and
    computes anomaly scores and raw maps of a batch.
    """

    _layer_rule: ClassVar[LayerRule]
    __metadata_request__fit: ClassVar = {"groups": False}  # of a search are for its splitter

    @abstractmethod
    def _build_cloner(self, source: Source, first: Batch) -> nn.Module:
        """Build the cloner, and set what is learned from the first batch."""

    def _cloner_input(self, batch: Batch) -> Tensor | Features:
        """Return what the cloner takes."""
        return batch.images

    def _cloner_output(self, batch: Batch) -> Features:
        """Return the cloner's features, at the critical layers at least."""
        return cloner_output(
            self.cloner_, self._cloner_input(batch), self._cloner_precision, self.device_,
            self.engine, self._folded,
        )  # fmt: skip

    @abstractmethod
    def _loss_terms(self, batch: Batch) -> Terms:
        """Return the loss terms of every image of a training batch."""

    def _weigh_layers(self, dataset: Dataset) -> None:
        """Set how much each layer counts in maps, by the trained cloner, if that differs."""

    @uninterrupted
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: ImagesLike,
        y: Any = None,
        *,
        groups: ArrayLike | None = None,
        roi: RoiLike = None,
        callback: Callable[[Self, int], Any] | None = None,
    ) -> Self:
        """Learn from normal images.

        If it fails, the detector stays as it was before. A first interrupt (Ctrl-C) after the first
        epoch ends training early and keeps what was learned, with a warning; a second one aborts.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            At least two normal images: of shape (n, H, W) or (n, H, W, C) with C in 1, 3, 4,
            (n, H * W * C) flattened, or a list of arrays (H, W) or (H, W, C) of any sizes. Bool,
            integer or float. RGBA is composited over white. Or a list or array of the paths of
            image files, which are read when they are needed.
        y : None
            Ignored: all images of X are taken to be normal.
        groups : array-like of shape (n,), default=None
            The lot, day or object of each image; whole groups are held out for the thresholds.
        roi : list of n regions, default=None
            The region of interest of each image, as in the parameter `roi`, instead of that.
        callback : callable, default=None
            Called after each epoch as ``callback(detector, epoch)`` with a detector that can
            score and localize, but has no thresholds yet. Parameters that it sets, such as
            another `image_score`, are reset when it returns.

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
        Grey image files become (H, W): of 8 bits uint8, of 16 bits uint16; 1 bit becomes 0 and
        255. Files with transparency become RGBA, and all other colours (palettes, CMYK) RGB of 8
        bits. The EXIF orientation is applied. Files have the same scores as such arrays.
        """
        fitted = unfitted(self)
        fitted._fit(X, groups, roi, callback)
        self.__dict__ = dict(vars(fitted))  # only now: a fit that fails leaves self unchanged
        return self

    def _fit(
        self, X: Any, groups: Any, roi: Any, callback: Callable[[Self, int], Any] | None
    ) -> None:
        images, held = self._admit(X, groups, roi)
        self._learn(images, held, callback, thresholds=held is None)
        if held is not None:
            with each_left_out([self]):
                self._set_held_out_thresholds(held)

    def _learn(
        self,
        images: Images,
        held: Images | None = None,
        callback: Callable[[Self, int], Any] | None = None,
        *,
        thresholds: bool = False,
    ) -> None:
        """Learn from checked images, all of them, and set the thresholds on them if asked to.

        Of the images held out, no more is learned than what is usual at each position of maps.
        """
        self.__dict__.update(dict.fromkeys(OF_POSE))  # None
        self._tiling = tiling(self)
        self.device_ = resolve_device(self.device)
        self.precision_ = resolve_precision(self.precision, self.device_)
        self._cloner_precision, self._folded = self.precision_, True
        generator = private_generator(self._seed)
        automatic = self.cache in ("auto", None)
        budget = int(CACHE_SHARE * available_memory() if automatic else self.cache)
        # layers of a user's own cloner may draw, as dropout does
        forked = forked_rng(self._seed, self.device_) if self._has_own_cloner else nullcontext()
        tiles = self._tiles(images)
        learned = tiles if self._tiling.size is None else tiles.drawn(self.max_tiles, self._seed)
        with plain_arithmetic(True, self.device_), forked:
            source = self._build_source(tiles)
            self.source_, self._origin = source.network, source.origin
            self.critical_layers_ = tuple(s.layer for s in source.stages if s.critical)
            self._check_options()  # again, now that the layers are known
            if self.pose == "rigid":
                self._template = self._learned_template(images)
            with self._cached(learned, budget) as dataset:
                plan = plan_training(
                    len(learned), self._prepare.size, self.batch_size, self.max_iter,
                    self.tol is not None,
                )  # fmt: skip
                augmented = self.augmentation is not None
                epochs = training_epochs(dataset, plan, generator, augmented)
                first = next(next(epochs))
                for layer, activations in first.target.items():
                    if not activations.isfinite().all():
                        raise ValueError(
                            "source must give finite activations; at critical layer "
                            f"{layer!r} it does not."
                        )
                self.cloner_ = self._build_cloner(source, first)
                self.loss_curve_ = self._train(epochs, dataset, plan, callback, held)
                self.n_iter_ = len(self.loss_curve_["total"])
                if thresholds:
                    self._set_training_thresholds(images, dataset if learned is tiles else None)

    @property
    def _has_own_cloner(self) -> bool:
        """Whether the cloner is a module of the user's."""
        return isinstance(getattr(self, "cloner", None), nn.Module)

    def _build_source(self, tiles: Tiles) -> Source:
        """Build the source and, for its normalization, the preparation of images."""
        size = network_size(self.image_size, tiles.grids)
        source = build_source(
            self.source, self.source_weights, self.critical_layers, self._layer_rule, size,
            self.device_, self.precision_, self._seed,
        )  # fmt: skip
        normalization = IDENTITY if self.normalization is None else source.normalization
        self._prepare = Preprocessing(size, self.pixel_range_, *normalization)
        return source

    def _learned_template(self, images: Images) -> Template:
        """Learn what images are registered to from some of them."""
        chosen = evenly_spaced(len(images), TEMPLATE_IMAGES)
        prepared = [self._prepare([images.read(index)])[0] for index in chosen]
        return Template.learned(prepared, images.sizes(chosen[:1])[0])

    def _learn_usual(self, dataset: Dataset, held: Images | None) -> None:
        """Learn what is usual at each position, from images held out if these are enough."""
        self._usual = None
        if held is not None and len(held) < ENOUGH:
            held = None
        normal = dataset if held is None else self._dataset(self._tiles(held))
        sums = self._sums(normal)
        usual = sums.usual(COVERED * len(normal.tiles))
        if not usual.known.any():
            raise ValueError(
                "roi must be much the same for all images with pose; no position is within the "
                "regions of half of them."
            )
        self._usual = usual
        self._usual_terms = map_terms(self)
        self._sums_of_held = None if held is None else sums.where(usual.known)

    def _cached(self, tiles: Tiles, budget: int) -> AbstractContextManager[Dataset]:
        """Read images, and compute features, once for all epochs, as far as `cache` allows."""
        augmented = self.augmentation is not None
        with_features = self.cache is not None and not augmented
        dataset = self._dataset(tiles, stored=with_features)
        if self.cache is None and not tiles.images.are_files:
            return nullcontext(dataset)
        if augmented and self.verbose >= 1:
            print("Augmented images differ in every epoch, so their features are not cached.")
        return cached(
            dataset, budget, with_features=with_features, required=self.cache is not None,
            verbose=self.verbose,
        )  # fmt: skip

    def _train(
        self,
        epochs: Iterator[Iterator[Batch]],
        dataset: Dataset,
        plan: Plan,
        callback: Callable[[Self, int], Any] | None,
        held: Images | None,
    ) -> dict[str, np.ndarray]:
        """Train the cloner and return its loss curve."""

        def settle() -> None:
            settle_batch_norm(self.cloner_, self._cloner_output, dataset, plan, self._seed)
            with plain_arithmetic(False, self.device_):
                self._weigh_layers(dataset)
                if self.pose is not None:
                    self._learn_usual(dataset, held)

        def after_epoch(epoch: int) -> None:
            assert callback is not None
            settle()
            self._sums_of_held = None  # a callback may save the detector
            parameters = self.get_params(deep=False)
            try:
                outside(partial(callback, self, epoch))
            finally:
                self.__dict__.update(parameters)

        curve = distill(
            self.cloner_, epochs, self._loss_terms, plan, learning_rate=self.learning_rate,
            schedule=self.schedule, betas=getattr(self, "betas", (0.9, 0.999)),
            recorded=self.device_.type == "cuda" and not self._has_own_cloner, tol=self.tol,
            n_iter_no_change=self.n_iter_no_change, verbose=self.verbose,
            after_epoch=None if callback is None else after_epoch,
        )  # fmt: skip
        settle()
        learned = (*self.cloner_.parameters(), *self.cloner_.buffers())
        if not all(tensor.isfinite().all() for tensor in learned):
            raise ValueError(divergence(len(curve["total"]), self.learning_rate))
        return curve

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


@contextmanager
def each_left_out(detectors: Sequence[BaseDistillationDetector]) -> Iterator[None]:
    """Compare each held-out image with the others alone, and forget these images at the end.

    What is usual at each position includes the image itself, if it is of those held out, so that it
    would look more usual than a new image does.
    """
    for detector in detectors:
        detector._left_out, detector._sums_of_held = detector._sums_of_held, None
    yield
    for detector in detectors:
        detector._left_out = None
