"""What the roles of a run on Ray call each other for: one Protocol per role.

A role's class has every method of its Protocol with exactly this signature (a test compares them),
and what no other process calls is not here. Callers name the method by its Protocol
(``client.call(Coordinator.updates_due)``, see ``worldloom_dist.rpc.actor_client``), so a type
checker sees a wrong name or argument.

    WorkerRole     --append--> ShardRole --admit, report--> CoordinatorRole
    WorkerRole     --permit_steps--> CoordinatorRole
    WorkerRole     --act-----> InferenceRole
    LearnerRole    --admit_samples, split--> CoordinatorRole        (its prefetcher)
    LearnerRole    --sample, write_back, update_priorities--> ShardRole
    LearnerRole    --publish--> WeightStoreRole <--version, fetch-- the acting roles
    EvaluatorRole  --counts---> CoordinatorRole
    GatewayRole    --act-----> InferenceRole;  --append, fence--> ShardRole
    every role     --emit-----> HubRole
    the driver     --ping, stop, drain, finalize, evaluate, ...--> every role

Methods that are ``async`` here run on the event loop of their role, the others in its threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from worldloom.core.metrics import MetricMap
from worldloom.core.sequence import Chunk, PolicyVersion
from worldloom.core.weights import WeightsSnapshot
from worldloom.data.windows import EncodedWindows
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.ports import (
    MirrorPlace,
    RowCounters,
    SampleRequest,
    StepPermit,
    StepQuestion,
)
from worldloom_dist.rpc.actor_client import ActorClient
from worldloom_dist.rpc.connection import Listening

__all__ = [
    "Coordinator",
    "Evaluator",
    "Gateway",
    "Hub",
    "Inference",
    "InsertQuestion",
    "Learner",
    "Process",
    "Shard",
    "Stoppable",
    "WeightStore",
    "Worker",
    "coordinator_client",
    "hub_client",
    "inference_client",
    "learner_client",
    "shard_client",
    "weight_store_client",
]


class Process(Protocol):
    """What the supervisor asks of every role, be it with or without ``async``."""

    def ping(self) -> dict[str, Any]:
        """Alive: ``pid``, what was logged as a warning (``said``), why it needs another process
        (``stuck``), and what else the driver shows.
        """


class Stoppable(Protocol):
    """A role that ends by itself when it is asked to."""

    def stop(self) -> None:
        """Ask to end; what ``run`` returns is its last status."""


class InsertQuestion(NamedTuple):
    """A shard asks which of its waiting chunks may be stored.

    Attributes:
        shard: Who asks.
        session_id: Which process of the shard.
        number: Of the question, from 1; one that is asked again, because no answer came, is
            permitted once.
        chunks: Agent steps of every chunk that waits, oldest first.
        makers: Slot and incarnation of the workers that made them, whose steps were permitted
            before; empty where the steps of all of them are asked for here.
    """

    shard: int
    session_id: str
    number: int
    chunks: Sequence[int]
    makers: Sequence[tuple[int, int]] = ()


class Coordinator(Listening, Protocol):
    """Admits inserts and samples over all shards."""

    async def join(
        self,
        shard: int,
        counters: RowCounters,
        live_windows: int,
        session_id: str | None = None,
        file_windows: int = 0,
    ) -> None:
        """A shard started (with a session, if it is a new one); its counters replace what was
        counted for it.
        """

    async def last_counters(self, shard: int) -> RowCounters | None:
        """What a shard reported last, or its predecessor: what it must have, or declare lost."""

    async def report(
        self, shard: int, counters: RowCounters, live_windows: int, file_windows: int = 0
    ) -> None:
        """A shard's regular report."""

    async def admit(self, question: InsertQuestion) -> int:
        """Return how many of the chunks, from the first, may be stored; waits until that is one.
        0 when a successor of the shard has shown up.
        """

    async def permit_steps(self, question: StepQuestion) -> StepPermit:
        """Say how many agent steps a worker may make next; waits a moment until there are some."""

    async def worker_down(self, slot: int, incarnation: int) -> None:
        """A worker has ended: what it had in hand will not come."""

    async def stored(self, shard: int) -> None:
        """A chunk that was admitted is stored, or never will be."""

    async def give_back(
        self, shard: int, agent_steps: int, maker: tuple[int, int] | None = None
    ) -> None:
        """Steps that were admitted and not inserted."""

    async def shard_down(self, shard: int) -> None:
        """A shard died: sample from the others until it reports again."""

    async def is_live(self, shard: int) -> bool:
        """False while a shard is not sampled from, because it is dead or silent."""

    async def admit_samples(
        self,
        asker: str,
        session_id: str,
        windows: int,
        seeds: Sequence[tuple[int, ...]],
        began_at: int | None = None,
        taken: int = 0,
    ) -> list[dict[int, SampleRequest]] | None:
        """Return requests per shard for the first batch, when it may be sampled, and for later ones
        that may be sampled then too. None when a successor of the asker has shown up.

        Args:
            asker, session_id: Which learner rank, and which process of it.
            windows: Of a batch.
            seeds: One for each batch that is wanted.
            began_at: Trained positions with which the learner began.
            taken: Positions that this rank was permitted since then.
        """

    async def dismiss(self, asker: str, session_id: str) -> None:
        """A learner rank ends: what this session of it waits for is void."""

    async def split(self, windows: int, seed: tuple[int, ...]) -> dict[int, SampleRequest]:
        """Requests for windows of an admitted batch that a shard could not give."""

    async def rebase_positions(
        self, positions: int, trained: int | None = None, incarnation: int | None = None
    ) -> None:
        """A learner begins with this number of trained positions; what its predecessor did beyond
        them is counted as lost, and owed.

        Args:
            positions: Of its state.
            trained: Those of its predecessor in the end, where they are known; else what was
                permitted to it counts as trained.
            incarnation: Of the learner; what it says again changes nothing.
        """

    async def updates_due(self) -> int:
        """Updates that should have been made by now (lock-step)."""

    async def counts(self) -> dict[str, Any]:
        """Counters for the driver and for checkpoints; plain values."""

    async def drain(self) -> None:
        """The run ends: let through what workers still hold."""

    async def ping(self) -> dict[str, Any]:
        """See :class:`Process`."""

    async def run_forever(self) -> None:
        """Lasts as long as the process."""


