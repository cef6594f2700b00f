"""Images in batches, with the features that the source computes for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice, tee
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from skmkd._images.preparation import Preprocessing
from skmkd._images.registration import Template
from skmkd._images.tiles import Tiles
from skmkd._interrupts import stop_if_interrupted
from skmkd._maps.discrepancy import Features
from skmkd._networks.precision import run_in_batches
from skmkd._runtime import CPU, current_stream, follow, gpu_memory, plain_arithmetic

CPU_PIXELS = 2**16  # of a batch: four images of 128 x 128, enough for the speed of a CPU
OTHER_PIXELS = 2**20
GPU_PIXELS, GPU_BYTES = 2**22, 2**13  # at most, and memory of the device for each
RUN_PIXELS = {"cpu": 2**18, "cuda": 2**22}  # of the images that are read and prepared at once

Runs = tuple[Sequence[int], list[list[int]]]  # a batch, and what of it is prepared at once
Prepared = list[Tensor]  # of a run of images: for each dataset, of shape (n, 3, H, W)
Read = Callable[[Sequence[int]], Prepared]


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
    """Tiles of images by their indices, as often as needed."""

    @property
    def tiles(self) -> Tiles:
        """What the indices stand for."""
        ...

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

    def batches(self, batches: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Yield each batch with its features."""
        ...


