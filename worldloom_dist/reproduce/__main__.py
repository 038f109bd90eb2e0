"""``python -m worldloom_dist.reproduce``."""

import sys

from worldloom_dist.reproduce.command import main

if __name__ == "__main__":
    sys.exit(main())
