"""PatchCore and PaDiM as anomalib computes them, on the source and images of our baselines.

anomalib 2.7.0, of the extra `peers`, computes all but the preparation of images: patches, core set,
neighbours, Gaussians, maps and scores. Its networks take a torch module for a backbone; here it is
the VGG-16 that comes with skmkd, so that nothing is downloaded. Parameters are anomalib's defaults
unless a docstring says otherwise.

As PatchCore chooses a core set on a CPU, small tensors that stay come between large ones that go,
and the heap of glibc may grow by gigabytes. MALLOC_MMAP_THRESHOLD_=65536 in the environment
prevents that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from benchmarks.accuracy.baselines import Baseline
from skmkd._features.batches import consecutive
from skmkd._maps.finishing import resized_maps
from skmkd._packages import MissingExtraError
from skmkd._runtime import forked_rng


@dataclass(kw_only=True, eq=False, repr=False)
class _Peer(Baseline):
    """One of anomalib's networks that learn in one pass; parameters are as in MKDDetector.

    Parameters
    ----------
    layers : sequence of int
        Which of the critical layers, from the finest.
    """

    layers: Sequence[int]
    precision: str = field(default="float32", init=False)  # anomalib computes in no other

    def fit(self, X: Any) -> Self:
        """Pass normal images through the network, and let it sum up what it stored of them.

        Raises
        ------
        MissingExtraError
            If anomalib is not installed.
        """
        if not find_spec("anomalib"):
            raise MissingExtraError(
                f'{type(self).__name__} needs anomalib: pip install "skmkd[peers]"'
            )
        self._see(X)
        detector = self._detector
        names = [detector.critical_layers_[i] for i in self.layers]
        with self._seeded(), warnings.catch_warnings(action="ignore"):  # of anomalib's own code
            self._network = self._build(names, detector.source_)
            self._network.to(detector.device_).train()
            for images in self._tensors(X):
                self._network(images)
            self._sum_up()
        self._network.eval()
        return self

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed the global generators, the only ones that anomalib draws from, and restore them."""
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed(self.random_state)  # noqa: NPY002
        try:
            with forked_rng(self.random_state, self._detector.device_):
                yield
        finally:
            np.random.set_state(before)  # noqa: NPY002

    def _tensors(self, X: Any) -> Iterator[Tensor]:
        """Yield prepared images (n, 3, H, W) in batches."""
        detector = self._detector
        self._images = detector._check_images(X)
        dataset = detector._dataset(detector._tiles(self._images))
        return dataset.tensors(consecutive(range(len(self._images)), dataset.batch_size))

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images, higher = more normal, and keep their maps for `localize`."""
        scores: list[float] = []
        self._maps: list[np.ndarray] = []
        for images in self._tensors(X):
            found = self._network(images)
            scores += (-found.pred_score.flatten()).tolist()
            chosen = range(len(self._maps), len(self._maps) + len(images))
            self._maps += resized_maps(found.anomaly_map[:, 0], self._images.sizes(chosen))
        return np.array(scores)

    def localize(self, X: Any) -> list[np.ndarray]:
        """Return the maps of the images that were scored last."""
        assert len(X) == len(self._maps)
        return self._maps


@dataclass(kw_only=True, eq=False, repr=False)
class AnomalibPatchCore(_Peer):
    """PatchCore of anomalib, with layers of its strides, 8 and 16."""

    layers: Sequence[int] = (1, 2)
    coreset_sampling_ratio: float = 0.1
    num_neighbors: int = 9

    def _build(self, names: list[str], source: nn.Module) -> Any:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        return PatchcoreModel(names, source, num_neighbors=self.num_neighbors)

    def _sum_up(self) -> None:
        self._network.subsample_embedding(self.coreset_sampling_ratio)


@dataclass(kw_only=True, eq=False, repr=False)
class AnomalibPaDiM(_Peer):
    """PaDiM of anomalib, with layers of its strides, 4, 8 and 16.

    It has no number of channels for a VGG-16; here it is that for ResNet-18, its default backbone.
    """

    layers: Sequence[int] = (0, 1, 2)
    n_features: int = 100

    def _build(self, names: list[str], source: nn.Module) -> Any:
        from anomalib.models.image.padim.torch_model import PadimModel

        return PadimModel(source, names, n_features=self.n_features)

    def _sum_up(self) -> None:
        self._network.fit()
