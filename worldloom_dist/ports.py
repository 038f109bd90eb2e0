"""What roles are to each other inside a process. A role knows these protocols and the library; it
never knows another role, and never Ray.

    RolloutWorker --Chunk--> ReplayWriter      (acknowledged before the stream's next one)
    Learner       --SampleRequest--> replay --SampledWindows-->
    Learner       --WeightsSnapshot--> WeightSink .. WeightSource --> acting roles (pull)

Who waits for whom: a worker waits for an acknowledgement, which waits for the coordinator's insert
permits; a learner waits for a sample, which waits for the coordinator's sample permits. The
coordinator's band always allows at least one side (``data.rate_limiter``), so the two never wait
for each other. Fakes that check what they are given live in ``tests/fakes.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple, Protocol

from worldloom.core.exceptions import StateError
from worldloom.core.metrics import MetricMap, Sum
from worldloom.core.sequence import Chunk, PolicyVersion
from worldloom.core.weights import WeightsSnapshot

__all__ = [
    "CHUNK_SOURCES",
    "FIRST_GATEWAY_SLOT",
    "FIRST_STEP",
    "SESSION_BITS",
    "EpisodeOverError",
    "FencedError",
    "MirrorPlace",
    "ReplayWriter",
    "RowCounters",
    "SampleRequest",
    "StepPermit",
    "StepQuestion",
    "WeightSink",
    "WeightSource",
    "WriteBack",
]


FIRST_GATEWAY_SLOT = 1_000_000
"""Slots of gateways' sessions are from here on, above those of all workers."""
SESSION_BITS = 24
"""Sessions of one gateway process count in the lower bits of their incarnation; that of the process
stands above them."""
CHUNK_SOURCES = "sources"
"""Note of a chunk: who chose the action of every row, where that is not the policy for all."""
FIRST_STEP = "first_step"
"""Note of a gateway's chunk: which step of the client its first row is."""


class EpisodeOverError(StateError):
    """A client's chunk goes on with an episode that the chunk before it ended."""


class FencedError(StateError):
    """A chunk came too late: its stream has a successor, which goes on with its env's rows."""


@dataclass(frozen=True, slots=True)
class RowCounters:
    """The counters of a shard, or summed over shards: ``inserted == stored + evicted + lost_acked``
    at every moment.

    Attributes:
        inserted: Rows acknowledged, each counted once, over the whole run.
        stored: Rows that can be sampled now.
        evicted: Rows that made room for newer ones.
        lost_acked: Acknowledged rows that a lost disk took away.
        duplicate: Rows of chunks that came again and were ignored.
        agent_steps: Decisions whose result was inserted (``core.sequence.agent_steps``).
        payload_bytes: Bytes that the stored rows take in memory.
    """

    inserted: int = 0
    stored: int = 0
    evicted: int = 0
    lost_acked: int = 0
    duplicate: int = 0
    agent_steps: int = 0
    payload_bytes: int = 0

    def __add__(self, other: RowCounters) -> RowCounters:
        mine = asdict(self)
        theirs = asdict(other)
        return RowCounters(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def is_balanced(self) -> bool:
        """True when no row is unaccounted for."""
        return self.inserted == self.stored + self.evicted + self.lost_acked

    def check(self) -> None:
        """Look at the counters before they go into a checkpoint.

        Raises:
            StateError: If a row is unaccounted for, which is a defect of this program.
        """
        if not self.is_balanced:
            raise StateError(
                "the counters of replay do not add up: inserted is not stored + evicted "
                f"+ lost in {self}; report this"
            )


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Ask one shard for windows.

    Attributes:
        windows: How many.
        seed: Entropy of the draws: equal seeds on equal content give equal windows, so no one has
            to save a generator.
        files: Those of the windows that begin at rows from files; None leaves that to chance.
    """

    windows: int
    seed: tuple[int, ...]
    files: int | None = None


class MirrorPlace(NamedTuple):
    """Where a learner keeps its newest state in shared memory: a process of this machine, its
    descriptor there, and which memory of that process it is, because descriptors come again.
    """

    process: int
    descriptor: int
    number: int


class StepQuestion(NamedTuple):
    """A worker asks how many more agent steps it may make. What it had left of an earlier permit is
    returned by asking.

    Attributes:
        slot, incarnation: Which worker.
        number: Of the question, from 1; one that is asked again, because no answer came, is
            permitted once.
        made: Agent steps that this incarnation has made.
        in_chunks: Those of them whose chunk is not acknowledged yet.
        least, most: Steps of one decision of its envs, below which a permit is of no use; and the
            most that it wants now.
    """

    slot: int
    incarnation: int
    number: int
    made: int
    in_chunks: int
    least: int
    most: int


class StepPermit(NamedTuple):
    """The answer to a :class:`StepQuestion`.

    Attributes:
        steps: Agent steps that may be made: at least ``least``, or 0: ask again.
        must_send: True when others wait for what the worker has in its chunks: send it first.
    """

    steps: int
    must_send: bool = False


class WriteBack(NamedTuple):
    """Outcome of writing refreshed extras: rows changed, and rows that had been evicted
    meanwhile.
    """

    applied: int = 0
    rejected: int = 0

    def plus(self, other: WriteBack) -> WriteBack:
        """Both together."""
        return WriteBack(self.applied + other.applied, self.rejected + other.rejected)

    def to_metrics(self) -> MetricMap:
        """As increments for the hub; nothing when nothing was refreshed."""
        named = {"applied": self.applied, "rejected": self.rejected}
        return (
            {
                f"replay_refreshed_steps_total{{outcome={name}}}": Sum(rows)
                for name, rows in named.items()
            }
            if any(self)
            else {}
        )


class ReplayWriter(Protocol):
    """Where a worker's chunks go."""

    def append(self, chunk: Chunk) -> Callable[[], None] | None:
        """Send the chunk and see it acknowledged, that is stored as durably as the run promises.
        Safe to repeat for the same chunk.

        Returns:
            None when it is acknowledged; or, before that, a function that waits for it. One chunk
            of a stream is sent at a time.
        """


class WeightSource(Protocol):
    """Where acting roles find weights."""

    def version(self) -> PolicyVersion:
        """The newest version; cheap, so it may be asked between any two steps."""

    def fetch(self) -> WeightsSnapshot:
        """The newest weights.

        Raises:
            StateError: If nothing has been published yet.
        """


class WeightSink(Protocol):
    """Where a learner puts weights."""

    def publish(self, snapshot: WeightsSnapshot) -> None:
        """Make a version the newest one.

        Raises:
            StateError: If the version is not above the newest one.
        """
