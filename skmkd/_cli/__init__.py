"""The command line ``skmkd``."""

from skmkd._cli.parser import main

__all__ = ["main"]
