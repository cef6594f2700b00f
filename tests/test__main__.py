"""``python -m skmkd`` runs the command line."""

from __future__ import annotations

import subprocess
import sys

from skmkd import __version__


def test_python_m_skmkd():
    done = subprocess.run(
        [sys.executable, "-m", "skmkd", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"skmkd {__version__}\n"
    assert done.stderr == ""
