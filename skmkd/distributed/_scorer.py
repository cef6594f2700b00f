"""A detector for the processes of a cluster: small to send, loaded once in each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np
import torch

from skmkd._images.inputs import ImagesLike
from skmkd._loading import load
from skmkd._scoring import Result

COLUMNS = ("path", "score", "decision", "p_value", "error")
TEXTS = ("path", "error")
KEPT = 8  # detectors in a process
LOADING = Lock()

Columns = dict[str, Any]  # name -> ndarray of shape (n,), or a list of n maps


class Scorer:
    """Score batches of images with a saved detector, in any process that can read its file.

    It is pickled as the path of the file, in a few hundred bytes. A process loads the file at the
    first call, once for all scorers of it.

    Parameters
    ----------
    model : str or path
        File that the method `save` of a detector wrote, at the same path in each process.
    device : str, default=None
        Torch device, such as "cpu" or "cuda:1"; None is the kind that the fit was on, if it is
        there.
    threads : int, default=None
        Torch's threads while it scores; None leaves them as they are. Dask's and Ray's workers
        have one by default.
    maps : bool, default=False
        Whether to return localization maps.

    Examples
    --------
    >>> import os, pickle, tempfile
    >>> from skimage.data import lfw_subset
    >>> from skmkd import MKDDetector
    >>> from skmkd.distributed import Scorer
    >>> faces = lfw_subset()[:40]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "faces.skmkd")
    ...     detector = MKDDetector(image_size=32, max_iter=1, contamination=0.05).fit(faces)
    ...     detector = detector.save(path)
    ...     scorer = pickle.loads(pickle.dumps(Scorer(path)))
    ...     columns = scorer({"image": faces[:3], "id": ["a", "b", "c"]})
    >>> sorted(columns)
    ['decision', 'error', 'id', 'p_value', 'path', 'score']
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str | None = None,
        threads: int | None = None,
        maps: bool = False,
    ) -> None:
        self.model = os.path.abspath(model)
        self.device = device
        self.threads = threads
        self.maps = maps

    def __repr__(self) -> str:
        return f"Scorer({self.model!r})"

    def __call__(self, batch: ImagesLike | Mapping[str, Any]) -> Columns:
        """Score images.

        Parameters
        ----------
        batch : list of paths, array-like, list of array-like, or dict
            Images as in `score_samples` of the detector. A dict of columns has them in "image", or
            their paths in "path"; its other columns are returned as they are.

        Returns
        -------
        columns : dict of str to ndarray of shape (n,)
            "path", str, "" if there is none; "score", "decision" and "p_value", float64, as of the
            detector's methods; "error", str, "" or why an image has no score: the others are NaN
            then. With `maps`, "map" is a list of n ndarrays of shape (H, W), float32, or None.

        Raises
        ------
        OSError
            If the detector's file cannot be read.
        ValueError
            If the file is damaged, or the batch holds neither images nor paths.
        """
        images, others = _images_in(batch)
        n = len(images)
        results = []
        if n:
            with torch_threads(self.threads):
                results = list(self.detector().iter_results(images, maps=self.maps))
        rows = [row_of(result) for result in results]
        columns: Columns = {
            name: np.array([row[i] for row in rows], object if name in TEXTS else np.float64)
            for i, name in enumerate(COLUMNS)
        }
        if self.maps:
            columns["map"] = [each.map for each in results]
        return columns | others

    def detector(self) -> Any:
        """Return the detector, which this process loads once.

        Returns
        -------
        detector : MKDDetector, MemKDDetector or DetectorEnsemble
            Shared by all scorers of the file in this process, which keeps the last eight.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If the file is damaged.
        """
        found = os.stat(self.model)
        with LOADING:
            return _loaded(self.model, self.device, (found.st_mtime_ns, found.st_size))


@lru_cache(KEPT)
def _loaded(model: str, device: str | None, written: tuple[int, int]) -> Any:
    """Load a file, unless this process has done so since the file was written."""
    return load(model, device=device)


def _images_in(batch: Any) -> tuple[Any, Columns]:
    """Return the images of a batch, or their paths, and its other columns."""
    if not isinstance(batch, Mapping):
        return batch if hasattr(batch, "__len__") else list(batch), {}
    if "image" in batch:
        others = {name: column for name, column in batch.items() if name != "image"}
        return list(batch["image"]), others
    if "path" not in batch:
        raise ValueError(
            f"batch must have the column 'image' or 'path'; got {sorted(map(str, batch))}."
        )
    others = {name: column for name, column in batch.items() if name != "path"}
    return [os.fspath(path or "") for path in batch["path"]], others


def row_of(result: Result) -> tuple[Any, ...]:
    """Return the values of the columns for an image."""
    return (
        result.path or "", result.score, result.decision, result.p_value, result.error or ""
    )  # fmt: skip


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Let torch use n threads, in this process, for a while."""
    before = torch.get_num_threads()
    try:
        if n is not None:
            torch.set_num_threads(n)
        yield
    finally:
        if n is not None:
            torch.set_num_threads(before)


def in_order(parts: Sequence[Columns]) -> Columns:
    """Lay the columns of parts end to end."""
    if not parts:
        return {name: np.array([], object if name in TEXTS else np.float64) for name in COLUMNS}
    return {
        name: list(chain.from_iterable(part[name] for part in parts))
        if isinstance(parts[0][name], list)
        else np.concatenate([part[name] for part in parts])
        for name in parts[0]
    }
