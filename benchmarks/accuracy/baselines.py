"""What else the same features give, with scikit-learn's parts: no training, or hardly any.

Each baseline takes the source, the preprocessing and the critical layers from a detector that
was fitted to the same images, so that all stand on the same source. Scores are higher for normal
images; maps, of the images' own size, are higher where they are anomalous. They are blurred as
those of the detectors are, but not opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from torch import Tensor

from skmkd import MKDDetector
from skmkd._features.batches import consecutive
from skmkd._maps.finishing import blur, resized_maps


@dataclass(kw_only=True, eq=False, repr=False)
class Baseline(BaseEstimator):
    """Features of a source, in the order of images; parameters are as in MKDDetector."""

    image_size: int = 128
    device: str = "auto"
    precision: str = "auto"
    random_state: int = 0

    def _see(self, X: Any) -> None:
        """Build the source; one epoch of a cloner is trained for it, and never used."""
        self._detector = MKDDetector(
            contamination=0.05,
            image_size=self.image_size,
            device=self.device,
            precision=self.precision,
            random_state=self.random_state,
            max_iter=1,
            tol=None,
        ).fit(X)

    def _features(self, X: Any) -> Iterator[dict[str, Tensor]]:
        detector = self._detector
        self._images = detector._check_images(X)
        dataset = detector._dataset(detector._tiles(self._images))
        batches = consecutive(range(len(self._images)), dataset.batch_size)
        for batch in dataset.batches(batches):
            yield {name: activations.float() for name, activations in batch.target.items()}


@dataclass(kw_only=True, eq=False, repr=False)
class _Patches(Baseline):
    """Features of each patch, and what is made of their distances to normal ones.

    Parameters
    ----------
    layers : sequence of int
        Which of the critical layers, from the finest; they are laid together on the grid of the
        first.
    smoothing_sigma : float
        Of the blur of maps, in pixels of the resized image.
    """

    layers: Sequence[int]
    smoothing_sigma: float = 4.0

    def _patches(self, X: Any) -> Iterator[Tensor]:  # (n, h, w, C)
        for features in self._features(X):
            chosen = [self._around(list(features.values())[i]) for i in self.layers]
            grid = chosen[0].shape[2:]
            whole = [F.interpolate(each, grid, mode="bilinear") for each in chosen]
            yield torch.cat(whole, dim=1).movedim(1, -1)

    def _around(self, activations: Tensor) -> Tensor:
        """Return what each position sees of its neighbours."""
        return activations

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images by the maxima of their maps, and keep these for `localize`."""
        size = list(self._detector._prepare.size)
        scores, self._maps = [], []
        for patches in self._patches(X):
            raw = self._distances(patches)  # (n, h, w)
            whole = F.interpolate(raw[:, None], size, mode="bilinear")[:, 0]
            blurred = blur(whole, self.smoothing_sigma)
            scores += (-blurred.amax((1, 2))).tolist()
            chosen = range(len(self._maps), len(self._maps) + len(blurred))
            self._maps += resized_maps(blurred, self._images.sizes(chosen))
        return np.array(scores)

    def localize(self, X: Any) -> list[np.ndarray]:
        """Return the maps of the images that were scored last."""
        assert len(X) == len(self._maps)
        return self._maps


@dataclass(kw_only=True, eq=False, repr=False)
class PatchNeighbours(_Patches):
    """Distance of each patch to the nearest normal one (as PatchCore, CVPR 2022).

    Features are averaged over 3 x 3 positions, and come from the layers of PatchCore's strides, 8
    and 16, unless others are named. Of the normal patches, as many as `n_patches` are kept, at
    random, where PatchCore chooses a core set.
    """

    layers: Sequence[int] = (1, 2)
    n_patches: int = 20_000

    def _around(self, activations: Tensor) -> Tensor:
        return F.avg_pool2d(activations, 3, 1, 1)

    def fit(self, X: Any) -> PatchNeighbours:
        """Keep normal patches."""
        self._see(X)
        bank = torch.cat([patches.flatten(0, 2) for patches in self._patches(X)]).numpy()
        rng = np.random.default_rng(self.random_state)
        kept = rng.permutation(len(bank))[: self.n_patches]
        self._nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(bank[kept])
        return self

    def _distances(self, patches: Tensor) -> Tensor:
        found = self._nearest.kneighbors(patches.flatten(0, 2).numpy())[0]
        return torch.from_numpy(found).float().view(patches.shape[:3])


@dataclass(kw_only=True, eq=False, repr=False)
class PositionGaussians(_Patches):
    """Mahalanobis distance to what is normal at each position (as PaDiM, ICPR 2021).

    Three layers of PaDiM's strides, 4, 8 and 16; of their channels `n_channels`, at random;
    `ridge` is added to the diagonal of every covariance.
    """

    layers: Sequence[int] = (0, 1, 2)
    n_channels: int = 100
    ridge: float = 0.01

    def fit(self, X: Any) -> PositionGaussians:
        """Fit a Gaussian to each position."""
        self._see(X)
        rng = np.random.default_rng(self.random_state)
        kept: list[np.ndarray] = []
        for patches in self._patches(X):
            if not kept:
                self._chosen = rng.permutation(patches.shape[-1])[: self.n_channels]
            kept.append(self._rows(patches))
        rows = np.concatenate(kept, axis=1)  # (h * w, n, d)
        self._mean = rows.mean(1, keepdims=True)
        centred = rows - self._mean
        covariance = centred.swapaxes(1, 2) @ centred / (rows.shape[1] - 1)
        self._precision = np.linalg.inv(covariance + self.ridge * np.eye(rows.shape[2]))
        return self

    def _rows(self, patches: Tensor) -> np.ndarray:  # (n, h, w, C) -> (h * w, n, d)
        return patches[..., self._chosen].flatten(1, 2).movedim(0, 1).numpy().astype(np.float64)

    def _distances(self, patches: Tensor) -> Tensor:
        centred = self._rows(patches) - self._mean
        squared = (centred @ self._precision * centred).sum(-1)
        return torch.from_numpy(np.sqrt(squared).T).float().view(patches.shape[:3])


class _Pooled(Baseline):
    """The mean of every channel of every critical layer, standardised; no maps."""

    def fit(self, X: Any) -> _Pooled:
        """Fit scikit-learn's detector to the pooled features."""
        self._see(X)
        self._model = make_pipeline(StandardScaler(), self._build()).fit(self._pooled(X))
        return self

    def _pooled(self, X: Any) -> np.ndarray:
        rows = [torch.cat([a.mean((2, 3)) for a in f.values()], 1) for f in self._features(X)]
        return torch.cat(rows).numpy()

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images."""
        return self._model.score_samples(self._pooled(X))


class PooledForest(_Pooled):
    """scikit-learn's IsolationForest."""

    def _build(self) -> IsolationForest:
        return IsolationForest(random_state=self.random_state)


class PooledSVM(_Pooled):
    """scikit-learn's OneClassSVM."""

    def _build(self) -> OneClassSVM:
        return OneClassSVM(gamma="scale", nu=0.1)
