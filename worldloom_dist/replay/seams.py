"""Seams: where the rows of two lives of an env stand in one stream, as if they were one.

That happens when a process writes under the name of an earlier one, which its shard cannot know:
the first chunks of the second life have the numbers of chunks that are stored, so they count as
repeated, and the next one seems to continue the first life.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from zlib_ng import zlib_ng as zlib

from worldloom.core.sequence import NO_POLICY, Chunk, PolicyVersion, StreamId
from worldloom_dist.ports import FIRST_GATEWAY_SLOT
from worldloom_dist.replay.records import Repeated

__all__ = ["StreamLives"]


@dataclass(slots=True)
class _Life:
    """What is known of a stream: its chunks on disk, the version of the newest one, and whether
    that ends an episode.
    """

    checksums: dict[int, int] = field(default_factory=dict)
    seq: int = -1
    version: PolicyVersion = NO_POLICY
    has_ended: bool = False


class StreamLives:
    """Follows the streams of a journal, and says where one cannot be the life of one env."""

    def __init__(self) -> None:
        self._lives: defaultdict[StreamId, _Life] = defaultdict(_Life)

    def repeated(self, repeated: Repeated) -> str:
        """A chunk that came again; returns what is wrong with it, empty when nothing is."""
        if repeated.stream is None:
            return ""
        checksum = self._lives[repeated.stream].checksums.get(repeated.seq, repeated.checksum)
        if checksum == repeated.checksum:
            return ""
        return (
            f"chunk {repeated.stream}/{repeated.seq} came again with other rows: two lives of an "
            f"env have one name, and {repeated.rows} rows of the second one are not stored"
        )

    def stored(self, chunk: Chunk, flags: Mapping[str, np.ndarray]) -> str:
        """A chunk with the flags of its rows; returns what is wrong with it."""
        life = self._lives[chunk.stream]
        life.checksums[chunk.seq] = zlib.crc32(chunk.payload)
        if chunk.seq < life.seq:  # it came late
            return ""
        follows = chunk.seq == life.seq + 1 and not chunk.stream.is_imported
        name = f"chunk {chunk.stream}/{chunk.seq}"
        problem = ""
        is_of_worker = chunk.stream.slot < FIRST_GATEWAY_SLOT
        if follows and is_of_worker and chunk.version < life.version:
            problem = (
                f"{name} was acted by version {chunk.version} and the one before it by "
                f"{life.version}: two lives of an env stand in one stream"
            )
        elif follows and life.has_ended and not flags["is_first"][0]:
            problem = (
                f"{name} goes on in an episode, and the one before it ends one: two "
                + ("lives of an env" if is_of_worker else "episodes of a client")
                + " stand in one stream as one"
            )
        life.seq = chunk.seq
        life.version = chunk.version
        life.has_ended = bool(flags["terminated"][-1] or flags["truncated"][-1])
        return problem
