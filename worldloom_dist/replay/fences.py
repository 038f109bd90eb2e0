"""Streams that no one may write any more, because their envs' rows go on in other streams.

Written down beside the journal, so that a shard which comes back refuses them, too.
"""

from __future__ import annotations

from pathlib import Path

from worldloom.core.damage import reading
from worldloom.core.files import write_json
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_plain
from worldloom.core.sequence import StreamId
from worldloom_dist.ports import FencedError

__all__ = ["Fences"]

FILE = "fences.json"
MOST = 65_536


class Fences:
    """The fences of one shard.

    Args:
        directory: Where they are kept; None keeps them in memory.
        is_synced: Whether they survive a power loss.
    """

    def __init__(self, directory: Path | None, *, is_synced: bool = False) -> None:
        self._path = None if directory is None else directory / FILE
        self._is_synced = is_synced
        self._names: dict[tuple[int, int], None] = {}
        if self._path is not None and self._path.is_file():
            with reading(self._path, "is damaged; restore it from a copy"):
                for slot, incarnation in parse_json(read_plain(self._path)):
                    self._names[int(slot), int(incarnation)] = None

    def add(self, slot: int, incarnation: int) -> None:
        """Fence all streams of an incarnation of a slot."""
        if (slot, incarnation) in self._names:
            return
        names = {**self._names, (slot, incarnation): None}
        while len(names) > MOST:
            names.pop(next(iter(names)))
        if self._path is not None:
            write_json(self._path, [list(name) for name in names], is_synced=self._is_synced)
        self._names = names

    def check(self, stream: StreamId) -> None:
        """Raises:
        FencedError: If the stream is fenced.
        """
        if self._names and stream[:2] in self._names:
            raise FencedError(f"stream {stream} goes on elsewhere, and takes no more rows")
