"""``python -m worldloom``: the ``worldloom`` command without its console script."""

import sys

from worldloom.commands import main

if __name__ == "__main__":
    sys.exit(main())
