"""Each image has its result, whether or not others fail; errors name files; threads keep order."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path
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
    of_each,
)
from skmkd._images.roi import Roi
from skmkd._images.tiles import Tiling


def upper_case(bad, calls=None):
    """Return a function that fails at bad paths, or at once if they are bad together."""

    def compute(paths):
        if calls is not None:
            calls.append(len(paths))
        for index, path in enumerate(paths):
            if path in bad:
                raise ValueError(f"X[{index}] ({path}) is bad")
            yield str(path).upper()

    return compute


@given(st.integers(0, 40), st.sets(st.integers(0, 39)))
def test_all_but_the_bad_ones_have_results_in_order(n, chosen):
    paths = [Path(f"a{i}.png") for i in range(n)]
    bad = {paths[i] for i in chosen if i < n}
    failures = []
    found = list(of_each(upper_case(bad), paths, failures))
    assert found == [(path, str(path).upper()) for path in paths if path not in bad]
    assert failures == [Failure(path, f"{path} is bad") for path in paths if path in bad]


@given(st.lists(st.booleans(), max_size=40))
def test_images_that_do_not_go_together_are_computed_apart(kinds):
    def compute(paths):
        if len({kinds[int(path.stem)] for path in paths}) > 1:
            raise ValueError("The images of X must all have the same channels.")
        return [path.stem for path in paths]

    paths, failures = [Path(f"{i}.png") for i in range(len(kinds))], []
    assert [stem for _, stem in of_each(compute, paths, failures)] == [p.stem for p in paths]
    assert failures == []


def test_one_bad_image_among_many_costs_few_calls():
    paths = [Path(f"{i}.png") for i in range(1000)]
    calls, failures = [], []
    assert len(list(of_each(upper_case({paths[700]}, calls), paths, failures))) == 999
    assert [failure.path for failure in failures] == [paths[700]]
    assert len(calls) < 25


def test_results_come_as_they_are_computed():
    paths = [Path("a.png"), Path("b.png")]
    results = of_each(upper_case({paths[1]}), paths, [])
    assert next(results) == (paths[0], "A.PNG")  # before the second one is looked at


def test_other_errors_end_at_once():
    def compute(paths):
        raise MemoryError

    with pytest.raises(MemoryError):
        list(of_each(compute, [Path("a.png")] * 3, []))


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("X[36] contains NaN.", "d/a.png contains NaN."),
        ("X[3] (d/a.png) must be grey.", "d/a.png must be grey."),
        ("d/a.png cannot be read.", "d/a.png cannot be read."),
        ("X must hold images of 3 channels.", "d/a.png: X must hold images of 3 channels."),
    ],
)
def test_errors_name_the_file_and_no_index(reason, expected):
    assert about(Path("d/a.png"), reason) == expected


def test_all_failures_are_counted_and_some_are_named():
    failures = [Failure(Path(f"{i}.png"), f"{i}.png is bad.") for i in range(9)]
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
