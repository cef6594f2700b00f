"""Locks that no forked process inherits from a thread that it does not have."""

from __future__ import annotations

import os
from threading import RLock
from typing import Any


def lock_that_forks() -> Any:
    """Return a reentrant lock: a fork waits until it is free, and so it is in both processes."""
    lock = RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock
