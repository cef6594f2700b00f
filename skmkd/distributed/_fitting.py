"""One detector for each of many products."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from joblib.parallel import get_active_backend
from sklearn.base import BaseEstimator, clone

from skmkd._mkd import MKDDetector
from skmkd._regular import regular
from skmkd.datasets import list_images

RESULT = ("name", "n_images", "seconds", "error")
TABLE = "fits.csv"


def fit_many(
    products: Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    detector: BaseEstimator | None = None,
    n_jobs: int | None = None,
    include_source: bool = False,
    verbose: int = 0,
) -> list[dict[str, Any]]:
    """Fit a detector to the images of each product, and save it; go on where an earlier run was.

    Fits run side by side in joblib's workers. Those of a Dask or Ray cluster do them in
    ``joblib.parallel_config("dask")`` or, after ``ray.util.joblib.register_ray()``, in
    ``joblib.parallel_config("ray", n_jobs=-1)``.

    Parameters
    ----------
    products : dict of str to folder or images
        The good images of each product, by its name: a folder, or images as in `fit`.
    output : str or path
        Folder of the detectors, ``NAME.skmkd`` each. A product whose file is there is left out.
        The table ``fits.csv`` in it gets a row for each fit, as they end; with Ray, at the end of
        the last.
    detector : estimator, default=None
        Copied for each product; None is ``MKDDetector()``.
    n_jobs : int, default=None
        Fits at the same time, as of joblib.
    include_source : bool, default=False
        Whether each file holds the source's weights, as in the detector's `save`.
    verbose : int, default=0
        As of joblib.

    Returns
    -------
    rows : list of dict
        "name", "n_images", "seconds" and "error" of each fit of this run: "" or why it failed,
        which stops no other.

    Raises
    ------
    ValueError
        If a name cannot be that of a file.

    Examples
    --------
    >>> import os, tempfile
    >>> from skimage.data import lfw_subset
    >>> from skmkd import MKDDetector
    >>> from skmkd.distributed import fit_many
    >>> faces = lfw_subset()
    >>> detector = MKDDetector(image_size=32, max_iter=1, contamination=0.05)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = fit_many({"a": faces[:40], "b": faces[40:80]}, folder, detector=detector)
    ...     sorted(os.listdir(folder))
    ['a.skmkd', 'b.skmkd', 'fits.csv']
    >>> [(row["name"], row["n_images"], row["error"]) for row in rows]
    [('a', 40, ''), ('b', 40, '')]
    """
    folder = Path(output)
    for name in products:
        if not isinstance(name, str) or name != Path(name).name or not name.strip("."):
            raise ValueError(f"products must have names that files can have; got {name!r}.")
    folder.mkdir(parents=True, exist_ok=True)
    model = MKDDetector() if detector is None else detector
    left = [
        (name, images, folder / f"{name}.skmkd")
        for name, images in products.items()
        if not (folder / f"{name}.skmkd").exists()
    ]
    rows: list[dict[str, Any]] = []
    backend, _ = get_active_backend()
    one_by_one = backend.supports_return_generator  # Ray's does not
    fits = Parallel(
        n_jobs, verbose=verbose, return_as="generator_unordered" if one_by_one else "list"
    )(delayed(_fit)(clone(model), *each, include_source) for each in left)
    table = folder / TABLE
    with open(table, "a", encoding="utf-8", newline="", opener=regular) as stream:
        writer = csv.DictWriter(stream, RESULT, lineterminator="\n")
        if not stream.tell():
            writer.writeheader()
        for row in fits:
            rows.append(row)
            writer.writerow(row)
            stream.flush()
    return rows


def _fit(detector: Any, name: str, images: Any, file: Path, include_source: bool) -> dict[str, Any]:
    """Fit and save a detector; return what happened."""
    start, n, error = time.perf_counter(), 0, ""
    try:
        found = list_images(images) if isinstance(images, (str, os.PathLike)) else images
        n = len(found)
        detector.fit(found).save(file, include_source=include_source)
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"
    return {"name": name, "n_images": n, "seconds": time.perf_counter() - start, "error": error}
