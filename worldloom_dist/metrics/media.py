"""Pictures and videos that appear in a run folder, on their way to the sinks, and what their names
say.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import NamedTuple

from worldloom.core.plain_files import lies_in

__all__ = ["PICTURES", "VIDEOS", "MediaWatch", "Medium", "Subject", "is_half_written", "subject_of"]

PICTURES = (".png", ".gif", ".jpg")
VIDEOS = (".mp4", ".gif")
UNCHANGED_S = 2.0
EVALUATION = re.compile(r"eval-(\d+)-(?:(.+)-)?(\d+)")
IMAGINED = re.compile(r"open_loop-(.+)-(\d+)")


class Subject(NamedTuple):
    """What a picture or video shows, as its name says.

    Attributes:
        kind: ``evaluation``, ``imagined`` or ``other``; a run makes the first two.
        which: Episode of the evaluation, from 0; observation that is imagined; or the whole name.
        env_steps: When; None for others, whose numbers mean something else.
        task: That is evaluated, of several; else empty.
    """

    kind: str
    which: str
    env_steps: int | None
    task: str = ""

    @property
    def name(self) -> str:
        """The same for every video of one curve: ``eval``, ``eval-1`` for the second episode of
        an evaluation, ``eval/walker-walk`` for one of several tasks, ``open_loop-image``.
        """
        if self.kind == "evaluation":
            curve = f"eval/{self.task}" if self.task else "eval"
            return curve if int(self.which) == 0 else f"{curve}-{int(self.which)}"
        return f"open_loop-{self.which}" if self.kind == "imagined" else self.which


def subject_of(stem: str) -> Subject:
    """Of a file's name without its ending: ``eval-000002000-0`` is of an evaluation,
    ``open_loop-image-0000012000`` of what the agent imagines; others were made by ``evaluate``, or
    by people.
    """
    if match := EVALUATION.fullmatch(stem):
        return Subject("evaluation", match[3], int(match[1]), match[2] or "")
    if match := IMAGINED.fullmatch(stem):
        return Subject("imagined", match[1], int(match[2]))
    return Subject("other", stem, None)


def is_half_written(path: Path) -> bool:
    """True for what an earlier version left of a video when it was killed."""
    return ".half." in path.name


class Medium(NamedTuple):
    """A picture or video: what it shows (:attr:`Subject.name`), its file, its env steps."""

    name: str
    path: Path
    env_steps: int | None


class MediaWatch:
    """Finds pictures and videos that someone put into a folder, each once, when it has not changed
    for two seconds.

    Args:
        folder: May not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = set(self._files())
        self._looks: dict[Path, tuple[tuple[int, int], float]] = {}

    def fresh(self, unchanged_s: float = UNCHANGED_S) -> list[Medium]:
        """What came since the last call, in the order of names; 0 for a run's end, when no one
        writes any more.
        """
        found = []
        for path in sorted(self._files()):
            with contextlib.suppress(OSError):  # old ones are deleted
                if path not in self._seen and self._unchanged_for(path) >= unchanged_s:
                    self._seen.add(path)
                    self._looks.pop(path, None)
                    subject = subject_of(path.stem)
                    found.append(Medium(subject.name, path, subject.env_steps))
        return found

    def _unchanged_for(self, path: Path) -> float:
        """Seconds since a look first found the file as it is; its own time is another clock's."""
        status = path.stat()
        state = (status.st_size, status.st_mtime_ns)
        known, since = self._looks.get(path, (None, 0.0))
        if known != state:
            since = time.monotonic()
            self._looks[path] = state, since
        return time.monotonic() - since

    def _files(self) -> list[Path]:
        known = {*PICTURES, *VIDEOS}
        return [
            path
            for path in (self._folder.glob("*") if self._folder.is_dir() else ())
            if path.suffix.lower() in known
            and not is_half_written(path)
            and lies_in(self._folder.parent, path)
        ]