class Shard(Listening, Protocol):
    """Holds rows, and draws windows from them."""

    async def append(self, chunk: Chunk) -> bool:
        """Acknowledge a chunk once it is admitted and stored; False when it had been stored
        before.
        """

    async def sample(self, requests: Sequence[SampleRequest]) -> EncodedWindows | None:
        """The windows of all requests, for the reader to decode; None if there is too little to
        draw from.
        """

    async def write_back(self, row_ids: np.ndarray, refreshed: Mapping[str, np.ndarray]) -> None:
        """Refresh extras of rows that are still there."""

    async def update_priorities(self, start_ids: np.ndarray, priorities: np.ndarray) -> None:
        """New priorities of windows that are still there."""

    async def fence(self, slot: int, incarnation: int) -> dict[int, int]:
        """Let no one write the streams of a gateway's session any more, not even what waits for a
        permit now; per env whose rows are known, the client's step after the newest one.
        """

    async def finalize(self) -> RowCounters:
        """The run ends: store what is being stored, refuse what comes later, and return the final
        counters.
        """

    async def ping(self) -> dict[str, Any]:
        """See :class:`Process`."""

    async def run_forever(self) -> None:
        """Lasts as long as the process."""


class Learner(Stoppable, Protocol):
    """Trains; one of the ranks."""

    def run(self) -> dict[str, Any]:
        """Build or restore the agent, train, publish, checkpoint; returns the last status."""

    def stand_by(self) -> dict[str, Any]:
        """Build everything and wait behind another learner, until it is to take over."""

    def follow(self, place: MirrorPlace) -> None:
        """Follow the state that a learner of this machine keeps in shared memory."""

    def take_over(self, incarnation: int) -> None:
        """Be the learner of this incarnation, from the state that was followed: :meth:`run` is
        called next, and the former learner's process has ended.
        """

    def rendezvous(self, incarnation: int) -> tuple[str, int] | None:
        """Where rank 0 waits for the other ranks of this incarnation; None when it does not yet."""

    def note_score(self, score: float) -> None:
        """Take the result of an evaluation: a checkpoint of about now is kept as ``best`` if no
        better one is there.
        """

    def ping(self) -> dict[str, Any]:
        """See :class:`Process`."""


