"""Asking shards for windows: over a line while answers are small, through Ray's shared memory when
they are large.

A call over Ray costs both sides about a millisecond, which is what a batch of compressed frames or
of vectors takes to draw and to decode; a line costs a tenth of that
(``docs/adr/007-calls-over-a-socket.md``). Megabytes of raw pixels or latents are cheaper where both
sides see the same memory. What the last answer took decides the way of the next question.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from worldloom_dist.interfaces import Shard
from worldloom_dist.ports import SampledWindows, SampleRequest
from worldloom_dist.replay.packed_windows import PackedWindows
from worldloom_dist.rpc.actor_client import GONE, ActorClient, RoleGoneError, submit
from worldloom_dist.rpc.connection import LOOK_EVERY_S, RpcClient
from worldloom_dist.runtime.deadlines import DEADLINES

__all__ = ["Given", "ShardClient", "ask_all"]

Given = SampledWindows | PackedWindows
LARGE_BYTES = 2 * 2**20


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
        self._line = RpcClient(shard, Shard.sample, DEADLINES.sample_s, 0.0, is_away=is_away)
        self.answered_bytes = 0

    def submit(self, requests: Sequence[SampleRequest]) -> Callable[[], Given | None]:
        """Ask; the result waits for the windows of all requests, one after the other, or None when
        the shard has too little.

        Raises:
            RoleGoneError: Then or when waiting, if the shard is gone or does not answer.
        """
        asked = list(requests)
        if self.answered_bytes <= LARGE_BYTES:
            return partial(self._keep_size, self._line.submit(asked))
        try:
            reference = submit(self.shard.handle, Shard.sample, asked)
            return partial(self._keep_size, partial(self._get, reference))
        except ValueError as error:
            raise RoleGoneError(f"{self.shard.name} is gone") from error

    def close(self) -> None:
        """Hang up."""
        self._line.close()

    def _keep_size(self, wait: Callable[[], Given | None]) -> Given | None:
        given = wait()
        if given is not None:
            self.answered_bytes = given.nbytes
        return given

    def _get(self, reference: Any) -> Given | None:
        give_up = time.monotonic() + DEADLINES.sample_s
        while True:
            try:
                given: Given | None = ray.get(reference, timeout=LOOK_EVERY_S)
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
) -> Callable[[], list[dict[int, Given]]]:
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

    def wait() -> list[dict[int, Given]]:
        """Collect, and deal every shard's windows out to the batches."""
        found: list[dict[int, Given]] = [{} for _ in permits]
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


def _submit(reader: ShardClient, requests: list[SampleRequest]) -> Callable[[], Given | None]:
    """As :meth:`ShardClient.submit`, with every error where the result is waited for."""
    try:
        return reader.submit(requests)
    except RoleGoneError as error:
        return partial(_fail, error)


def _fail(error: RoleGoneError) -> None:
    raise error
