"""Images in batches, with the features that the source computes for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from skmkd._images.checks import RUN_PIXELS, Images
from skmkd._images.preparation import Preprocessing
from skmkd._maps.discrepancy import Features
from skmkd._networks.precision import run_in_batches
from skmkd._runtime import plain_arithmetic

# Pixels of a batch. On a CPU in float32 that is two images of 128 x 128, enough for its speed; in
# bfloat16 more, since oneDNN reorders the weights at each call and the rest is faster.
BATCH_PIXELS = {
    ("cpu", "float32"): 2**15,
    ("cpu", "bfloat16"): 2**17,
}
ACCELERATOR_PIXELS = 2**20


class Batch(NamedTuple):
    """Prepared images and the source's features.

    Parameters
    ----------
    images : Tensor of shape (n, 3, H, W), float32
        Input of both networks, on their device.
    target : dict of str to Tensor of shape (n, C, h, w)
        The source's activations at the critical layers.
    """

    images: Tensor
    target: Features


class Dataset(Protocol):
    """Images by their indices, as often as needed."""

    @property
    def batch_size(self) -> int:
        """Images that the networks process at once outside of training."""
        ...

    def tensors(self, batches: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the prepared images of each batch."""
        ...

    def features(self, images: Tensor) -> Features:
        """Compute the source's activations for any number of prepared images."""
        ...

    def batches(self, batches: Iterable[Sequence[int]], *, padded: bool = False) -> Iterator[Batch]:
        """Yield each batch with its features; `padded` repeats the last image of a short one."""
        ...


def inference_batch_size(size: tuple[int, int], device: torch.device, precision: str) -> int:
    """Return how many images of a size the networks process at once outside of training.

    All batches have this size, so that a score depends on the other images by rounding at most.
    """
    pixels = BATCH_PIXELS.get((device.type, precision), ACCELERATOR_PIXELS)
    return max(1, pixels // (size[0] * size[1]))


def consecutive(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Split indices into batches of a size, in order; the last one may be shorter."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


@dataclass(frozen=True)
class ImageDataset:
    """Read and prepare images, and compute their features.

    Parameters
    ----------
    images : Images
        Checked images, read when they are needed.
    prepare : Preprocessing
        Images (H, W, C) to a tensor (n, 3, height, width).
    source : callable
        Prepared images to features: the source network, or a `FeatureStore` around it.
    device : torch.device
        Where the source is.
    batch_size : int
        Images that the source processes at once.
    """

    images: Images
    prepare: Preprocessing
    source: Callable[[Tensor], Features]
    device: torch.device
    batch_size: int

    def tensors(self, batches: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the prepared images of each batch; as many threads as torch's prefetch the next."""
        n_threads = torch.get_num_threads()
        batches = iter(batches)
        ahead: deque[tuple[Sequence[int], list[Future[Tensor]]]] = deque()
        pool = ThreadPoolExecutor(n_threads)
        try:
            while True:
                while sum(len(parts) for _, parts in islice(ahead, 1, None)) < n_threads:
                    if (indices := next(batches, None)) is None:
                        break
                    height, width, _ = self.images.shape
                    runs: Sequence[Sequence[int]]
                    if height is None or width is None:
                        runs = self.images.runs(indices)
                    else:
                        runs = consecutive(indices, max(1, RUN_PIXELS // (height * width)))
                    ahead.append((indices, [pool.submit(self._read, run) for run in runs]))
                if not ahead:
                    return
                indices, parts = ahead.popleft()
                images = torch.cat([part.result() for part in parts])
                if self.images.errors:
                    self.images.warn_of_unreadable(indices)
                yield images.to(self.device, memory_format=torch.channels_last)
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, indices: Sequence[int]) -> Tensor:
        with plain_arithmetic(False, self.device):
            images = [self.images.read(index) for index in indices]
            return torch.cat([self.prepare(list(same)) for _, same in groupby(images, np.shape)])

    def features(self, images: Tensor) -> Features:
        """Compute the source's activations for any number of prepared images."""
        with plain_arithmetic(False, self.device):
            return run_in_batches(self.source, images, self.batch_size)

    def batches(self, batches: Iterable[Sequence[int]], *, padded: bool = False) -> Iterator[Batch]:
        """Yield each batch with its features; `padded` repeats the last image of a short one."""
        for images in self.tensors(batches):
            with plain_arithmetic(False, self.device):
                if padded and (n := len(images)) < self.batch_size:
                    images = images[torch.arange(self.batch_size).clamp(max=n - 1)]
                target = run_in_batches(self.source, images, self.batch_size)
            yield Batch(images, target)
