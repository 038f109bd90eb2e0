"""``python -m worldloom_dist.plot RUN_DIR...``: return, losses and throughput of runs as one
picture, or as a table.
"""

from __future__ import annotations

from worldloom.evaluation.seeds import iqm
from worldloom_dist.plot.command import main
from worldloom_dist.plot.figure import plot_runs
from worldloom_dist.plot.reference import find_published
from worldloom_dist.plot.runs import Run, combine, read_run
from worldloom_dist.plot.table import table_of
from worldloom_dist.run.curves import Curve

__all__ = [
    "Curve",
    "Run",
    "combine",
    "find_published",
    "iqm",
    "main",
    "plot_runs",
    "read_run",
    "table_of",
]
