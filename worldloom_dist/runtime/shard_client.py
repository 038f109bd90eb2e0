"""The two that call shards: a worker that stores chunks, and a learner that asks for windows.

Chunks go over a line, and so do windows while they are small; large ones come through Ray's shared
memory. A call over Ray costs both sides about a millisecond, which is what a batch of compressed
frames or of vectors takes to draw and to decode; a line costs a tenth of that
(``docs/adr/007-calls-over-a-socket.md``). Megabytes of raw pixels or latents are cheaper where both
sides see the same memory. What the last answer took decides the way of the next question.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import Chunk
from worldloom.data.windows import EncodedWindows
from worldloom_dist.interfaces import Coordinator, Shard, coordinator_client, shard_client
from worldloom_dist.ports import SampleRequest
from worldloom_dist.rpc.actor_client import GONE, ActorClient, RoleGoneError, submit
from worldloom_dist.rpc.connection import LOOK_EVERY_S, RpcClient
from worldloom_dist.run.plan import Plan
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.weight_roles import RemoteWeights

__all__ = ["ShardClient", "ShardWriter", "ask_all"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

LARGE_BYTES = 2 * 2**20


class ShardWriter:
    """``ports.ReplayWriter`` over a line: the shard of a worker is fixed, so a stream's order never
    crosses shards.

    Sends at once; what :meth:`append` returns waits as long as the shard lives, and when it dies,
    finds its successor and sends the same chunk again, which is ignored if it had been stored. In
    lock-step ``append`` itself waits, also for the version that the new rows make due. Used by one
    thread, for all streams of the worker.

    Args:
        plan: Of the run.
        slot: The worker's slot.
        stopping: Ends the waiting when the worker is told to stop and its shard stays away.

    Attributes:
        is_waiting, waited_until: Whether the thread that uses it waits here now, and when it last
            did (monotonic seconds).
    """

    def __init__(self, plan: Plan, slot: int, stopping: threading.Event) -> None:
        self._shard = shard_client(slot % plan.config.replay.shards)
        self._client = RpcClient(self._shard, Shard.append, None, DEADLINES.append_patience_s)
        self._coordinator = coordinator_client()
        self._weights = RemoteWeights()
        self._is_lockstep = plan.is_lockstep
        self._stopping = stopping
        self._pretrain = plan.spec.pretrain_updates
        self.is_waiting = False
        self.waited_until = 0.0

    def append(self, chunk: Chunk) -> Callable[[], None] | None:
        """Send a chunk (see ``ports.ReplayWriter``).

        Raises:
            StateError: When waiting, if the run is stopped while the shard stays away; the chunk
                counts as open.
        """
        with self._waiting():
            wait = partial(self._wait, chunk, self._submit(chunk))
            if not self._is_lockstep:
                return wait
            wait()
            self._wait_for_version()
            return None

    def close(self) -> None:
        """Close the connection; what was not acknowledged is lost."""
        self._client.close()

    def _submit(self, chunk: Chunk) -> Callable[[], Any] | None:
        return self._unless_away(chunk, partial(self._client.submit, chunk))

    def _wait(self, chunk: Chunk, answer: Callable[[], Any] | None) -> None:
        with self._waiting():
            while answer is None or self._unless_away(chunk, answer) is None:
                if self._stopping.is_set():
                    raise StateError(
                        f"{self._shard.name} is away while the run stops; chunk "
                        f"{chunk.stream}/{chunk.seq} is lost"
                    )
                time.sleep(0.2)
                answer = self._submit(chunk)

    def _unless_away(self, chunk: Chunk, call: Callable[[], T]) -> T | None:
        """What a call gives, which is never None (a shard answers with a bool); None when the shard
        is away.
        """
        try:
            return call()
        except RoleGoneError as error:
            logger.warning("%s; chunk %s/%d is sent again", error, chunk.stream, chunk.seq)
            return None

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        was_waiting = self.is_waiting
        self.is_waiting = True
        try:
            yield
        finally:
            self.is_waiting = was_waiting
            self.waited_until = time.monotonic()

    def _wait_for_version(self) -> None:
        due = self._coordinator.call(Coordinator.updates_due)
        while due > 0 and self._weights.version().update < due and not self._stopping.is_set():
            time.sleep(0.002)


class ShardClient:
    """One shard, for one thread. Does not wait for the successor of a shard that is gone.

    Args:
        shard: Whose method ``sample`` takes a list of requests, also from a line.
        is_away: Asked once a second while no answer comes: True when the shard counts as gone.

    Attributes:
        answered_bytes: Size of the last windows that were given.
    """

    def __init__(
        self, shard: ActorClient[Shard], is_away: Callable[[], bool] = lambda: False
    ) -> None:
        self.shard = shard
        self._is_away = is_away
        self._client = RpcClient(shard, Shard.sample, DEADLINES.sample_s, 0.0, is_away=is_away)
        self.answered_bytes = 0

    def submit(self, requests: Sequence[SampleRequest]) -> Callable[[], EncodedWindows | None]:
        """Ask; the result waits for the windows of all requests, one after the other, or None when
        the shard has too little.

        Raises:
            RoleGoneError: Then or when waiting, if the shard is gone or does not answer.
        """
        asked = list(requests)
        if self.answered_bytes <= LARGE_BYTES:
            return partial(self._keep_size, self._client.submit(asked))
        try:
            reference = submit(self.shard.handle, Shard.sample, asked)
            return partial(self._keep_size, partial(self._get, reference))
        except ValueError as error:
            raise RoleGoneError(f"{self.shard.name} is gone") from error

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _keep_size(self, wait: Callable[[], EncodedWindows | None]) -> EncodedWindows | None:
        given = wait()
        if given is not None:
            self.answered_bytes = given.nbytes
        return given

    def _get(self, reference: Any) -> EncodedWindows | None:
        give_up = time.monotonic() + DEADLINES.sample_s
        while True:
            try:
                given: EncodedWindows | None = ray.get(reference, timeout=LOOK_EVERY_S)
            except GONE as error:
                if (
                    isinstance(error, GetTimeoutError)
                    and time.monotonic() < give_up
                    and not self._is_away()
                ):
                    continue
                self.shard.forget()
                raise RoleGoneError(
                    f"{self.shard.name} is gone ({type(error).__name__})"
                ) from error
            return given


def ask_all(
    readers: Sequence[ShardClient],
    permits: Sequence[Mapping[int, SampleRequest]],
    on_gone: Callable[[int], None],
) -> Callable[[], list[dict[int, EncodedWindows]]]:
    """Ask all shards at once, each one question for its share of every batch.

    Args:
        readers: Of every shard.
        permits: Per batch what each shard is asked for.
        on_gone: Called, while the result waits, with every shard that does not answer.

    Returns:
        Waits for what every shard gave for each batch; a shard that is gone or has too little is
        missing there.
    """
    asked = {
        index: [permit[index] for permit in permits if index in permit]
        for index in sorted(set().union(*permits))
    }
    pending = {index: _submit(readers[index], requests) for index, requests in asked.items()}

    def wait() -> list[dict[int, EncodedWindows]]:
        """Collect, and deal every shard's windows out to the batches."""
        found: list[dict[int, EncodedWindows]] = [{} for _ in permits]
        for index, receive in pending.items():
            try:
                given = receive()
            except RoleGoneError:
                on_gone(index)
                continue
            first = 0
            for batch, permit in zip(found, permits, strict=True):
                if given is not None and index in permit:
                    batch[index] = given.part(first, first := first + permit[index].windows)
        return found

    return wait


def _submit(
    reader: ShardClient, requests: list[SampleRequest]
) -> Callable[[], EncodedWindows | None]:
    """As :meth:`ShardClient.submit`, with every error where the result is waited for."""
    try:
        return reader.submit(requests)
    except RoleGoneError as error:
        return partial(_fail, error)


def _fail(error: RoleGoneError) -> None:
    raise error
