"""Each image has its result, whether or not others fail; errors name files; threads keep order."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from itertools import count
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skmkd._cli.outputs import (
    N_THREADS,
    WAITING,
    Failure,
    about,
    check_complete,
    in_threads,
    map_shape,
    usable,
)
from skmkd._images.roi import Roi
from skmkd._images.tiles import Tiling
from skmkd._scoring import Result

NAN = float("nan")


def result(i, error=None):
    score = -0.5 if error is None else NAN
    return Result(i, f"d/{i}.png", score, score, NAN, None, error)


def test_results_without_a_score_are_taken_down_as_they_come():
    failures = []
    results = (result(i, "X[1] (d/1.png) is bad." if i == 1 else None) for i in count())
    each = usable(results, failures, skip=False)
    assert (next(each).index, failures) == (0, [])
    assert next(each).index == 2
    assert failures == [Failure("d/1.png", "d/1.png is bad.")]


def test_results_without_a_score_are_warned_of_if_they_are_skipped():
    failures = []
    with pytest.warns(UserWarning, match=r"^d/1\.png is bad\. It is skipped\.$"):
        found = list(usable([result(0), result(1, "X[1] (d/1.png) is bad.")], failures, skip=True))
    assert [each.index for each in found] == [0, 1]
    assert failures == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("X[3] (d/3.png) must be grey.", "d/3.png must be grey."),
        ("d/3.png cannot be read.", "d/3.png cannot be read."),
    ],
)
def test_errors_name_the_file_and_no_index(error, expected):
    assert about(result(3, error)) == expected


def test_all_failures_are_counted_and_some_are_named():
    failures = [Failure(f"{i}.png", f"{i}.png is bad.") for i in range(9)]
    check_complete([], 9)
    with pytest.raises(ValueError, match=r"^0.png is bad\.$"):
        check_complete(failures[:1], 9)
    with pytest.raises(ValueError, match=r"bad\. 2 of 9 .* no result; the others are 1\.png\.$"):
        check_complete(failures[:2], 9)
    with pytest.raises(ValueError, match=r"bad\. 9 of 20 .*are 1\.png, .* 5\.png, \.\.\.\.$"):
        check_complete(failures, 20)


def one(item):
    return 1


@given(st.lists(st.integers(0, 3), max_size=30))
def test_results_of_threads_are_in_order(delays):
    def work(item):
        index, delay = item
        time.sleep(delay / 2000)
        return index

    assert list(in_threads(work, enumerate(delays), one)) == list(range(len(delays)))


def test_few_items_wait_for_threads():
    made, counted, released = [], [], threading.Event()

    def items():
        for i in range(100):
            made.append(i)
            yield i

    def work(item):
        released.wait(10)
        return item

    def look_and_release():
        counted.append(len(made))
        released.set()

    threading.Timer(0.2, look_and_release).start()
    assert list(in_threads(work, items(), one)) == list(range(100))
    assert counted[0] == N_THREADS + 1


@pytest.mark.parametrize(("large", "most"), [(WAITING + 1, 1), (WAITING // 3, 4)])
def test_fewer_large_items_wait(large, most):
    held, highest = set(), []

    def items():
        for i in range(20):
            held.add(i)
            highest.append(len(held))
            yield i

    def work(item):
        time.sleep(0.002)
        return item

    for item in in_threads(work, items(), lambda _: large):
        held.remove(item)
    assert max(highest) <= most


def test_an_error_of_a_thread_comes_soon_and_ends_the_work():
    worked = []

    def work(item):
        worked.append(item)
        if item == 5:
            raise OSError("disk full")
        return item

    found = []
    with pytest.raises(OSError, match="disk full"):
        found.extend(in_threads(work, range(1000), one))
    assert len(worked) < 50


def test_closing_finishes_what_was_begun_and_leaves_the_rest():
    begun, finished = [], []

    def work(item):
        begun.append(item)
        time.sleep(0.02)
        finished.append(item)

    with closing(in_threads(work, range(1000), one)) as results:
        next(results)
    assert sorted(begun) == sorted(finished)
    assert len(begun) <= 2 * N_THREADS + 1
    time.sleep(0.1)
    assert sorted(begun) == sorted(finished)


def test_an_error_of_the_items_comes_at_its_place():
    def items():
        yield 1
        raise MemoryError

    with pytest.raises(MemoryError):
        list(in_threads(str, items(), one))


def fitted(tiling, roi=None, size=(128, 256)):
    return SimpleNamespace(_prepare=SimpleNamespace(size=size), _tiling=tiling, _roi=roi)


def test_maps_have_no_more_detail_than_networks_see():
    detector = fitted(Tiling())
    assert map_shape(detector, (2048, 2448)) == (128, 256)
    assert map_shape(detector, (64, 2048)) == (64, 256)
    assert map_shape(detector, (25, 30)) == (25, 30)


def test_maps_of_tiles_and_regions_have_the_detail_of_each_tile():
    assert map_shape(fitted(Tiling((512, 512), 0.25)), (2048, 2448)) == (512, 1224)
    assert map_shape(fitted(Tiling((512, 512), 0.25)), (200, 100)) == (128, 100)
    assert map_shape(fitted(Tiling((64, 64), 0.25)), (2048, 2448)) == (2048, 2448)
    roi = Roi((0, 0, 256, 256))
    assert map_shape(fitted(Tiling(), roi), (1000, 1000)) == (500, 1000)
