"""Draw what a world model imagines beside what came, and measure it; the same as ``worldloom
imagine``.

python examples/visualize_imagination.py --model ./outputs/dreamer/model --data trajectories.npz
--all
"""

import sys

from worldloom.commands import main

if __name__ == "__main__":
    status = main(["imagine", *sys.argv[1:]])
    if status:
        raise SystemExit(status)
