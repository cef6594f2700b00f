"""The command ``skmkd``."""

from skmkd._cli.parser import main

__all__ = ["main"]
