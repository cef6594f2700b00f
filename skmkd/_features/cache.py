"""Source activations computed once per fit and kept: in memory within a budget, else on disk."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import IO, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from skmkd._features.batches import Batch, Read
from skmkd._runtime import available_memory

MEMORY_SHARE = 0.25  # of the available memory, that "auto" takes at most
DISK_SHARE = 0.5  # of the free space, that a cache on disk takes at most
IMAGES = ""  # where the prepared images lie, beside the layers, none of which has this name


def byte_budget(cache: str | int | None) -> int | None:
    """Return the bytes of memory that a cache may take; None for no cache."""
    if isinstance(cache, str):  # "auto"
        return int(MEMORY_SHARE * available_memory())
    return cache


@contextmanager
def feature_cache(
    once: Read, anew: Read, n_images: int, batch_size: int, budget: int | None, verbose: int = 0
) -> Iterator[Read]:
    """See all images once, and serve them and the source's activations from then on.

    Parameters
    ----------
    once : callable
        Gives batches by their indices; is asked for each image once, in order.
    anew : callable
        The same, asked again and again where there is no cache.
    n_images, batch_size : int
        How many images there are, and how many to take at once.
    budget : int or None
        Bytes up to which the cache is held in memory. A larger one lies in a temporary file,
        which is gone when the context ends or the process dies. None takes no cache.
    verbose : int
        1 or more shows a progress bar.

    Yields
    ------
    read : callable
        Gives batches by their indices, from the cache; without one, and with a warning where
        the disk cannot hold it, `anew`.
    """
    if budget is None:
        yield anew
        return
    with ExitStack() as files:
        try:
            read = _fill(once, n_images, batch_size, budget, files, verbose)
        except UnstorableError as error:
            with suppress(OSError):
                files.close()  # what was written so far gives its space back
            warnings.warn(
                f"The feature cache was given up, and the source is computed anew in every epoch: "
                f"{error}. Raise cache, or set it to None to silence this.",
                UserWarning,
                stacklevel=2,
            )
            read = anew
        yield read


class UnstorableError(Exception):
    """The disk cannot hold a cache."""


class _Shelf(Protocol):
    """Rows of one kind, put down one after the other and then taken in any order."""

    def append(self, rows: Tensor) -> None: ...

    def rows(self) -> Tensor: ...


class _MemoryShelf:
    def __init__(self, n: int, example: Tensor) -> None:
        self._rows = torch.empty((n, *example.shape[1:]), dtype=example.dtype)
        self._filled = 0

    def append(self, rows: Tensor) -> None:
        self._rows[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def rows(self) -> Tensor:
        return self._rows


class _DiskShelf:
    """Rows written to an unnamed file, then mapped: a full disk fails while writing."""

    def __init__(self, n: int, example: Tensor, files: ExitStack) -> None:
        self._shape, self._dtype = (n, *example.shape[1:]), example.dtype
        with _storing():
            self._file: IO[bytes] = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115

    def append(self, rows: Tensor) -> None:
        with _storing():
            self._file.write(rows.contiguous().view(torch.uint8).numpy().data)

    def rows(self) -> Tensor:
        with _storing():
            self._file.flush()
            content = np.memmap(self._file, np.uint8, mode="r+")  # shared: it takes no memory
        return torch.from_numpy(content).view(self._dtype).view(self._shape)


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnstorableError(f"no temporary file can hold it ({error})") from error


def _fill(
    once: Read, n_images: int, batch_size: int, budget: int, files: ExitStack, verbose: int
) -> Read:
    shelves: dict[str, _Shelf] = {}
    with tqdm(total=n_images, desc="Looking", unit="image", disable=verbose < 1) as progress:
        starts = range(0, n_images, batch_size)
        for batch in once(range(start, min(start + batch_size, n_images)) for start in starts):
            rows = {IMAGES: batch.images, **batch.target}  # (n, C, h, w) -> (n, h, w, C)
            rows = {name: tensor.permute(0, 2, 3, 1).cpu() for name, tensor in rows.items()}
            shelves = shelves or _make_shelves(rows, n_images, budget, files)
            for name, shelf in shelves.items():
                shelf.append(rows[name])
            progress.update(len(batch))
    contents = {name: shelf.rows() for name, shelf in shelves.items()}
    return partial(_look_up, contents, batch.images.device)


def _make_shelves(
    rows: dict[str, Tensor], n_images: int, budget: int, files: ExitStack
) -> dict[str, _Shelf]:
    size = n_images * sum(tensor[0].nbytes for tensor in rows.values())
    if size <= budget:
        return {name: _MemoryShelf(n_images, tensor) for name, tensor in rows.items()}
    with _storing():
        place = tempfile.gettempdir()
        free = shutil.disk_usage(place).free
    if size > DISK_SHARE * free:
        raise UnstorableError(
            f"it needs {size / 1e9:.3g} GB, more than cache={budget} bytes of memory and "
            f"{DISK_SHARE:.0%} of the {free / 1e9:.3g} GB free in {place}"
        )
    return {name: _DiskShelf(n_images, tensor, files) for name, tensor in rows.items()}


def _look_up(
    shelves: dict[str, Tensor], device: torch.device, batches: Iterable[Sequence[int]]
) -> Iterator[Batch]:
    return (_gather(shelves, device, indices) for indices in batches)


def _gather(shelves: dict[str, Tensor], device: torch.device, indices: Sequence[int]) -> Batch:
    chosen = torch.as_tensor(np.asarray(indices))

    def take(name: str) -> Tensor:  # (n, h, w, C) -> (n, C, h, w), channels last in memory
        return shelves[name].index_select(0, chosen).permute(0, 3, 1, 2).to(device)

    return Batch(take(IMAGES), lambda: {name: take(name) for name in shelves if name != IMAGES})