def inference_batch_size(size: tuple[int, int], device: torch.device) -> int:
    """Return how many images of a size the networks process at once outside of training.

    It depends on the device, but not on its load: a score is the same at any time.
    """
    if device.type == "cuda":
        pixels = min(GPU_PIXELS, gpu_memory(device)[1] // GPU_BYTES)
    else:
        pixels = CPU_PIXELS if device.type == "cpu" else OTHER_PIXELS
    return max(1, pixels // (size[0] * size[1]))


def evenly_spaced(n: int, most: int) -> list[int]:
    """Return the indices of at most so many of n images, evenly spaced."""
    return np.linspace(0, n - 1, min(n, most)).astype(int).tolist()


def consecutive(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Split indices into batches of a size, in order; the last one may be shorter."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


@dataclass(frozen=True)
class ImageDataset:
    """Read and prepare tiles of images, and compute their features.

    Parameters
    ----------
    tiles : Tiles
        Of checked images, read when they are needed.
    prepare : Preprocessing
        Images (H, W, C) to a tensor (n, 3, height, width).
    source : callable
        Prepared images to features: the source network, or a `FeatureStore` around it.
    device : torch.device
        Where the source is.
    batch_size : int
        Images that the source processes at once.
    prefetch : bool
        Whether other threads read and prepare the next images meanwhile.
    template : Template or None
        What whole images are registered to, once they are prepared; `tiles` keeps their poses.
    """

    tiles: Tiles
    prepare: Preprocessing
    source: Callable[[Tensor], Features]
    device: torch.device
    batch_size: int
    prefetch: bool = True
    template: Template | None = None

    def tensors(self, batches: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the prepared images of each batch."""
        return (images for (images,) in tensors_of_each([self], batches))

    @property
    def prepared_on(self) -> torch.device:
        """Where images are prepared: on the device, if it computes in float64."""
        return self.device if self.device.type == "cuda" else CPU

    def features(self, images: Tensor) -> Features:
        """Compute the source's activations for any number of prepared images."""
        with plain_arithmetic(False, self.device):
            return run_in_batches(self.source, images, self.batch_size)

    def batches(self, batches: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Yield each batch with its features."""
        for images in self.tensors(batches):
            yield Batch(images, self.features(images))


@dataclass(frozen=True, kw_only=True)
class InStep(ImageDataset):
    """A dataset whose images are prepared already, and taken once, in order.

    Parameters
    ----------
    rows : iterator of Tensor of shape (3, H, W)
        The prepared images, on the device.
    """

    rows: Iterator[Tensor]

    def tensors(self, batches: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the prepared images of each batch."""
        for indices in batches:
            images = torch.stack(list(islice(self.rows, len(indices))))
            yield images.to(memory_format=torch.channels_last)


def in_step(datasets: Sequence[ImageDataset], indices: Sequence[int]) -> list[ImageDataset]:
    """Let datasets of the same images read each of those at the indices once, for all of them.

    What waits for the slowest are prepared images, which are small, whatever the size of the files.
    The tiles of an image together may be large: datasets that cut images up read by themselves.
    """
    whole = [k for k, dataset in enumerate(datasets) if dataset.tiles.are_whole]
    size = min((datasets[k].batch_size for k in whole), default=1)
    together = tensors_of_each([datasets[k] for k in whole], consecutive(indices, size))
    found = list(datasets)
    for place, (k, stream) in enumerate(zip(whole, tee(together, len(whole)), strict=True)):
        rows = chain.from_iterable(map(itemgetter(place), stream))
        found[k] = InStep(**vars(datasets[k]), rows=rows)
    return found


def tensors_of_each(
    datasets: Sequence[ImageDataset], batches: Iterable[Sequence[int]]
) -> Iterator[list[Tensor]]:
    """Yield each batch of images, read once and prepared for each dataset of the same tiles."""
    tiles = datasets[0].tiles
    n_pixels = min(RUN_PIXELS[dataset.prepared_on.type] for dataset in datasets)
    runs = ((indices, tiles.runs(indices, n_pixels)) for indices in batches)
    read = partial(_read, datasets)
    if any(dataset.prefetch for dataset in datasets):
        prepared = _prefetched(read, runs, [current_stream(each.device) for each in datasets])
    else:
        prepared = ((indices, [read(run) for run in parts]) for indices, parts in runs)
    for indices, parts in prepared:
        stop_if_interrupted()
        images = [torch.cat(of_one) for of_one in zip(*parts, strict=True)]
        tiles.warn_of_unreadable(indices)
        yield [
            of_one.to(dataset.device, memory_format=torch.channels_last)
            for of_one, dataset in zip(images, datasets, strict=True)
        ]


def _prefetched(
    read: Read, batches: Iterator[Runs], streams: Sequence[Any]
) -> Iterator[tuple[Sequence[int], list[Prepared]]]:
    """Yield each batch and its images; as many threads as torch's read the next ones."""
    n_threads = torch.get_num_threads()
    ahead: deque[tuple[Sequence[int], list[Future[Prepared]]]] = deque()
    pool = ThreadPoolExecutor(n_threads, initializer=follow, initargs=(*streams,))
    try:
        while True:
            while sum(len(parts) for _, parts in islice(ahead, 1, None)) < n_threads:
                if (batch := next(batches, None)) is None:
                    break
                indices, runs = batch
                ahead.append((indices, [pool.submit(read, run) for run in runs]))
            if not ahead:
                return
            indices, parts = ahead.popleft()
            yield indices, [part.result() for part in parts]
    finally:
        pool.shutdown(cancel_futures=True)


def _read(datasets: Sequence[ImageDataset], indices: Sequence[int]) -> Prepared:
    """Read tiles, and prepare them for each dataset; those of one size are resized once."""
    images = [datasets[0].tiles.read(index) for index in indices]
    same = [list(group) for _, group in groupby(images, np.shape)]
    scaled: dict[Any, Tensor] = {}
    prepared = []
    for dataset in datasets:
        place, prepare = dataset.prepared_on, dataset.prepare
        with plain_arithmetic(False, dataset.device):
            if (how := (prepare.size, place)) not in scaled:
                scaled[how] = torch.cat([prepare.scaled(each, place) for each in same])
            own = prepare.normalised(scaled[how])
            if dataset.template is not None:
                poses = dataset.tiles.poses[indices] = dataset.template.poses(own)
                own = dataset.template.registered(own, poses)
        prepared.append(own)
    return prepared
