"""Shards: a long list of images in parts, each scored by a process of its own and resumable."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from skmkd._atomic import lock
from skmkd._files.archive import write_whole
from skmkd._packages import needed
from skmkd._regular import read_regular, regular, state_of
from skmkd.distributed._scorer import COLUMNS, TEXTS, Scorer, row_of, torch_threads

FORMATS = ("csv", "parquet")
CHUNK = 512  # images that are opened at once
ROW_GROUP = 65_536  # rows of Parquet that are in memory at once
SURROGATES = "surrogateescape"  # writes file names that are not valid text byte for byte


def score_shard(
    model: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    shard: tuple[int, int] = (1, 1),
    resume: bool = True,
    file_format: str = "csv",
    device: str | None = None,
    threads: int | None = None,
    verbose: int = 0,
) -> tuple[Path, int]:
    """Score one of several parts of many images, and go on where an earlier run was killed.

    Rows are written as they come. A part that is finished has its final name; until then, it is a
    hidden file beside it. Each part can be a job of its own. The file ``.run.json`` in the folder
    says which run its parts are of, and a locked file keeps a second process from the same part,
    where the system and its file system have such locks.

    Parameters
    ----------
    model : str or path
        File that the method `save` of a detector wrote.
    paths : sequence of paths
        All images, in the same order for all parts.
    output : str or path
        Folder of the parts of this run alone, which is made if it is not there.
    shard : tuple (i, n), default=(1, 1)
        The i-th of n parts, from 1 to n. Parts are of neighbours, and of near-equal size.
    resume : bool, default=True
        Whether to keep what an earlier, killed process has written of this part. A finished part
        is left as it is.
    file_format : {"csv", "parquet"}, default="csv"
        Format of the part; Parquet needs the extra ``skmkd[parquet]``, and is written at the end.
    device : str, default=None
        As in `Scorer`.
    threads : int, default=None
        As in `Scorer`.
    verbose : int, default=0
        1 or more shows a progress bar.

    Returns
    -------
    part : Path
        The part, such as ``part-00003-of-00016.csv``, with the columns "path", "score",
        "decision", "p_value" and "error". An image that cannot be scored has a row that says why.
    n_errors : int
        Images without a score, of those that this process scored.

    Raises
    ------
    ValueError
        If a parameter is not as described, the model is damaged, or the folder was begun with
        another model, list of images, number of parts or format.
    OSError
        If the model or the part cannot be read or written, or another process is writing the part.
    ImportError
        If Parquet's extra is not installed.

    Examples
    --------
    >>> import csv, tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from skimage.data import lfw_subset
    >>> from skmkd import MKDDetector
    >>> from skmkd.distributed import score_shard
    >>> faces = (255 * lfw_subset()[:40]).astype("uint8")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model, paths = Path(folder, "faces.skmkd"), []
    ...     detector = MKDDetector(image_size=32, max_iter=1, contamination=0.05).fit(faces)
    ...     detector = detector.save(model)
    ...     for i in range(4):
    ...         paths.append(Path(folder, f"{i}.png"))
    ...         Image.fromarray(faces[i]).save(paths[-1])
    ...     for i in (1, 2):  # each could be a job of its own
    ...         part, n_errors = score_shard(model, paths, Path(folder, "scores"), shard=(i, 2))
    ...     rows = list(csv.DictReader(part.read_text().splitlines()))
    >>> part.name, [Path(row["path"]).name for row in rows]
    ('part-00002-of-00002.csv', ['2.png', '3.png'])
    """
    number, n_parts = shard
    if not 1 <= number <= n_parts:
        raise ValueError(f"shard must be (i, n) with i from 1 to n; got {shard}.")
    if file_format not in FORMATS:
        raise ValueError(
            f"file_format must be {' or '.join(map(repr, FORMATS))}; got {file_format!r}."
        )
    everything = [os.fspath(path) for path in paths]
    chosen = part_of(everything, number, n_parts)
    if file_format == "parquet":
        needed("pyarrow", "parquet", "file_format='parquet'")
        check_text(chosen)
    detector = Scorer(model, device=device).detector()
    folder = Path(output)
    run = {
        "model": digest([read_regular(model)]),
        "list of images": digest(_bytes(path) + b"\0" for path in everything),
        "number of parts": n_parts,
        "format": file_format,
    }
    check_same(folder, run)
    part = folder / f"part-{number:05}-of-{n_parts:05}.{file_format}"
    rows = part.with_name(f".{part.stem}.partial.csv")
    with _alone(part):
        if not resume:
            part.unlink(missing_ok=True)
            rows.unlink(missing_ok=True)
        if part.exists():
            rows.unlink(missing_ok=True)
            return part, 0
        with torch_threads(threads), _named(rows):
            n_errors = _write_rows(detector, chosen, rows, verbose)
        if file_format == "parquet":
            with _named(part):
                _write_parquet(rows, part)
            rows.unlink()
        else:
            rows.replace(part)
    return part, n_errors


def check_text(paths: Iterable[str]) -> None:
    """Check that paths can be written in Parquet."""
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"paths in Parquet must be valid UTF-8; got {path!r}. Rename the file, or let "
                "score_shard write CSV."
            ) from error


def check_same(folder: Path, run: dict[str, Any]) -> None:
    """Check that a folder is empty or of the same run; say in a file in it what its run is."""
    file = folder / ".run.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder; {folder} is a file.")
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_whole(file, json.dumps(run).encode())
    begun = json.loads(read_regular(file))
    if other := [name for name in run if begun.get(name) != run[name]]:
        raise ValueError(
            f"output must be a folder of one run; {folder} was begun with another "
            f"{' and another '.join(other)}. Choose another folder, or empty it."
        )


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Let no other process write a part meanwhile, where the file system has locks.

    A lock ends with its process, however that ends.
    """
    with open(part.with_name(f".{part.stem}.lock"), "a", opener=regular) as stream:
        try:
            lock(stream)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{part} is being written by another process. Wait for it, or end it."
            ) from error
        except OSError:  # not on this file system
            pass
        yield


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Name a file in an error, such as of a full disk, that names none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(file)) from error


