"""PGM and PPM files: the numbers that they hold, which Pillow would stretch to 255 or 65,535."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from skmkd._images.contents import Contents

CHANNELS = {b"P2": 1, b"P3": 3, b"P5": 1, b"P6": 3}
PLAIN = (b"P2", b"P3")  # numbers as text
GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"  # comments may stand between the numbers
HEADER = re.compile(rb"(P[2356])" + GAP + rb"(\d+)" + GAP + rb"(\d+)" + GAP + rb"(\d+)\s")
LONGEST = 2**16  # of a header, in bytes


def is_netpbm(start: bytes) -> bool:
    """Tell by its first bytes whether a file is a PGM or PPM."""
    return start[:2] in CHANNELS and (start[2:3].isspace() or start[2:3] == b"#")


@contextmanager
def open_netpbm(path: str) -> Iterator[Contents]:
    """Open a file of which the header must be found in the first bytes."""
    with open(path, "rb") as file:
        header = HEADER.match(file.read(LONGEST))
    if header is None:
        raise ValueError("its header is broken")
    magic, (width, height, highest) = header[1], map(int, header.groups()[1:])
    if not (width and height and 0 < highest < 65536):
        raise ValueError(f"it says that it has {width} x {height} pixels of at most {highest}")
    shape = (height, width) if CHANNELS[magic] == 1 else (height, width, 3)
    dtype = np.dtype(np.uint8 if highest < 256 else np.uint16)
    yield Contents(shape, dtype, partial(numbers, path, header.end(), magic, shape, dtype))


def numbers(
    path: str, offset: int, magic: bytes, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """Return the numbers of the first image in a file."""
    count = int(np.prod(shape))
    if magic in PLAIN:
        text = re.sub(rb"#[^\r\n]*", b"", Path(path).read_bytes()[offset:])
        found = np.array(text.split()[:count], dtype=np.int64)
        if np.any(found != found.astype(dtype)):
            raise ValueError("it holds numbers above its highest")
    else:
        found = np.fromfile(path, dtype.newbyteorder(">"), count, offset=offset)
    if len(found) < count:
        raise ValueError(f"it is truncated: it holds {len(found)} of {count} numbers")
    return found.reshape(shape).astype(dtype)
