"""The version is one number, wherever it is declared, and the changelog agrees with it."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

import skmkd

ROOT = Path(__file__).parent.parent


def test_version_is_in_normal_form():
    assert str(Version(skmkd.__version__)) == skmkd.__version__  # else pip shows another one


def test_wheel_gets_the_public_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    module, _, name = project["tool"]["setuptools"]["dynamic"]["version"]["attr"].rpartition(".")
    assert getattr(importlib.import_module(module), name) == skmkd.__version__


def test_changelog_has_a_section_for_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    check_changelog(changelog, Version(skmkd.__version__))


def check_changelog(changelog, version):
    """Check that the top section is of this version, and that releases descend below it.

    A development version has an "Unreleased" section, and is above the last release.
    """
    top, *others = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    releases = [Version(re.match(r"\[?([^\]\s]+)", title)[1]) for title in others]
    if version.is_devrelease:
        assert top == "Unreleased"
    else:
        assert re.fullmatch(rf"\[?{re.escape(str(version))}\]? [-–] \d{{4}}-\d\d-\d\d", top)
    assert all(high > low for high, low in zip([version, *releases], releases, strict=False))


@pytest.mark.parametrize(
    ("version", "titles"),
    [
        ("0.1.0.dev0", ["0.1.0 - 2026-01-01"]),
        ("0.1.0", ["Unreleased", "0.1.0 - 2026-01-01"]),
        ("0.1.0", ["0.1.0"]),
        ("0.2.0", ["0.1.0 - 2026-01-01"]),
        ("0.1.0.dev0", ["Unreleased", "0.1.0 - 2026-01-01"]),
        ("0.2.0", ["0.2.0 - 2026-02-01", "0.1.0 - 2026-01-01", "0.1.1 - 2026-01-02"]),
    ],
)
def test_a_changelog_that_disagrees_fails(version, titles):
    changelog = "".join(f"## {title}\n\ntext\n\n" for title in titles)
    with pytest.raises(AssertionError):
        check_changelog(changelog, Version(version))
