"""``worldloom push RUN USER/NAME``: an agent on a model hub."""

from __future__ import annotations

import argparse
import sys
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of ``worldloom``."""
    parser = commands.add_parser("push", help="share an agent on a model hub: push RUN USER/NAME")
    parser.add_argument("run_dir", metavar="RUN", help="a run, a checkpoint, or a saved agent")
    parser.add_argument("repo", metavar="USER/NAME", help="where; hf:// in front of it is allowed")
    parser.add_argument(
        "--private", action="store_true", help="a repository that others do not see"
    )
    parser.add_argument(
        "--episodes",
        type=int,
        default=None,
        help="play this many for the card (default: the run's last evaluation)",
    )
    parser.add_argument(
        "--without-score", action="store_true", help="push an agent that was never evaluated"
    )
    parser.add_argument("--license", default="mit", help="of the weights (default: %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Push, and say where it is.

    Raises:
        WorldLoomError: As :func:`worldloom.hub.push`.
    """
    from worldloom.hub.pushing import push

    found = push(
        options.run_dir,
        options.repo,
        private=options.private,
        episodes=options.episodes,
        needs_score=not options.without_score,
        license=options.license,
    )
    lines = [*(f"note: {note}" for note in found.notes), *found.files, found.url]
    sys.stdout.write("\n".join(lines) + "\n")
