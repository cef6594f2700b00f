"""Training images and their features, computed once per fit and kept in memory or on disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from skmkd._features.batches import Batch, Dataset, ImageDataset, consecutive
from skmkd._images.tiles import Tiles
from skmkd._interrupts import stop_if_interrupted
from skmkd._maps.discrepancy import Features
from skmkd._runtime import CACHE_SHARE, CPU, gpu_memory, sent
from skmkd._warnings import warn

DISK_SHARE = 0.5  # of the free space, that a cache on disk takes at most
IMAGES = ""  # key of the prepared images beside those of the layers, none of which is empty

Rows = dict[str, Tensor]  # (n, h, w, C), by layer; `IMAGES` for the images


@dataclass(frozen=True)
class CachedDataset:
    """A dataset whose images, and features if there are any, are cached.

    Parameters
    ----------
    origin : ImageDataset
        Computes features that are not cached.
    rows : dict of str to Tensor of shape (n, h, w, C)
        The cached images and features.
    batch_size : int
        Images that the networks process at once outside of training.
    """

    origin: ImageDataset
    rows: Rows

    batch_size: int

    @property
    def tiles(self) -> Tiles:
        """What the indices stand for."""
        return self.origin.tiles

    def tensors(self, batches: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the prepared images of each batch."""
        return (self._take(indices)[IMAGES] for indices in batches)

    def features(self, images: Tensor) -> Features:
        """Compute the source's activations for any number of prepared images."""
        return self.origin.features(images)

    def batches(self, batches: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Yield each batch with its features."""
        for indices in batches:
            taken = self._take(indices)
            images = taken.pop(IMAGES)
            yield Batch(images, taken or self.features(images))

    def _take(self, indices: Sequence[int]) -> Rows:
        """Return rows by their indices, as (n, C, h, w) with channels last in memory."""
        stop_if_interrupted()
        chosen = sent(torch.as_tensor(np.asarray(indices)), self.rows[IMAGES].device)
        return {
            name: sent(rows.index_select(0, chosen), self.origin.device).permute(0, 3, 1, 2)
            for name, rows in self.rows.items()
        }


@contextmanager
def cached(
    dataset: ImageDataset,
    budget: int,
    *,
    with_features: bool,
    required: bool,
    verbose: int = 0,
) -> Iterator[Dataset]:
    """Read a dataset once and serve it from a cache.

    Parameters
    ----------
    dataset : ImageDataset
        Read once, in order.
    budget : int
        Bytes up to which the cache is in memory: on a GPU, if it takes a quarter of what is free
        there at most. A larger one is a temporary file, which is deleted when the context ends or
        the process dies.
    with_features : bool
        Whether features are cached, or the prepared images only.
    required : bool
        Whether to warn if the disk cannot hold it.
    verbose : int, default=0
        1 or more shows a progress bar.

    Yields
    ------
    dataset : Dataset
        The cached one; the original, if the disk cannot hold it.
    """
    with ExitStack() as files:
        try:
            rows = _fill(dataset, budget, with_features, files, verbose)
        except UnstorableError as error:
            with suppress(OSError):
                files.close()  # frees the space of what was written
            if required:
                warn(
                    "The cache was given up, and images and features are computed in every "
                    f"epoch: {error}. Raise cache, or set it to None to silence this."
                )
            yield dataset
        else:
            yield CachedDataset(dataset, rows, dataset.batch_size)


class UnstorableError(Exception):
    """The disk cannot hold a cache."""


class _Rows:
    """Rows of one kind, appended one after another: in memory of a device, or in an unnamed file.

    The file is written before it is mapped, so that a full disk is an error while writing.
    """

    def __init__(self, n: int, example: Tensor, place: torch.device | ExitStack) -> None:
        self._shape, self._dtype = (n, *example.shape[1:]), example.dtype
        self._file: IO[bytes] | None = None
        self._n = 0
        if isinstance(place, torch.device):
            self._rows = torch.empty(self._shape, dtype=self._dtype, device=place)
        else:
            with _writing():
                self._file = place.enter_context(tempfile.TemporaryFile())  # noqa: SIM115

    def append(self, rows: Tensor) -> None:
        if self._file is None:
            self._rows[self._n : self._n + len(rows)] = rows
            self._n += len(rows)
            return
        with _writing():
            self._file.write(rows.cpu().contiguous().view(torch.uint8).numpy().data)

    def tensor(self) -> Tensor:
        if self._file is None:
            return self._rows
        with _writing():
            self._file.flush()
            content = np.memmap(self._file, np.uint8, mode="r+")  # shared: it takes no memory
        return torch.from_numpy(content).view(self._dtype).view(self._shape)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnstorableError(f"no temporary file can hold it ({error})") from error


def _fill(
    dataset: ImageDataset,
    budget: int,
    with_features: bool,
    files: ExitStack,
    verbose: int,
) -> Rows:
    n_images = len(dataset.tiles)
    indices = consecutive(range(n_images), dataset.batch_size)
    if with_features:
        batches = dataset.batches(indices)
    else:
        batches = (Batch(images, {}) for images in dataset.tensors(indices))
    stored: dict[str, _Rows] = {}
    with tqdm(total=n_images, desc="Reading", unit="image", disable=verbose < 1) as progress:
        for batch in batches:
            rows = {IMAGES: batch.images, **batch.target}  # (n, C, h, w) -> (n, h, w, C)
            rows = {name: tensor.permute(0, 2, 3, 1) for name, tensor in rows.items()}
            if not stored:
                size = n_images * sum(tensor[0].nbytes for tensor in rows.values())
                place: torch.device | ExitStack = dataset.device
                if size > min(budget, CACHE_SHARE * gpu_memory(dataset.device)[0]):
                    place = CPU
                if size > budget:
                    _check_disk(size, budget)
                    place = files
                stored = {name: _Rows(n_images, tensor, place) for name, tensor in rows.items()}
            for name, tensor in rows.items():
                stored[name].append(tensor)
            progress.update(len(batch.images))
    return {name: each.tensor() for name, each in stored.items()}


def _check_disk(size: int, budget: int) -> None:
    """Check that a temporary file can have a size, in bytes."""
    with _writing():
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
    if size > DISK_SHARE * free:
        raise UnstorableError(
            f"it needs {size / 1e9:.3g} GB, more than cache={budget} bytes of memory and "
            f"{DISK_SHARE:.0%} of the {free / 1e9:.3g} GB free in {folder}"
        )