def _write_rows(detector: Any, paths: Sequence[str], file: Path, verbose: int) -> int:
    """Add the rows that are missing to a file of CSV; return how many of them are of errors."""
    n_done = _complete_rows(file, paths) if file.exists() else 0
    left, n_errors = iter(paths[n_done:]), 0
    with (
        open(
            file, "a", encoding="utf-8", errors=SURROGATES, newline="", buffering=1, opener=regular
        ) as stream,
        tqdm(total=len(paths), initial=n_done, disable=verbose < 1, unit="image") as progress,
    ):
        writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        if not stream.tell():
            writer.writerow(COLUMNS)
        while chunk := list(islice(left, CHUNK)):
            for result in detector.iter_results(chunk):
                writer.writerow(row_of(result))
                progress.update()
                n_errors += result.error is not None
        os.fsync(stream.fileno())
    return n_errors


def part_of(items: Sequence[Any], number: int, n_parts: int) -> Sequence[Any]:
    """Return the part of a number, from 1, of items in parts of near-equal size."""
    start, stop = (len(items) * i // n_parts for i in (number - 1, number))
    return items[start:stop]


def read_list(file: Path) -> list[str]:
    """Return the paths in a list: a line each of a text file, or a column "path" of Parquet.

    Raises
    ------
    ValueError
        If it lists nothing, or has no such column of text.
    """
    if file.suffix == ".parquet":
        arrow = needed("pyarrow", "parquet", f"{file}")
        parquet = needed("pyarrow.parquet", "parquet", f"{file}")
        state_of(file)
        try:
            paths = parquet.read_table(file, columns=["path"])["path"].to_pylist()
        except (arrow.ArrowInvalid, KeyError) as error:
            raise ValueError(f"{file} must be Parquet with a column 'path'; it is not.") from error
        if not all(isinstance(path, str) for path in paths):
            raise ValueError(f"the column 'path' of {file} must hold text, without missing values.")
    else:
        with open(file, encoding="utf-8", errors=SURROGATES, opener=regular) as stream:
            paths = [line.rstrip("\r\n") for line in stream if line.strip()]
    if not paths:
        raise ValueError(f"{file} must list at least one image; it lists none.")
    return paths


def _complete_rows(rows: Path, chosen: Sequence[str]) -> int:
    """Cut off what follows the last complete row; return how many images have theirs."""
    stops = []
    with open(rows, encoding="utf-8", errors=SURROGATES, newline="", opener=regular) as stream:
        expected = chain(COLUMNS[:1], chosen)
        for path, (row, stop) in zip(expected, _rows_and_stops(stream), strict=False):
            if len(row) != len(COLUMNS) or row[0] != path:
                break
            stops.append(stop)
    os.truncate(rows, stops[-1] if stops else 0)
    return max(0, len(stops) - 1)


def _rows_and_stops(stream: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """Yield complete rows of CSV, and where each of them ends, in bytes."""
    stop, last = 0, ""

    def counted() -> Iterator[str]:
        nonlocal stop, last
        for last in stream:
            stop += len(_bytes(last))
            yield last

    with suppress(csv.Error):  # the last row ends within quotes
        for row in csv.reader(counted(), strict=True):
            if last.endswith("\n"):
                yield row, stop


def _write_parquet(rows: Path, part: Path) -> None:
    """Turn rows of CSV into a Parquet file, which has its name once it is whole."""
    arrow = needed("pyarrow", "parquet", "file_format='parquet'")
    parquet = needed("pyarrow.parquet", "parquet", "file_format='parquet'")
    schema = arrow.schema(
        (name, arrow.string() if name in TEXTS else arrow.float64()) for name in COLUMNS
    )
    whole = part.with_name(f".{part.name}")
    with (
        rows.open(encoding="utf-8", newline="") as stream,
        parquet.ParquetWriter(whole, schema) as writer,
    ):
        reader = csv.reader(stream)
        next(reader)
        while group := list(islice(reader, ROW_GROUP)):
            columns = (
                column if name in TEXTS else map(float, column)
                for name, column in zip(COLUMNS, zip(*group, strict=True), strict=True)
            )
            writer.write_table(arrow.table([list(column) for column in columns], schema=schema))
    whole.replace(part)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", SURROGATES)


def digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for each in parts:
        total.update(each)
    return total.hexdigest()


def chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Yield items in lists of a size; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
