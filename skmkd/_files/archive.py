"""A single file of tensors and plain values, written atomically and read without running code.

It is a safetensors file with the values as JSON in its metadata and a checksum of all its bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from skmkd._atomic import remove_leftovers, write_file
from skmkd._conformal import Calibration
from skmkd._files.migration import FORMAT
from skmkd._images.pixel_range import PixelRange
from skmkd._images.preparation import Preprocessing
from skmkd._images.registration import Template
from skmkd._images.roi import Roi
from skmkd._images.tiles import Tiling
from skmkd._networks.cloners import Block
from skmkd._networks.layers import Stage
from skmkd._networks.recall import MemoryPlan
from skmkd._networks.residual import Style
from skmkd._networks.sources import Origin
from skmkd._regular import read_regular
from skmkd._version import __version__

MAX_HEADER = 10**8  # bytes, the limit of safetensors itself
MAX_MASK = 2**31  # pixels; few bytes may claim any number
NO_CHECKSUM = "0" * 64  # in the checksum's field while the checksum is computed


class Archive(NamedTuple):
    """What a file holds."""

    values: dict[str, Any]
    tensors: dict[str, Tensor]
    format: int


def write_archive(
    path: str | os.PathLike[str], values: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write values and tensors into a file, which is replaced as a whole or left as it was.

    Raises
    ------
    ValueError
        If a value is of a kind that `read_archive` could not return.
    OSError
        If the file cannot be written.
    """
    metadata = {
        "skmkd_format": str(FORMAT),
        "skmkd": __version__,
        "torch": str(torch.__version__),
        "values": json.dumps({name: _encode(value, name) for name, value in values.items()}),
        "sha256": NO_CHECKSUM,
    }
    content = bytearray(save({name: _plain(tensor) for name, tensor in tensors.items()}, metadata))
    _, field = _parse_header(content)
    content[field] = _checksum(content, field).encode()
    remove_leftovers(path)
    write_whole(path, content)


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Verify the checksum of a file and return its values, its tensors and its format.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If `write_archive` did not write it, a later version did, or it is damaged.
    """
    content = read_regular(path)
    try:
        return _parse(content)
    except (ValueError, TypeError, LookupError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be loaded: {error}") from error


def _parse(content: bytes) -> Archive:
    if not content:
        raise ValueError("it is empty.")
    try:
        metadata, field = _parse_header(content)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError("skmkd did not write it, or its beginning is damaged.") from error
    if _checksum(content, field) != metadata["sha256"]:
        raise ValueError("its checksum does not match its content: it is damaged or incomplete.")
    version = int(metadata["skmkd_format"])
    if version > FORMAT:
        raise ValueError(
            f"skmkd {metadata['skmkd']} wrote it in format {version}; this is skmkd "
            f"{__version__}, which reads formats up to {FORMAT}."
        )
    return Archive(json.loads(metadata["values"], object_hook=_decode), load(content), version)


def _parse_header(content: bytes | bytearray) -> tuple[dict[str, str], slice]:
    """Return the metadata of a safetensors file and the position of the checksum's digits.

    Within a JSON string, quotation marks are escaped, so that text in a value cannot look like
    the field.
    """
    size = int.from_bytes(content[:8], "little")
    if size > MAX_HEADER:
        raise ValueError(f"its header would be {size} bytes long.")
    header = bytes(content[8 : 8 + size])
    metadata = json.loads(header)["__metadata__"]
    key, digits = b'"sha256":"', metadata["sha256"].encode()
    if len(digits) != len(NO_CHECKSUM) or header.count(key + digits + b'"') != 1:
        raise ValueError("it has no checksum.")
    start = 8 + header.index(key + digits) + len(key)
    return metadata, slice(start, start + len(digits))


def _checksum(content: bytes | bytearray, field: slice) -> str:
    """Return the SHA-256 of a file, computed with zeros in the checksum's own field."""
    view = memoryview(content)
    digest = hashlib.sha256(view[: field.start])
    digest.update(NO_CHECKSUM.encode())
    digest.update(view[field.stop :])
    return digest.hexdigest()


