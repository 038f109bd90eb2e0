"""The terminal of a run: log lines, and below them a live view that is drawn again twice a second.
Without a terminal: lines only.

The file ``console.log`` always gets every line. Progress lines (one every ten seconds) come from
the logger ``PROGRESS``; a terminal with a live view leaves them out, because the view says the
same.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from worldloom_dist.run.view import View, duration, facts

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["PROGRESS", "LogFile", "Screen", "plain", "render", "show_nothing", "stdout_to_stderr"]

PROGRESS = "worldloom_dist.progress"
DRAW_EVERY_S = 0.5
COLOURS = {
    "completed": "green",
    "running": "cyan",
    "stopped": "yellow",
    "failed": "red",
    "died": "red",
}


class _Fragile(logging.Handler):
    """A handler of what may go away, a terminal or a disk: that costs lines, and one line on
    stderr, not a traceback for each.
    """

    target = ""
    """What it writes to, in words."""
    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (the library calls it so)
        """Say once that lines are lost."""
        error = sys.exception()
        with contextlib.suppress(Exception):  # stderr may be gone as well
            if not isinstance(error, OSError) and "closed file" not in str(error):
                super().handleError(record)
            elif not self._has_failed:
                self._has_failed = True
                reason = getattr(error, "strerror", None) or str(error).rstrip(".")
                sys.stderr.write(f"{self.target} cannot be written ({reason}); lines are lost\n")


class Screen(_Fragile):
    """A log handler for a stream that also keeps a live view at the bottom when the stream is a
    terminal.

    Args:
        stream: Where it writes.
        is_live: Draw the live view; by default when the stream is a terminal that can move its
            cursor.
    """

    def __init__(self, stream: TextIO = sys.stdout, *, is_live: bool | None = None) -> None:
        super().__init__()
        self.target = getattr(stream, "name", "the terminal")
        self._stream = stream
        self.is_live = (
            stream.isatty() and os.environ.get("TERM") != "dumb" if is_live is None else is_live
        )
        self._live: Any = None
        self._next_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line, above the view if there is one."""
        try:
            text = self.format(record)
            if self._live is not None:
                if record.name != PROGRESS:
                    self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                self._stream.write(text + "\n")
                self._stream.flush()
        except Exception:  # as every handler of the standard library: logging never raises
            self.handleError(record)

    def show(self, make: Callable[[], View]) -> None:
        """Draw the view, at most twice a second; ``make`` is called only then."""
        now = time.monotonic()
        if not self.is_live or now < self._next_s:
            return
        self._next_s = now + DRAW_EVERY_S
        try:
            self._draw(make())
        except Exception:  # a terminal that went away must not end a run
            logging.getLogger(__name__).warning("the live view is given up", exc_info=True)
            self.is_live = False
            self.close()

    def show_last(self, make: Callable[[], View]) -> None:
        """Draw the view once more, for how the run ended; nothing where there is no view."""
        if self._live is not None:
            self._next_s = 0.0
            self.show(make)

    def close(self) -> None:
        """Leave the last view on the screen and give the cursor back."""
        live = self._live
        self._live = None
        if live is not None:
            live.stop()
        super().close()

    def _draw(self, view: View) -> None:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, force_terminal=True)
            self._live = Live(
                console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        self._live.update(render(view), refresh=True)


class LogFile(_Fragile, logging.FileHandler):
    """``console.log``."""

    def __init__(self, path: Path) -> None:
        # names of files may be no UTF-8
        super().__init__(path, encoding="utf-8", errors="surrogateescape")
        self.target = self.baseFilename


def show_nothing(make: Callable[[], View]) -> None:
    """In place of a screen's ``show`` where there is none."""


def render(view: View) -> RenderableType:
    """The view as a box for a terminal."""
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    colour = COLOURS.get(view.status, "white")
    bar = Table.grid(expand=True, padding=(0, 1))
    bar.add_column(ratio=1)
    bar.add_column(justify="right", no_wrap=True)
    bar.add_row(
        ProgressBar(
            total=1.0, completed=view.progress, complete_style=colour, finished_style=colour
        ),
        Text(_progress(view)),
    )
    grid = Table.grid(expand=True, padding=(0, 1))
    for ratio in (None, 1, None, 1):  # labels as wide as they are
        grid.add_column(ratio=ratio, no_wrap=True)
    found = facts(view)
    for left, right in zip(found[::2], found[1::2], strict=True):
        grid.add_row(Text(left[0], "dim"), Text(left[1]), Text(right[0], "dim"), Text(right[1]))
    body = Table.grid(expand=True)
    body.add_row(bar)
    body.add_row(grid)
    if view.error:
        body.add_row(Text(view.error, "red"))
    title = Text.assemble(
        (view.run_id or view.folder, "bold"), f"  {view.title}  ", (view.status, colour)
    )
    return Panel(body, title=title, title_align="left", border_style="dim")


def plain(view: View) -> str:
    """The view as lines without colours."""
    width = max(len(label) for label, _ in facts(view))
    lines = [f"{view.run_id or view.folder}: {view.title}: {view.status}", _progress(view)]
    lines += [f"  {label.ljust(width)}  {text}" for label, text in facts(view)]
    return "\n".join([*lines, *([f"  {'error'.ljust(width)}  {view.error}"] if view.error else [])])


def _progress(view: View) -> str:
    eta = f", {duration(view.eta_s)} to go" if view.eta_s is not None else ""
    return f"{view.counted}, {view.progress:.0%}, {duration(view.wall_time_s)}{eta}"


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Keep standard output for an answer: what an env prints meanwhile, from C or in a process of
    its own too, goes to stderr.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C libraries have buffered
        os.dup2(kept, 1)
        os.close(kept)
