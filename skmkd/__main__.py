"""Run the command line as ``python -m skmkd``."""

import sys

from skmkd._cli import main

if __name__ == "__main__":
    sys.exit(main())
