"""The command line of ``worldloom plot``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom.core.files import inside
from worldloom.core.program import called, interruptible
from worldloom_dist.plot.figure import plot_runs
from worldloom_dist.plot.reference import find_published
from worldloom_dist.plot.runs import Run, read_run
from worldloom_dist.plot.style import STYLES, check_drawing
from worldloom_dist.plot.table import table_of
from worldloom_dist.run.curves import AXES
from worldloom_dist.run.listing import newest_run

__all__ = ["main"]


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(words)
    try:
        run_dirs = options.run_dir or [newest_run()]
        path = options.output or inside(_usual_place(run_dirs), "plot.png")
        if not options.table or options.output:
            check_drawing(path, needs_folder=options.output is not None)
        references = [found for task in options.reference for found in find_published(task)]
        folders = {folder.resolve(): folder for folder in run_dirs}  # each counts once
        runs: list[Run] = [read_run(folder) for folder in folders.values()]
        if options.table:
            sys.stdout.write(table_of(runs) + "\n")
        if not options.table or options.output:
            plot_runs(
                runs,
                path,
                options.title,
                axis=options.x,
                references=references,
                style=options.style,
            )
            sys.stdout.write(f"{path}\n")
    except (ConfigurationError, MissingDependencyError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _usual_place(run_dirs: Sequence[Path]) -> Path:
    """The folder of a run; of several the one in which they all are, so that none's picture is
    replaced by one of more.
    """
    if len({folder.resolve() for folder in run_dirs}) == 1:
        return run_dirs[0]
    return Path(os.path.commonpath(folder.absolute() for folder in run_dirs))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("plot"),
        description="Return, losses and throughput of runs: one panel per env, one colour per "
        "experiment; runs that differ in their seed alone are one experiment.",
    )
    parser.add_argument("run_dir", type=Path, nargs="*", help="run folders (default: the newest)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=None,
        help="PNG, PDF or SVG (default: plot.png in the run's folder, of several in the one that "
        "they share)",
    )
    parser.add_argument("--title", default="", help="of the picture")
    parser.add_argument(
        "--x",
        choices=list(AXES),
        default=None,
        help="what curves are over (default: env_steps; updates for runs without an env)",
    )
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="TASK",
        help="also draw the published curves of a task, as dmc/walker-walk; may be repeated",
    )
    parser.add_argument(
        "--style", choices=list(STYLES), default="light", help="paper (default: %(default)s)"
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="print a comparison of the runs; with -o also draw them",
    )
    return parser
