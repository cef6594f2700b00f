from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from time import sleep

import pytest
import sklearn
from conftest import tiny_detector
from sklearn.exceptions import ConvergenceWarning

from skmkd._interrupts import outside, sheltered, stop_if_interrupted

ROOT = Path(__file__).parents[1]
alarms = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no alarms here")


def test_the_main_thread_lets_another_compute():
    here = threading.get_ident()
    worker = sheltered(threading.get_ident)
    assert worker != here
    assert sheltered(threading.get_ident) == worker
    assert sheltered(lambda: sheltered(threading.get_ident)) == worker
    assert sheltered(lambda: outside(threading.get_ident)) == here
    assert outside(threading.get_ident) == here


def test_other_threads_compute_themselves():
    with ThreadPoolExecutor(1) as thread:
        own = thread.submit(threading.get_ident).result()
        assert thread.submit(sheltered, threading.get_ident).result() == own
        assert thread.submit(outside, threading.get_ident).result() == own
        assert thread.submit(stop_if_interrupted).result() is None


def test_results_and_errors_come_through():
    assert sheltered(lambda: [1, 2]) == [1, 2]
    error = ValueError("wrong")

    def fail():
        raise error

    for call in (fail, lambda: outside(fail), lambda: sheltered(fail)):
        with pytest.raises(ValueError, match="wrong") as caught:
            sheltered(call)
        assert caught.value is error


def test_calls_within_requests_within_calls():
    def count(n):
        return n if n == 0 else 1 + sheltered(lambda: outside(lambda: count(n - 1)))

    assert count(5) == 5


def test_the_caller_s_context_holds_in_the_other_thread():
    variable = ContextVar("variable", default=0)
    variable.set(1)
    with sklearn.config_context(assume_finite=True):
        assert sheltered(variable.get) == 1
        assert sheltered(sklearn.get_config)["assume_finite"]
    assert not sheltered(sklearn.get_config)["assume_finite"]


LEFT_HALFWAY = """
from skmkd._interrupts import sheltered
from skmkd._runtime import uninterrupted_steps

def steps():
    try:
        yield from range(3)
    finally:
        print("closed")

class Last:
    def __del__(self):
        sheltered(lambda: print("called"))

left, last = uninterrupted_steps(steps()), Last()
next(left)
"""


def test_the_worker_is_not_waited_for_when_the_process_ends(monkeypatch):
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    assert sheltered(threading.get_ident) == threading.get_ident()


@pytest.mark.slow
def test_what_is_left_at_the_end_of_a_process_is_closed_without_the_worker():
    run = subprocess.run(
        [sys.executable, "-c", LEFT_HALFWAY], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert sorted(run.stdout.split()) == ["called", "closed"]
    assert run.stderr == ""


class Stopped(BaseException):
    """What a signal's handler raises."""


@pytest.fixture
def alarm():
    """Interrupt the main thread after some seconds."""

    def raise_stopped(*_):
        raise Stopped

    before = signal.signal(signal.SIGALRM, raise_stopped)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@alarms
def test_an_interrupt_stops_the_call_at_its_next_look(alarm):
    looks = []

    def work():
        while True:
            sleep(0.01)
            looks.append("before")
            stop_if_interrupted()
            looks.append("after")

    alarm(0.1)
    with pytest.raises(Stopped):
        sheltered(work)
    assert looks[-1] == "before"
    assert looks.count("before") == looks.count("after") + 1


@alarms
def test_a_call_that_does_not_look_ends_before_the_interrupt_is_raised(alarm):
    ended = []

    def work():
        sleep(0.3)
        ended.append(True)

    alarm(0.05)
    with pytest.raises(Stopped):
        sheltered(work)
    assert ended
    assert sheltered(lambda: "next") == "next"


@alarms
def test_a_call_may_go_on_after_an_interrupt_that_it_has_seen(alarm):
    def work():
        try:
            while True:
                sleep(0.01)
                stop_if_interrupted()
        except Stopped:
            return "kept"

    alarm(0.05)
    assert sheltered(work) == "kept"


@alarms
def test_an_alarm_while_the_callback_runs_is_raised_in_fit(images, alarm):
    def callback(detector, epoch):
        if epoch == 2:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            sleep(1)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    detector = tiny_detector(max_iter=6, schedule="constant")
    with pytest.warns(ConvergenceWarning, match="interrupted after 2 of at most 6 epochs"):
        detector.fit(images, callback=callback)
    assert detector.n_iter_ == 2


def test_a_callback_runs_where_the_user_called_fit(images):
    threads = []
    tiny_detector().fit(images, callback=lambda *_: threads.append(threading.current_thread()))
    assert threads == [threading.main_thread()] * 2


@pytest.mark.slow
@alarms
def test_interrupts_tear_nothing(tmp_path):
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "interrupts.py"), "--tries", "200"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert "tried: 200, lost: 0" in run.stdout, run.stdout
