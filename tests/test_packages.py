"""Optional packages: found, missing, and kept from telling of their use."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

import skmkd
from skmkd._packages import QUIET, MissingExtraError, needed, openvino_core


def test_a_package_that_is_there_is_imported():
    import json

    assert needed("json", "any", "this") is json


@pytest.mark.parametrize("name", ["a_package_that_is_not_there", "openvino"])
def test_a_package_that_is_missing_names_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf'what needs {name}: pip install "skmkd\[some\]"'):
        needed(name, "some", "what")
    assert issubclass(MissingExtraError, ImportError)


TELLING = """
try:
    from telling_its_makers import send
except ImportError:
    send = None
"""


@pytest.fixture
def telling(tmp_path, monkeypatch):
    """A package that tells its makers of its use by another, where that is there."""
    (tmp_path / "a_telling_package.py").write_text(TELLING)
    (tmp_path / "telling_its_makers.py").write_text("send = print")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(QUIET, "a_telling_package", "telling_its_makers")
    yield "a_telling_package"
    for name in ("a_telling_package", "telling_its_makers"):
        sys.modules.pop(name, None)


def test_a_package_does_not_tell_of_its_use(telling):
    assert needed(telling, "any", "this").send is None
    assert "telling_its_makers" not in sys.modules
    import telling_its_makers  # others may use it

    assert telling_its_makers.send is print


def test_what_others_have_imported_stays(telling):
    import telling_its_makers

    assert needed(telling, "any", "this").send is print
    assert sys.modules["telling_its_makers"] is telling_its_makers


def test_threads_import_one_at_a_time(telling):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(needed(telling, "any", "this")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.send for each in found] == [None] * 8
    assert "telling_its_makers" not in sys.modules


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO")
def test_there_is_one_core_of_openvino():
    with ThreadPoolExecutor(4) as pool:
        cores = list(pool.map(lambda _: openvino_core(), range(8)))
    assert all(core is openvino_core() for core in cores)
    package = Path(skmkd.__file__).parent
    users = [path.name for path in package.rglob("*.py") if "Core()" in path.read_text()]
    assert users == ["_packages.py"]
