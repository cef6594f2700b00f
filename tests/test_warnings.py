from __future__ import annotations

import _thread
import contextlib
import threading
import types
import warnings
from textwrap import dedent

import pytest
import torch
from sklearn.base import BaseEstimator, OutlierMixin, _fit_context

from skmkd._warnings import warn


def library(source, name="skmkd._somewhere", **names):
    """Return a module of the library with this source."""
    module = types.ModuleType(name)
    vars(module).update(names, warn=warn)
    exec(compile(dedent(source), f"/site-packages/{name}.py", "exec"), vars(module))
    return module


def reported(call, *args):
    """Return the file and line of the one warning that a call issues."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        call(*args)
    (warning,) = record
    return warning.filename, warning.lineno


CALL = __file__, reported.__code__.co_firstlineno + 4


def test_a_direct_call_is_reported_at_its_caller():
    assert reported(library("def call(): warn('careful')").call) == CALL


def test_message_and_category_are_passed_on():
    module = library("def call(*args): warn('careful', *args)")
    with pytest.warns(RuntimeWarning, match=r"^careful$"):
        module.call(RuntimeWarning)
    with pytest.warns(UserWarning, match=r"^careful$") as record:
        module.call()
    assert record[0].category is UserWarning


@pytest.mark.parametrize("depth", [0, 1, 7])
def test_any_depth_of_frames_inside_the_library_is_skipped(depth):
    inner = library("def call(n): call(n - 1) if n else warn('careful')")
    outer = library("def call(n): inner.call(n)", "skmkd", inner=inner)
    assert reported(outer.call, depth) == CALL


def test_other_packages_between_frames_of_the_library_are_skipped():
    network = torch.nn.Identity()
    network.forward = library("def forward(x): warn('careful'); return x").forward
    fit = library("def fit(x): return network(x)", network=network).fit
    assert reported(fit, torch.ones(1)) == CALL


def test_decorators_of_the_outermost_method_are_skipped():
    source = """
    class Estimator(OutlierMixin, BaseEstimator):
        _parameter_constraints = {}

        @_fit_context(prefer_skip_nested_validation=True)
        def fit(self, X, y=None):
            warn('careful')
            return self

        @torch.no_grad()
        def predict(self, X):
            warn('careful')

        @contextlib.contextmanager
        def context(self):
            warn('careful')
            yield

        @_fit_context(prefer_skip_nested_validation=True)
        def calm_fit(self, X, y=None):
            return self
    """
    names = {"torch": torch, "contextlib": contextlib, "_fit_context": _fit_context}
    bases = {"OutlierMixin": OutlierMixin, "BaseEstimator": BaseEstimator}
    estimator = library(source, **names, **bases).Estimator()
    assert reported(estimator.fit, [[0]]) == CALL
    assert reported(estimator.predict, [[0]]) == CALL
    assert reported(estimator.context().__enter__) == CALL
    estimator.fit = estimator.calm_fit
    assert reported(estimator.fit_predict, [[0]]) == CALL  # scikit-learn's own method


def test_packages_whose_names_begin_alike_are_outside():
    module = library("def call(): warn('careful')")
    other = library("def call(): module.call()", "skmkd_extra", module=module)
    assert reported(other.call) == ("/site-packages/skmkd_extra.py", 1)


def test_a_thread_that_starts_in_the_library_still_warns():
    done = threading.Event()
    source = """
    def call():
        try:
            warn("careful")
        finally:
            done.set()
    """

    def run():
        _thread.start_new_thread(library(source, done=done).call, ())  # no frame of another module
        assert done.wait(10)

    with pytest.warns(UserWarning, match="careful"):
        run()
