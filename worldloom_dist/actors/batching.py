"""Gathers requests into batches for one policy, on an event loop.

ask(request) --> pending requests --(full, or all clients wait, or max_wait)-->
one policy call in a thread --> replies
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from worldloom.core.metrics import HistogramBuilder, Last, MetricMap
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom.core.weights import WeightsSnapshot
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.actors.inference import InferenceServer
from worldloom_dist.metrics.names import BUCKETS_S
from worldloom_dist.run.intervals import Interval

__all__ = ["Batcher"]

CLIENT_MEMORY_S = 5.0
IDLE_S = 0.1


@dataclass(frozen=True, eq=False, slots=True)
class _Question:
    request: ActRequest
    answer: asyncio.Future[ActReply]
    arrived_s: float


class Batcher:
    """The queue before one policy; lives on an event loop.

    Args:
        max_batch: Rows of one batch.
        max_wait_s: How long a batch waits for more rows.

    Attributes:
        version: Weights that acted last.
    """

    def __init__(self, max_batch: int, max_wait_s: float) -> None:
        self.version: PolicyVersion = NO_POLICY
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self.seen: dict[int, float] = {}
        self.pending: list[_Question] = []
        self._arrival: asyncio.Future[bool] | None = None
        self.busy_since: float | None = None
        self._free_since = -float("inf")
        self._waits = HistogramBuilder(BUCKETS_S)
        self._is_built = asyncio.Event()

    @property
    def busy_s(self) -> float:
        """Seconds since the batch that is being decided was begun; 0 for none."""
        return 0.0 if self.busy_since is None else time.monotonic() - self.busy_since

    def ask(self, request: ActRequest) -> asyncio.Future[ActReply]:
        """Decide for the rows of one client. A request that comes again while it waits, because its
        sender lost patience, replaces the first.
        """
        future: asyncio.Future[ActReply] = asyncio.get_running_loop().create_future()
        if not request.num_rows:
            future.set_result(ActReply({}, {}, self.version, request.is_first))
            return future
        self.seen[request.slot] = time.monotonic()
        twin = next(
            (question for question in self.pending if _is_same(question.request, request)), None
        )
        if twin is not None:
            self.pending.remove(twin)
            twin.answer.cancel()
        self.pending.append(_Question(request, future, time.monotonic()))
        if self._arrival is not None:
            _resolve(self._arrival, True)
        return future

    async def ask_when_built(self, request: ActRequest) -> ActReply:
        """As :meth:`ask`, once there is a server that has looked for weights: before that it is not
        known whether any act.
        """
        await self._is_built.wait()
        return await self.ask(request)

    def forget(self, slot: int) -> None:
        """A client is gone for good: no one waits for it."""
        self.seen.pop(slot, None)

    async def run_forever(
        self,
        build: Callable[[], InferenceServer],
        look_every_s: float,
        on_round: Callable[[InferenceServer], object],
    ) -> None:
        """Build a server in a thread, and decide there, batch after batch. Newer weights are
        fetched in another one and loaded between two batches: no question waits for the transport.

        Args:
            build: Makes the server.
            look_every_s: How often to look for newer weights.
            on_round: Called after every batch, and while no one asks.
        """
        loop = asyncio.get_running_loop()
        look = Interval(look_every_s)
        looking: asyncio.Future[WeightsSnapshot | None] | None = None
        with ThreadPoolExecutor(1) as thread, _fetching_thread() as fetching:
            server = await loop.run_in_executor(thread, build)
            await loop.run_in_executor(thread, server.refresh)
            self.version = server.version
            self._is_built.set()
            while True:
                batch = await self.next_batch()
                if batch:
                    await self.answer_batch(
                        batch,
                        lambda requests: loop.run_in_executor(thread, server.act_batch, requests),
                    )
                if looking is not None and looking.done():
                    newer = looking.result()
                    looking = None
                    if newer is not None:
                        await loop.run_in_executor(thread, server.load, newer)
                elif looking is None and look.is_due():
                    looking = loop.run_in_executor(fetching, server.look)
                self.version = server.version
                on_round(server)

    def drain_metrics(self) -> MetricMap:
        """What happened since the last call."""
        waits = self._waits.take()
        waiting = Last(float(len(self.pending)))
        room = Last(float(self.clients()))
        values: MetricMap = {
            "queue_items{queue=inference}": waiting,
            "queue_capacity_items{queue=inference}": room,
        }
        return values | ({"inference_queue_seconds": waits} if waits.count else {})

    async def answer_batch(
        self, batch: list[_Question], act: Callable[[list[ActRequest]], Awaitable[list[ActReply]]]
    ) -> None:
        """Decide on a batch and give each question its answer, or the error it meets, which is
        raised too.
        """
        began = self.busy_since = time.monotonic()
        try:
            replies = await act([question.request for question in batch])
        except Exception as error:
            for question in batch:
                if not question.answer.done():
                    question.answer.set_exception(error)
            raise
        was_free_since = self._free_since
        self._free_since = time.monotonic()
        self.busy_since = None
        model_s = self._free_since - began
        for question, reply in zip(batch, replies, strict=True):
            busy_s = max(0.0, was_free_since - question.arrived_s)
            waited_s = began - question.arrived_s - busy_s
            self._waits.add(began - question.arrived_s)
            if not question.answer.done():
                question.answer.set_result(
                    replace(reply, waited_s=waited_s, busy_s=busy_s, model_s=model_s)
                )

    async def next_batch(self) -> list[_Question]:
        """Wait for requests; close the batch when it is full, when every client is in it, or when
        its first one has waited for ``max_wait_s``, be it for others or for the batch before.
        """
        if not await self._wait(IDLE_S):
            return []
        close_at = self.pending[0].arrived_s + self._max_wait_s
        while (
            sum(q.request.num_rows for q in self.pending) < self._max_batch
            and len(self.pending) < self.clients()
        ):
            left = close_at - time.monotonic()
            if left <= 0 or not await self._wait(left, for_more=True):
                break
        batch: list[_Question] = []
        size = 0
        while self.pending and (
            not batch or size + self.pending[0].request.num_rows <= self._max_batch
        ):
            batch.append(self.pending.pop(0))
            size += batch[-1].request.num_rows
        return batch

    def clients(self) -> int:
        """Clients that have asked lately: no one waits for more of them."""
        now = time.monotonic()
        return sum(now - seen < CLIENT_MEMORY_S for seen in self.seen.values())

    async def _wait(self, seconds: float, *, for_more: bool = False) -> bool:
        if self.pending and not for_more:
            return True
        loop = asyncio.get_running_loop()
        arrival: asyncio.Future[bool] = loop.create_future()
        self._arrival = arrival
        timer = loop.call_later(seconds, _resolve, arrival, False)
        try:
            return await arrival
        finally:
            timer.cancel()


@contextlib.contextmanager
def _fetching_thread() -> Iterator[ThreadPoolExecutor]:
    """Whose end is not waited for: it may hang on a transport, and the event loop must not."""
    thread = ThreadPoolExecutor(1)
    try:
        yield thread
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)


def _is_same(one: ActRequest, other: ActRequest) -> bool:
    """The same envs of the same worker ask; a worker has one question open for each env."""
    return one.slot == other.slot and bool(np.intersect1d(one.envs, other.envs).size)
