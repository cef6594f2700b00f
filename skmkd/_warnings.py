"""Warnings that point to the line of the caller's code, not into the library."""

from __future__ import annotations

import inspect
import traceback
import warnings
from functools import partial

from skmkd._interrupts import outside

PACKAGE = __name__.partition(".")[0]
WRAPPERS = {"contextlib", "sklearn.base", "torch.utils._contextlib"}  # decorators of our methods


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the code that called into the package.

    That is the caller of the outermost frame of the package, decorators such as scikit-learn's
    ``_fit_context`` left out. In other threads that the package starts, the stack ends at the
    thread: do not warn there.

    Parameters
    ----------
    message : str
        Text of the warning.
    category : type of Warning, default=UserWarning
        Its class.
    """
    outside(partial(_warn, message, category))


def _warn(message: str, category: type[Warning]) -> None:
    stack = traceback.walk_stack(inspect.currentframe())  # from this frame outwards
    modules = [frame.f_globals.get("__name__", "") for frame, _ in stack]
    level = max(i for i, name in enumerate(modules) if name.partition(".")[0] == PACKAGE) + 1
    while level < len(modules) and modules[level] in WRAPPERS:
        level += 1
    warnings.warn(message, category, stacklevel=level + 1)