class WeightStore(Protocol):
    """Holds the newest weights."""

    async def publish(self, snapshot: WeightsSnapshot) -> bool:
        """Take a version; False when it is not above the newest one."""

    async def version(self) -> PolicyVersion:
        """The newest version."""

    async def fetch(self) -> list[Any]:
        """A list with the newest reference (so that Ray does not copy it on the way), or an empty
        one.
        """

    async def ping(self) -> dict[str, Any]:
        """See :class:`Process`."""

    async def run_forever(self) -> None:
        """Lasts as long as the process."""


class Inference(Listening, Protocol):
    """Decides for many workers at once."""

    async def act(self, request: ActRequest) -> ActReply:
        """Decide for the rows of one worker. A request that comes again, because its sender lost
        patience, replaces the first.
        """

    async def ping(self) -> dict[str, Any]:
        """See :class:`Process`."""

    async def run_forever(self) -> None:
        """The batch loop."""


class Gateway(Protocol):
    """Lets programs outside of the run act with its policy and feed its replay."""

    async def stop(self) -> None:
        """Ask to end; what clients have sent is stored first."""

    async def ping(self) -> dict[str, Any]:
        """See :class:`Process`."""

    async def run_forever(self) -> dict[str, Any]:
        """Serve until told to stop; returns what was counted."""


class Evaluator(Protocol):
    """Plays evaluation episodes."""

    def evaluate(self, env_steps: int, is_last: bool = False) -> dict[str, Any]:
        """Evaluate the newest weights; the result is as in ``summary.json``, with the version
        beside it.
        """

    def check_model(self) -> dict[str, Any]:
        """What the newest checkpoint's model says of the episodes of the last evaluation."""

    def ping(self) -> dict[str, Any]:
        """See :class:`Process`."""

    def run_forever(self) -> None:
        """Lasts as long as the process."""


class Hub(Protocol):
    """Merges the metrics of all roles."""

    def emit(
        self, role: str, index: int, values: MetricMap, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Merge one flush."""

    def snapshot(self) -> dict[str, float]:
        """Every value now."""

    def flush(self) -> None:
        """Export over OTLP what is known now, where the run does so."""

    def ping(self) -> dict[str, Any]:
        """See :class:`Process`."""

    def run_forever(self) -> None:
        """Lasts as long as the process."""


class Worker(Stoppable, Protocol):
    """Steps envs."""

    def run(self) -> dict[str, Any]:
        """Step until told to stop; what is open has been sent then."""

    def ping(self) -> dict[str, Any]:
        """See :class:`Process`."""


def coordinator_client() -> ActorClient[Coordinator]:
    """The coordinator of the run."""
    return ActorClient("coordinator-0")


def shard_client(index: int) -> ActorClient[Shard]:
    """One of the shards."""
    return ActorClient(f"shard-{index}")


def learner_client(rank: int) -> ActorClient[Learner]:
    """One of the learner ranks."""
    return ActorClient(f"learner-{rank}")


def weight_store_client() -> ActorClient[WeightStore]:
    """The weight store of the run."""
    return ActorClient("weights-0")


def inference_client(index: int) -> ActorClient[Inference]:
    """One of the inference servers."""
    return ActorClient(f"inference-{index}")


def hub_client() -> ActorClient[Hub]:
    """The metrics hub of the run."""
    return ActorClient("hub-0")
