"""Each image has its result, whether or not others fail; errors name files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skmkd._cli.outputs import Failure, about, check_complete, of_each


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
