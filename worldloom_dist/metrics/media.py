"""Pictures and videos that appear in a run folder, on their way to the sinks."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["PICTURES", "VIDEOS", "MediaWatch", "Medium"]

PICTURES = (".png", ".gif", ".jpg")
VIDEOS = (".mp4", ".gif")
UNCHANGED_S = 2.0


class Medium(NamedTuple):
    """A picture or video: what it shows (of ``open_loop-image-0000012000.gif``:
    ``open_loop-image``), its file, its env steps.
    """

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
                    name, _, steps = path.stem.rpartition("-")
                    is_numbered = bool(name) and steps.isdigit()
                    found.append(
                        Medium(
                            name if is_numbered else path.stem,
                            path,
                            int(steps) if is_numbered else None,
                        )
                    )
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
        return (
            [path for path in self._folder.glob("*") if path.suffix.lower() in known]
            if self._folder.is_dir()
            else []
        )
