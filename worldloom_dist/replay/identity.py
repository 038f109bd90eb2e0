"""The incarnations that a run's journals know of: no later process may write under one of them.

``incarnations.json`` counts every start of a role. It may be lost, or be an old copy; the journals
then still say which streams there were, because every head names all of them. Two lives of an env
under one name would be taken for one: the chunks of the second for those of the first that come
again, and what follows for its continuation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from worldloom.core.sequence import StreamId
from worldloom_dist.ports import FIRST_GATEWAY_SLOT, SESSION_BITS
from worldloom_dist.replay.journal import HEAD, read_newest_segments
from worldloom_dist.replay.records import CHUNK, LOST, StoredChunk, unpack_head

__all__ = ["KnownIncarnations", "known_incarnations"]


@dataclass(slots=True)
class KnownIncarnations:
    """The highest ones that were found, -1 where there is none.

    Attributes:
        worker, gateway: Of the workers that wrote streams, and of gateways.
        learner: Of the learners that made the weights which chose an action.
    """

    worker: int = -1
    gateway: int = -1
    learner: int = -1

    def note(self, streams: Iterable[StreamId]) -> None:
        """Take the names of streams; those of imported files count for nothing."""
        for slot, incarnation, _ in streams:
            if slot >= FIRST_GATEWAY_SLOT:
                self.gateway = max(self.gateway, incarnation >> SESSION_BITS)
            else:
                self.worker = max(self.worker, incarnation)


def known_incarnations(replay: Path) -> KnownIncarnations:
    """What the journals of all shards in a folder know. Reads the newest segment of each, and older
    ones only where the heads of the newer ones are damaged.

    Raises:
        CheckpointError: If a record holds what no shard has written.
    """
    known = KnownIncarnations()
    for folder in sorted(replay.glob("shard-*")):
        for records in read_newest_segments(folder):
            has_head = False
            for record in records:
                if record.kind == CHUNK:
                    chunk = StoredChunk.unpack(record.payload).chunk
                    known.note([chunk.stream])
                    known.learner = max(known.learner, chunk.version.incarnation)
                elif record.kind in (HEAD, LOST):
                    has_head = True
                    known.note(StreamId(*entry[:3]) for entry in unpack_head(record)["streams"])
            if has_head:
                break
    return known
