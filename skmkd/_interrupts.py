"""Calls that no interrupt can tear: a worker thread makes them while the main thread waits.

Python raises KeyboardInterrupt, and whatever else the handler of a signal raises, in the main
thread only, at any moment: also while torch has changed the process, or while a lock is held.
"""

from __future__ import annotations

import os
import sys
import threading
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from sklearn import config_context, get_config

PATIENCE = 0.2  # seconds for which a wait may be deaf to interrupts, as it is on Windows
Value = TypeVar("Value")


def sheltered(function: Callable[[], Value]) -> Value:
    """Call a function where no interrupt can arrive.

    An interrupt of the main thread is raised there when the function has ended. The function may
    end early, at the next `stop_if_interrupted`. It sees the caller's context variables and
    configuration of scikit-learn.
    """
    if threading.get_ident() != threading.main_thread().ident or sys.is_finalizing():
        return function()  # at the end, the worker has stopped
    return Call(function).made()


def stop_if_interrupted() -> None:
    """Raise what has interrupted the main thread since it waits for the call that is made here."""
    call = WORKER.calls[-1] if WORKER.is_here() else None
    if call is not None and call.interrupt is not None:
        interrupt, call.interrupt = call.interrupt, None
        raise interrupt


def outside(function: Callable[[], Value]) -> Value:
    """Call a function where the user called us: one of the user's, or one that looks there."""
    return WORKER.calls[-1].ask(function) if WORKER.is_here() else function()


class Outcome:
    """What a function returns or raises."""

    value: Any = None
    error: BaseException | None = None
    known = False

    def find(self, function: Callable[[], Any]) -> None:
        """Call a function, and keep what comes of it."""
        try:
            self.value = function()
            self.known = True
        except BaseException as error:
            vars(self).update(error=error, known=True)

    def get(self) -> Any:
        """Return the value or raise the error, which is not kept: it holds whole frames."""
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error


class Request(Outcome):
    """A call that the worker asks the main thread for."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function


class Call(Outcome):
    """A call that the main thread asks the worker for.

    An interrupt may come between any two steps of the main thread, so these can be repeated.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._context, self._config = copy_context(), get_config()
        self._news: SimpleQueue[None] = SimpleQueue()  # there is a request, or the outcome
        self._request: Request | None = None
        self.interrupt: BaseException | None = None  # one that the worker has not seen

    def made(self) -> Any:
        """Let the worker make the call, and return what it returns."""
        try:
            WORKER.inbox.put(self)
            self._attend()
        except BaseException as interrupt:
            self.interrupt = interrupt
            if not self._is_made_by("nobody"):
                self._attend()
        if self.interrupt is not None:
            raise self.interrupt
        return self.get()

    def _is_made_by(self, maker: str) -> bool:
        """Settle, once, who makes the call."""
        return vars(self).setdefault("_maker", maker) == maker

    def _attend(self) -> None:
        """Do what the worker asks for, and note interrupts, until the outcome is known."""
        while not self.known:
            try:
                WORKER.start()  # again, if it had no memory for itself
                with suppress(Empty):
                    self._news.get(timeout=PATIENCE)
                if (request := self._request) is not None:
                    if not request.known:
                        request.find(request.function)
                    WORKER.inbox.put(request)
            except BaseException as interrupt:
                self.interrupt = interrupt
                if self._is_made_by("nobody"):
                    return

    def make(self) -> None:
        """Make the call, in the worker, unless the main thread has given it up."""
        if self._is_made_by("worker"):
            self.find(self._made_here)
            self._news.put(None)

    def _made_here(self) -> Any:
        WORKER.calls.append(self)
        try:
            with config_context(**self._config):
                return self._context.run(self._function)
        finally:
            WORKER.calls.pop()

    def ask(self, function: Callable[[], Value]) -> Value:
        """Let the main thread call a function, which may in turn have calls made here."""
        request = self._request = Request(function)
        self._news.put(None)
        while (message := WORKER.inbox.get()) is not request:
            if isinstance(message, Call):
                message.make()
        self._request = None
        return request.get()


class Worker:
    """The thread that makes calls: always the same one, as each has OpenMP threads of its own."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Have no thread yet, as in a process that was just forked."""
        self.inbox: SimpleQueue[Call | Request] = SimpleQueue()
        self.calls: list[Call] = []  # that are being made, each within the one before
        self._threads: list[int] = []

    def start(self) -> None:
        """Start the thread, unless it runs.

        `Thread.start` takes locks, which an interrupt could leave locked.
        """
        if not self._threads:
            start_new_thread(self._work, ())

    def is_here(self) -> bool:
        """Whether this is the thread."""
        return self._threads[:1] == [threading.get_ident()]

    def _work(self) -> None:
        self._threads.append(threading.get_ident())
        if not self.is_here():
            return  # an interrupt has had another started
        try:
            sys.settrace(threading.gettrace())
            sys.setprofile(threading.getprofile())
            while True:
                if isinstance(message := self.inbox.get(), Call):
                    message.make()
                del message  # it holds images and networks
        finally:
            self._threads.clear()  # it had no memory for itself


WORKER = Worker()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKER.forget)
