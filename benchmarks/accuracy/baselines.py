"""What else the same features give, with scikit-learn's parts: no training, or hardly any.

Each baseline takes the source, the preprocessing and the critical layers from a detector that
was fitted to the same images, so that all stand on the same features. Scores are higher for
normal images; maps, of the images' own size, are higher where they are anomalous.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.covariance import ShrunkCovariance
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from torch import Tensor

from skmkd import MKDDetector
from skmkd._localization import localization_maps, resize_map
from skmkd._observation import fixed_batches
from skmkd._validation import check_images

PATCHES = 20_000  # in the memory bank at most, drawn at random
DIMENSIONS = 100  # of the features that a Gaussian is fitted to, drawn at random
SHRINKAGE = 0.01  # of its covariance


class Baseline:
    """Features of a source, in the order of images."""

    def __init__(self, *, random_state: int = 0, smoothing_sigma: float = 4.0, **settings: Any):
        self.random_state, self.smoothing_sigma = random_state, smoothing_sigma
        self._settings = settings

    def _see(self, X: Any) -> None:
        """Build the source; one epoch of a cloner is trained for it, and never used."""
        self._detector = MKDDetector(
            **self._settings, random_state=self.random_state, max_iter=1, tol=None
        ).fit(X)

    def _features(self, X: Any) -> Iterator[dict[str, Tensor]]:
        detector = self._detector
        self._images = check_images(detector, X, reset=False)
        size = detector._batch_size
        reader = detector._reader(self._images)
        for chosen, batch in fixed_batches(reader, range(len(self._images)), size):
            yield {name: a[: len(chosen)].float() for name, a in batch.target.items()}

    def _map_scores(self, distances: Iterator[Tensor]) -> None:
        """Finish maps (n, h, w) as skmkd's are, and take their maxima for scores."""
        maps, scores = [], []
        size = list(self._detector._prepare.size)
        for raw in distances:
            whole = F.interpolate(raw[:, None], size, mode="bilinear")[:, 0].numpy()
            for single in localization_maps(whole, self.smoothing_sigma, 1):
                scores.append(-single.max())
                maps.append(resize_map(single, self._images.sizes([len(maps)])[0]))
        self.scores, self.maps = np.array(scores), maps


class _Patches(Baseline):
    """Features of each patch: two layers, averaged over 3 x 3 patches, on the finer one's grid."""

    def _patches(self, X: Any) -> Iterator[Tensor]:  # (n, h, w, C)
        for features in self._features(X):
            parts = [F.avg_pool2d(a, 3, 1, 1) for a in list(features.values())[1:3]]
            grid = parts[0].shape[2:]
            coarse = F.interpolate(parts[1], grid, mode="bilinear")
            yield torch.cat([parts[0], coarse], dim=1).movedim(1, -1)

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images, and keep their maps for `localize`."""
        self._map_scores(self._distances(patches) for patches in self._patches(X))
        return self.scores

    def localize(self, X: Any) -> list[np.ndarray]:
        """Return the maps of the images that were scored last."""
        assert len(X) == len(self.maps)
        return self.maps


class PatchNeighbours(_Patches):
    """Distance of each patch to the nearest normal one (as PatchCore, CVPR 2022)."""

    def fit(self, X: Any) -> PatchNeighbours:
        """Keep normal patches."""
        self._see(X)
        bank = torch.cat([patches.flatten(0, 2) for patches in self._patches(X)]).numpy()
        rng = np.random.default_rng(self.random_state)
        kept = rng.permutation(len(bank))[:PATCHES]
        self._nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(bank[kept])
        return self

    def _distances(self, patches: Tensor) -> Tensor:
        found = self._nearest.kneighbors(patches.flatten(0, 2).numpy())[0]
        return torch.from_numpy(found).float().view(patches.shape[:3])


class PositionGaussians(_Patches):
    """Mahalanobis distance to what is normal at each position (as PaDiM, ICPR 2021)."""

    def fit(self, X: Any) -> PositionGaussians:
        """Fit a Gaussian to each position."""
        self._see(X)
        patches = torch.cat(list(self._patches(X)))  # (n, h, w, C)
        rng = np.random.default_rng(self.random_state)
        self._chosen = rng.permutation(patches.shape[-1])[:DIMENSIONS]
        rows = patches[..., self._chosen].flatten(1, 2).numpy()  # (n, h * w, d)
        self._gaussians = [
            ShrunkCovariance(shrinkage=SHRINKAGE).fit(rows[:, i]) for i in range(rows.shape[1])
        ]
        return self

    def _distances(self, patches: Tensor) -> Tensor:
        rows = patches[..., self._chosen].flatten(1, 2).numpy()
        squared = [g.mahalanobis(rows[:, i]) for i, g in enumerate(self._gaussians)]
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
