"""Packages that extras of skmkd bring, imported where they are needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skmkd._locks import lock_that_forks

QUIET = {"openvino": "openvino_telemetry"}  # what tells a package's makers of its use
CORES: list[Any] = []  # at most one
IMPORTING = lock_that_forks()  # one import at a time: others would miss what is hidden from it


class MissingExtraError(ImportError):
    """A package that a parameter needs, and that an extra of skmkd brings, is not installed."""


def needed(package: str, extra: str, what: str) -> Any:
    """Import a package that an extra brings, and that tells nobody over the network.

    Raises
    ------
    MissingExtraError
        If it is not installed; `what` needs it.
    """
    try:
        if package in sys.modules or package not in QUIET:
            return importlib.import_module(package)
        with IMPORTING, _missing(QUIET[package]):
            return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(f'{what} needs {package}: pip install "skmkd[{extra}]"') from error


def openvino_core() -> Any:
    """Return OpenVINO's core, the same one for the whole process.

    A process that has had several has been seen to crash at a later signal, such as Ctrl-C.
    """
    with IMPORTING:
        if not CORES:
            CORES.append(needed("openvino", "openvino", "engine='openvino'").Core())
        return CORES[0]


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """Let a module, unless it is there already, be missing to those that import it meanwhile."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
