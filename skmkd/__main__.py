"""``python -m skmkd`` is the command ``skmkd``."""

import sys

from skmkd._cli import main

if __name__ == "__main__":
    sys.exit(main())
