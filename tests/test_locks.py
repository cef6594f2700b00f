"""Locks and forks."""

from __future__ import annotations

import os
import threading

import pytest

from skmkd._locks import lock_that_forks


def test_the_lock_is_reentrant():
    lock = lock_that_forks()
    with lock, lock:
        pass
    assert lock.acquire(timeout=1)
    lock.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_it_is_free_in_a_process_forked_while_a_thread_had_it():
    lock, taken, free = lock_that_forks(), threading.Event(), threading.Event()

    def hold():
        with lock:
            taken.set()
            free.wait(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    if (child := os.fork()) == 0:
        os._exit(0 if lock.acquire(timeout=5) else 1)
    thread.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert lock.acquire(timeout=5)
    lock.release()