def _plain(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU, which shares no memory with other tensors."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


# Values that JSON does not know are objects whose only key is their kind: {"$tuple": [1, 2]}

RECORDS = (
    Block, Calibration, MemoryPlan, Origin, PixelRange, Preprocessing, Roi, Stage, Style, Template,
    Tiling,
)  # fmt: skip
Kind = tuple[str, Callable[[Any], Any], Callable[[Any], Any]]  # name, to JSON and back


def _record(record: Any) -> Kind:
    fields = record.__match_args__
    return (
        f"${record.__name__}",
        lambda value: [getattr(value, field) for field in fields],
        lambda saved: record(*saved),
    )


class Mask:
    """Stands for arrays of booleans, which are stored as the lengths of runs of equal ones."""

    @staticmethod
    def encode(mask: np.ndarray) -> list[Any]:
        """Return the shape, and the lengths of runs of False and True in turn."""
        edges = np.flatnonzero(np.diff(mask.ravel(), prepend=False, append=False))
        return [list(mask.shape), np.diff(edges, prepend=0, append=mask.size).tolist()]

    @staticmethod
    def decode(saved: list[Any]) -> np.ndarray:
        """Return the mask."""
        shape, runs = saved
        if sum(runs) != math.prod(shape) or sum(runs) > MAX_MASK:
            raise ValueError("a mask in it has another size than it says, or is too large.")
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape)


KINDS: dict[type, Kind] = {
    float: ("$float", repr, float),  # nan and inf
    tuple: ("$tuple", list, tuple),
    dict: ("$dict", lambda pairs: [list(pair) for pair in pairs.items()], dict),
    np.ndarray: (
        "$array",
        lambda array: [array.dtype.str, list(array.shape), array.ravel().tolist()],
        lambda saved: np.array(saved[2], dtype=saved[0]).reshape(saved[1]),
    ),
    Mask: ("$mask", Mask.encode, Mask.decode),
    np.generic: (
        "$scalar",
        lambda scalar: [scalar.dtype.str, scalar.item()],
        lambda saved: np.dtype(saved[0]).type(saved[1]),
    ),
    PurePath: ("$path", os.fspath, Path),
    torch.device: ("$device", str, torch.device),
    **{record: _record(record) for record in RECORDS},
}
DECODERS = {name: decode for name, _, decode in KINDS.values()}


def _encode(value: Any, name: str) -> Any:
    """Convert a value to JSON types; error messages call it `name`."""
    if type(value) in (bool, int, str, type(None)):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is list:
        return [_encode(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if type(value) is dict and all(type(k) is str and not k.startswith("$") for k in value):
        return {key: _encode(item, f"{name}.{key}") for key, item in value.items()}
    kind = np.generic if isinstance(value, np.generic) else type(value)
    kind = PurePath if isinstance(value, PurePath) else kind
    kind = Mask if kind is np.ndarray and value.dtype == bool else kind
    if kind not in KINDS or not _has_plain_numbers(value):
        raise ValueError(
            f"save can store numbers, text, paths, arrays, and lists, tuples and dicts of these; "
            f"got {name} = {value!r}."
        )
    tag, encode, _ = KINDS[kind]
    return {tag: _encode(encode(value), name)}


def _decode(item: dict[str, Any]) -> Any:
    tag = next(iter(item), "")
    return DECODERS[tag](item[tag]) if tag.startswith("$") else item


def _has_plain_numbers(value: Any) -> bool:
    """Return False for a NumPy array or scalar unless it holds real numbers, bools or text."""
    if not isinstance(value, (np.ndarray, np.generic)):
        return True
    if value.dtype == object:
        return all(type(item) is str for item in value.ravel())
    return value.dtype.kind in "biuU" or (value.dtype.kind == "f" and value.dtype.itemsize <= 8)


def check_target(path: str | os.PathLike[str]) -> None:
    """Check that a file can be written to a path, as far as this can be known beforehand.

    Raises
    ------
    OSError
        If its folder does not exist, or the path is that of something other than a file.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no folder", str(path.parent))
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "There is something that is not a file", str(path))


def write_whole(path: str | os.PathLike[str], content: bytes | bytearray) -> None:
    """Write a file atomically: at any time, the path is that of the old file or the new one."""
    check_target(path)
    path = Path(os.path.realpath(path))
    write_file(path, [content], durable=True)
    with suppress(OSError):  # some systems cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
