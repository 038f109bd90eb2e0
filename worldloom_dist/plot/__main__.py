"""``python -m worldloom_dist.plot``."""

import sys

from worldloom_dist.plot.command import main

if __name__ == "__main__":
    sys.exit(main())
