"""Both sources together, and scores that did not become options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator
from torch import Tensor

from skmkd import DetectorEnsemble, MKDDetector
from skmkd._features.batches import consecutive
from skmkd._maps.discrepancy import cosine_distance, products
from skmkd._maps.finishing import blur

STEADY = 0.1  # of a layer's deviation, added to those of its positions, which are of few images


@dataclass(kw_only=True, eq=False, repr=False)
class BothSources(BaseEstimator):
    """A DetectorEnsemble of a default MKDDetector with each of skmkd's own sources.

    Scales are of the training images, all of which are learned from.
    """

    combine: str = "mean"
    image_size: int | str = "auto"
    device: str = "auto"
    precision: str = "auto"
    random_state: int = 0

    def fit(self, X: Any) -> BothSources:
        """Fit both detectors."""
        shared = {name: getattr(self, name) for name in ("image_size", "device", "precision")}
        sources = "vgg16", "efficientnet_lite0"
        self._ensemble = DetectorEnsemble(
            [(source, MKDDetector(source=source, **shared)) for source in sources],
            combine=self.combine, contamination=0.05, random_state=self.random_state,
        ).fit(X)  # fmt: skip
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images, higher = more normal."""
        return self._ensemble.score_samples(X)

    def localize(self, X: Any) -> Any:
        """Compute maps, higher = more anomalous."""
        return self._ensemble.localize(X)


@dataclass(kw_only=True, eq=False, repr=False)
class MapScores(BaseEstimator):
    """MKDDetector, with the mean of the top share of a map for a score.

    Parameters
    ----------
    share : float
        Share of a map's pixels, the highest ones; 0 is the maximum.
    standardise : {"nothing", "layer", "position"}
        Over what the mean and deviation of the training images' maps, which are taken off each
        layer's map before these are summed, are computed.
    epochs : int
        How long to train.
    image_size, device, precision, random_state
        As in MKDDetector.
    """

    share: float
    standardise: str
    epochs: int
    image_size: int = 128
    device: str = "auto"
    precision: str = "auto"
    random_state: int = 0

    def fit(self, X: Any) -> MapScores:
        """Train, and note what is usual at each layer."""
        self._detector = MKDDetector(
            contamination=0.05,
            image_size=self.image_size,
            device=self.device,
            precision=self.precision,
            random_state=self.random_state,
            max_iter=self.epochs,
            batch_size=64,
            learning_rate=1e-3,
            schedule="constant",
        ).fit(X)
        axes = {"nothing": None, "layer": (0, 1, 2), "position": (0,)}[self.standardise]
        self._usual = [
            (0.0, 1.0)
            if axes is None
            else (maps.mean(axes, keepdim=True), maps.std(axes, keepdim=True) + STEADY * maps.std())
            for maps in self._layer_maps(X)
        ]
        return self

    def _layer_maps(self, X: Any) -> list[Tensor]:
        """Return a map of directions (n, h, w) for each critical layer."""
        detector = self._detector
        images = detector._check_images(X)
        dataset = detector._dataset(detector._tiles(images))
        batches = consecutive(range(len(images)), dataset.batch_size)
        found = []
        with torch.no_grad():
            for chosen, batch in zip(batches, dataset.batches(batches), strict=True):
                output = detector._cloner_output(batch)
                pairs = [products(batch.target[i], output[i]) for i in detector.score_layers_]
                maps = [cosine_distance(pair) for pair in pairs]
                found.append([each[: len(chosen)] for each in maps])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images, higher = more normal."""
        size = self._detector._prepare.size
        whole = [
            F.interpolate(((maps - mean) / deviation)[:, None], size, mode="bilinear")[:, 0]
            for maps, (mean, deviation) in zip(self._layer_maps(X), self._usual, strict=True)
        ]
        blurred = blur(sum(whole), self._detector.smoothing_sigma).numpy()
        highest = -np.sort(-blurred.reshape(len(blurred), -1), axis=1)
        return -highest[:, : max(1, int(self.share * highest.shape[1]))].mean(1)
