"""Scoring on a cluster: thin layers over Ray Data and Dask."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from skmkd._packages import needed
from skmkd._regular import read_regular, state_of
from skmkd.datasets import list_images
from skmkd.distributed._scorer import Columns, Scorer, in_order
from skmkd.distributed._shards import check_same, check_text, chunks, digest

MAX_PARTS = 1000  # of a list of paths; the driver of Ray holds 0.1 MB for each


def score_dask(
    images: Any,
    model: str | os.PathLike[str],
    client: Any,
    *,
    batch_size: int = 256,
    device: str | None = None,
    threads: int | None = None,
) -> Columns:
    """Score images on the workers of a Dask cluster.

    What is sent are paths, not detectors. Each worker loads the model once.

    Parameters
    ----------
    images : sequence of paths, dask.bag.Bag of paths, or dask.array.Array of shape (n, H, W[, C])
        Images, or paths that the workers can read. A task scores a partition of a bag, or a chunk
        of an array along its first axis.
    model : str or path
        File that the method `save` of a detector wrote, at the same path for all workers.
    client : dask.distributed.Client
        The cluster.
    batch_size : int, default=256
        Paths of a sequence in a task.
    device : str, default=None
        As in `Scorer`.
    threads : int, default=None
        As in `Scorer`.

    Returns
    -------
    columns : dict of str to ndarray of shape (n,)
        As `Scorer` returns, in the order of the images.

    Raises
    ------
    ImportError
        If the extra is not installed: ``pip install "skmkd[dask]"``.

    Examples
    --------
    >>> from dask.distributed import Client  # doctest: +SKIP
    >>> from skmkd.datasets import list_images
    >>> from skmkd.distributed import score_dask
    >>> with Client("tcp://scheduler:8786") as client:  # doctest: +SKIP
    ...     columns = score_dask(list_images("/data/images"), "/data/part.skmkd", client)
    """
    dask = needed("dask", "dask", "score_dask")
    needed("dask.distributed", "dask", "score_dask")
    score = dask.delayed(Scorer(model, device=device, threads=threads), pure=False)
    if hasattr(images, "rechunk"):
        rest = dict.fromkeys(range(1, images.ndim), -1)
        parts = images.rechunk(rest).to_delayed().ravel().tolist()
    elif hasattr(images, "to_delayed"):
        parts = images.to_delayed()
    else:
        parts = [[os.fspath(path) for path in part] for part in chunks(list(images), batch_size)]
    return in_order(client.gather(client.compute([score(part) for part in parts])))


def score_ray(
    images: Any,
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    actors: int | tuple[int, int] = 1,
    num_gpus: float = 0,
    batch_size: int = 256,
    device: str | None = None,
    threads: int | None = None,
) -> Path:
    """Score images with Ray Data, into a folder of Parquet files; go on where an earlier run was.

    Actors load the model once each. One that dies is replaced, and the images that it had are
    scored again: a batch, or a thousandth of a long list.

    Parameters
    ----------
    images : folder, sequence of paths, or ray.data.Dataset with a column "path" or "image"
        Images. Those of a folder or a sequence whose path is in the output already are left out.
    model : str or path
        File that the method `save` of a detector wrote, at the same path on all machines.
    output : str or path
        Folder of the Parquet files, with the columns that `Scorer` returns. Their rows are in any
        order.
    actors : int or tuple (least, most), default=1
        Number of actors, each with a detector.
    num_gpus : float, default=0
        GPUs of each actor; a share lets several use one.
    batch_size : int, default=256
        Images that an actor scores at once.
    device : str, default=None
        As in `Scorer`; None is "auto" for actors that have a GPU, whatever the fit was on.
    threads : int, default=None
        As in `Scorer`.

    Returns
    -------
    output : Path
        The folder.

    Raises
    ------
    ValueError
        If the folder was begun with another model, or a path cannot be in Parquet.
    OSError
        If the model cannot be read.
    ImportError
        If the extra is not installed: ``pip install "skmkd[ray]"``.

    Examples
    --------
    >>> from skmkd.distributed import score_ray
    >>> folder = score_ray(
    ...     "/data/images", "/data/part.skmkd", "/data/scores", actors=16, num_gpus=0.5
    ... )  # doctest: +SKIP
    """
    ray_data = needed("ray.data", "ray", "score_ray")
    arrow = needed("pyarrow", "ray", "score_ray")
    target = Path(output)
    check_same(target, {"model": digest([read_regular(model)])})
    least, most = (actors, actors) if isinstance(actors, int) else actors
    if not hasattr(images, "map_batches"):
        is_folder = isinstance(images, (str, os.PathLike))
        paths = list_images(images) if is_folder else images
        done = _paths_in(target, arrow)
        left = [text for path in paths if (text := os.fspath(path)) not in done]
        check_text(left)
        if not left:
            return target
        size = max(batch_size, len(left) // MAX_PARTS)
        parts = [arrow.table({"path": part}) for part in chunks(left, size)]
        images = ray_data.from_arrow(parts)
        least = min(least, len(parts))
    scored = images.map_batches(
        Scorer,
        fn_constructor_args=(os.fspath(model),),
        fn_constructor_kwargs={
            "device": "auto" if device is None and num_gpus else device,
            "threads": threads,
        },
        compute=ray_data.ActorPoolStrategy(min_size=least, max_size=most),
        num_gpus=num_gpus,
        batch_size=batch_size,
    )
    scored.write_parquet(os.path.abspath(target))
    return target


def _paths_in(folder: Path, arrow: Any) -> set[str]:
    """Return the paths that have a row in the Parquet files of a folder.

    A file that is not whole, since its process was killed, is deleted.
    """
    parquet = needed("pyarrow.parquet", "ray", "score_ray")
    paths: set[str] = set()
    for file in sorted(folder.glob("*.parquet")):
        state_of(file)
        try:
            paths.update(parquet.read_table(file, columns=["path"])["path"].to_pylist())
        except arrow.ArrowInvalid:
            file.unlink()
    return paths
