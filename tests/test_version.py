from __future__ import annotations

from sklearn.utils.fixes import parse_version

import skmkd
from skmkd._version import __version__


def test_version_is_public_and_well_formed():
    assert skmkd.__version__ == __version__
    assert str(parse_version(__version__)) == __version__
