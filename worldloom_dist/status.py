"""``python -m worldloom_dist.status [RUN_DIR...]``: what a run does, or how it ended, from its
folder.

Exit status: 0 running, completed or stopped; 1 failed or died; 2 no run there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.json_text import to_json
from worldloom.core.program import called, interruptible
from worldloom_dist.run.console import plain, render
from worldloom_dist.run.listing import newest_run
from worldloom_dist.run.view import View, read_view, reading_run

__all__ = ["main"]

WATCH_EVERY_S = 2.0


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=called("status"),
        description="What a run does, or how it ended.",
    )
    parser.add_argument("run_dir", type=Path, nargs="*", help="run folders (default: the newest)")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="go on looking, every two seconds, until no run is running; without a terminal or "
        "with --json it is printed at the end",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per run")
    options = parser.parse_args(words)
    is_live = options.watch and sys.stdout.isatty() and not options.json
    try:
        folders = options.run_dir or [newest_run()]
        views = _read(folders)
        if options.watch:
            views = (_watch_live if is_live else _watch)(folders, views)
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if is_live:
        pass  # they are on the screen
    elif options.json:
        sys.stdout.write("".join(to_json(dataclasses.asdict(view)) + "\n" for view in views))
    elif sys.stdout.isatty():
        from rich.console import Console

        for view in views:
            Console().print(render(view))
    else:
        sys.stdout.write("\n\n".join(plain(view) for view in views) + "\n")
    return 1 if any(view.status in ("failed", "died") for view in views) else 0


def _read(folders: Sequence[Path]) -> list[View]:
    """A view of each run.

    Raises:
        ConfigurationError: If a folder holds no run, or one that cannot be read.
    """
    views = []
    for folder in folders:
        with reading_run(folder):
            views.append(read_view(folder))
    return views


def _watch(
    folders: Sequence[Path],
    views: list[View],
    show: Callable[[list[View]], object] = lambda views: None,
) -> list[View]:
    """Look until no run is running, or Ctrl-C; returns the last views. ``show`` gets each."""
    try:
        while any(view.status in ("running", "starting") for view in views):
            time.sleep(WATCH_EVERY_S)
            views = _read(folders)
            show(views)
    except KeyboardInterrupt:
        pass
    return views


def _watch_live(folders: Sequence[Path], views: list[View]) -> list[View]:
    """:func:`_watch`, on the terminal."""
    from rich.console import Group
    from rich.live import Live

    with Live(Group(*map(render, views)), auto_refresh=False) as live:
        return _watch(
            folders,
            views,
            lambda newest: live.update(Group(*map(render, newest)), refresh=True),
        )


if __name__ == "__main__":
    sys.exit(main())
