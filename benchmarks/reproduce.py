"""A published result by name, beside its published numbers: ``worldloom reproduce``.

    python benchmarks/reproduce.py                               # lists the names
    python benchmarks/reproduce.py tdmpc2/cup-catch --seeds 1-2  # runs one; goes on if stopped
    python benchmarks/reproduce.py tdmpc2/cup-catch --peer ~/tdmpc2 --peer-python ~/venv/bin/python

Curves, comparisons and pictures go below ``runs/reproduce``.
"""

import sys

from worldloom_dist.reproduce import main

sys.exit(main())
