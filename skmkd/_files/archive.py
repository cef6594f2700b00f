"""One file of tensors and plain values: written whole or not at all, read without running code.

It is a safetensors file, with the values as JSON in its metadata and a checksum over every byte.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from skmkd._images.checks import PixelRange
from skmkd._images.preparation import Preprocessing
from skmkd._networks.cloners import Block
from skmkd._networks.layers import Stage
from skmkd._networks.recall import MemoryPlan
from skmkd._networks.residual import Style
from skmkd._networks.sources import Origin
from skmkd._version import __version__

FORMAT = 1  # raised whenever what a file holds, or what that means, changes; not so the seal
SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # quotes within a value would be escaped
UNSEALED = "0" * 64


def write_archive(
    path: str | os.PathLike[str], values: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write values and tensors into a file, which is replaced at once or stays as it was.

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
        "sha256": UNSEALED,
    }
    content = bytearray(save({name: _plain(tensor) for name, tensor in tensors.items()}, metadata))
    seal = SEAL.search(content)
    assert seal is not None
    content[slice(*seal.span(1))] = hashlib.sha256(content).hexdigest().encode()
    write_whole(path, content)


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the values and tensors of a file, after its checksum.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If `write_archive` did not write it, a later version did, or it is damaged.
    """
    content = Path(path).read_bytes()
    try:
        return _parse(content)
    except (ValueError, TypeError, LookupError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be loaded: {error}") from error


def _parse(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not content:
        raise ValueError("it is empty.")
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    seal = SEAL.search(header)
    if seal is None:
        raise ValueError("skmkd did not write it, or its beginning is damaged.")
    start, stop = (8 + position for position in seal.span(1))
    digest = hashlib.sha256(content[:start] + UNSEALED.encode())
    digest.update(memoryview(content)[stop:])
    if digest.hexdigest().encode() != seal[1]:
        raise ValueError("its content does not fit its checksum: it is damaged or was cut short.")
    metadata = json.loads(header)["__metadata__"]
    if int(metadata["skmkd_format"]) > FORMAT:
        raise ValueError(
            f"skmkd {metadata['skmkd']} wrote it in format {metadata['skmkd_format']}; this is "
            f"skmkd {__version__}, which reads formats up to {FORMAT}."
        )
    return json.loads(metadata["values"], object_hook=_decode), load(content)


def _plain(tensor: Tensor) -> Tensor:
    """Return a copy that shares no memory with others, in rows and on the CPU."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


# What JSON has no word for is an object with one key, its kind: {"$tuple": [1, 2]}

RECORDS = (Block, MemoryPlan, Origin, PixelRange, Preprocessing, Stage, Style)
Kind = tuple[str, Callable[[Any], Any], Callable[[Any], Any]]  # name, to JSON and back


def _record(record: Any) -> Kind:
    fields = record.__match_args__
    return (
        f"${record.__name__}",
        lambda value: [getattr(value, field) for field in fields],
        lambda saved: record(*saved),
    )


KINDS: dict[type, Kind] = {
    float: ("$float", repr, float),  # nan and inf
    tuple: ("$tuple", list, tuple),
    dict: ("$dict", lambda pairs: [list(pair) for pair in pairs.items()], dict),
    np.ndarray: (
        "$array",
        lambda array: [array.dtype.str, list(array.shape), array.ravel().tolist()],
        lambda saved: np.array(saved[2], dtype=saved[0]).reshape(saved[1]),
    ),
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
    """Turn a value into what JSON can hold; `name` says in errors where it was found."""
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
    """Tell whether what numpy made of a value, if it did, is numbers or text that Python has."""
    if not isinstance(value, (np.ndarray, np.generic)):
        return True
    if value.dtype == object:
        return all(type(item) is str for item in value.ravel())
    return value.dtype.kind in "biuU" or (value.dtype.kind == "f" and value.dtype.itemsize <= 8)


def check_target(path: str | os.PathLike[str]) -> None:
    """Check that a file can be put in this place, as far as can be told beforehand.

    Raises
    ------
    OSError
        If there is no folder for it, or something there that is not a file.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no folder", str(path.parent))
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "There is something that is not a file", str(path))


def write_whole(path: str | os.PathLike[str], content: bytes | bytearray) -> None:
    """Put content in a file's place at once: whoever looks finds the old one or the new one."""
    check_target(path)
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every system opens folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
