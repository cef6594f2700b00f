"""Warnings that point to the line of the caller's code, not into the library."""

from __future__ import annotations

import inspect
import traceback
import warnings

PACKAGE = __name__.partition(".")[0]
WRAPPERS = {"contextlib", "sklearn.base", "torch.utils._contextlib"}  # decorators of our methods


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the code that called into the package.

    That is the caller of the outermost frame of the package, decorators such as scikit-learn's
    ``_fit_context`` left out. In a worker thread the stack ends at the thread: warn in the thread
    that the user called from.

    Parameters
    ----------
    message : str
        Text of the warning.
    category : type of Warning, default=UserWarning
        Its class.
    """
    stack = traceback.walk_stack(inspect.currentframe())  # from this frame outwards
    modules = [frame.f_globals.get("__name__", "") for frame, _ in stack]
    level = max(i for i, name in enumerate(modules) if name.partition(".")[0] == PACKAGE) + 1
    while level < len(modules) and modules[level] in WRAPPERS:
        level += 1
    warnings.warn(message, category, stacklevel=level + 1)
