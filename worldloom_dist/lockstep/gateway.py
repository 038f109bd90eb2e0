"""The gateway of a lock-step run: it listens in a thread of its own, and everything that touches
policy or replay is done by the run's thread, between two updates.

    clients ==gRPC==> gateway thread --questions, chunks--> run's thread --answers--> clients

When a client's rows come depends on time, so such a run is not the same twice. Rows are stored once
in every round, so a client waits for the updates that its rows make due, as an env worker does.
"""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from worldloom.core.exceptions import StateError, WorldLoomError
from worldloom.core.keys import load_key
from worldloom.core.metrics import MetricMap, merge_into
from worldloom.core.sequence import Chunk
from worldloom_dist.actors.inference import InferenceServer
from worldloom_dist.gateway.building import KEY_FILE, access_of, build_gateway
from worldloom_dist.gateway.gateway import Gateway
from worldloom_dist.gateway.server import GatewayServer
from worldloom_dist.gateway.thread import GatewayThread
from worldloom_dist.ports import WeightSource
from worldloom_dist.replay.direct import DirectReplay
from worldloom_dist.replay.identity import known_incarnations
from worldloom_dist.run.builders import build_policy
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.plan import Plan

__all__ = ["LocalGateway"]

logger = logging.getLogger(__name__)

DRAIN_LOCKSTEP_S = 5.0
POLICY_INDEX = 1_000_000
"""Of its policy's random state, apart from all workers'."""


class _Waiting(NamedTuple):
    content: Any
    answer: asyncio.Future[Any]


class LocalGateway:
    """The gateway of a run in one process; used by the run's thread.

    Args:
        plan: Of the run.
        folder: Of the run.
        weights: What acts.
        replay: Where rows go.

    Raises:
        ConfigurationError: If it cannot listen.
    """

    def __init__(
        self, plan: Plan, folder: RunFolder, weights: WeightSource, replay: DirectReplay
    ) -> None:
        self._replay = replay
        self._questions: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        self._chunks: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        known = known_incarnations(folder.replay)
        folder.count_on_from({"gateway": known.gateway})
        incarnation = folder.next_incarnation("gateway")
        policy = build_policy(plan, POLICY_INDEX, incarnation)
        self._server = InferenceServer(policy, weights)
        self._thread = self._start(plan, folder.path, incarnation)

    def _start(self, plan: Plan, folder: Path, incarnation: int) -> GatewayThread:
        assert plan.config.gateway_port is not None

        def make() -> GatewayServer:
            """On the gateway's own loop."""
            gateway = build_gateway(
                plan,
                lambda request: _wait(self._questions, request),
                incarnation=incarnation,
                key=load_key(folder / KEY_FILE),
                append=lambda chunk: _wait(self._chunks, chunk),
                fence=lambda *name: _wait(self._chunks, name),
            )
            return GatewayServer(gateway, access_of(plan.config.gateway))

        return GatewayThread(make, plan.config.gateway_port)

    @property
    def counts(self) -> dict[str, int]:
        """For the summary."""
        counts: dict[str, int] = self._thread.server.gateway.meter.totals
        return counts

    def answer(self, wait_s: float = 0.0) -> bool:
        """Decide for the clients that ask; waits a little for a question if told to.

        Returns:
            True if there was one.
        """
        waiting = _take(self._questions, wait_s)
        if not waiting:
            return False
        self._server.refresh()
        try:
            replies = self._server.act_batch([question.content for question in waiting])
        except WorldLoomError as error:
            self._fail(waiting, error)
            return True
        for question, reply in zip(waiting, replies, strict=True):
            self._resolve(question, reply)
        return True

    def store(self) -> None:
        """Store the chunks that have come, and fence the streams of sessions that went on."""
        for waiting in _take(self._chunks):
            try:
                self._resolve(waiting, self._do(waiting.content))
            except StateError as error:
                self._fail([waiting], error)
            except Exception as error:  # this client's alone, which sends it again
                if not isinstance(error, WorldLoomError | OSError):
                    logger.exception("a client's rows could not be stored")
                self._fail([waiting], StateError(str(error)))

    def drain_metrics(self) -> tuple[MetricMap, Mapping[str, Any]]:
        """Metrics and facts since the last call."""

        async def drain() -> tuple[MetricMap, dict[str, Any]]:
            """On the loop, where they are counted."""
            gateway: Gateway = self._thread.server.gateway
            return gateway.drain_metrics()

        values, facts = self._thread.call(drain())
        merge_into(values, self._server.drain_metrics())
        return values, facts

    def close(self) -> int:
        """End the sessions and store their rows; returns the rows that could not be stored."""

        def meanwhile() -> None:
            """What the thread waits for."""
            self.answer()
            self.store()

        return self._thread.stop(DRAIN_LOCKSTEP_S, meanwhile)

    def _do(self, content: Chunk | tuple[int, int]) -> Any:
        slot = content.stream.slot if isinstance(content, Chunk) else content[0]
        shard = self._replay.shards[slot % len(self._replay.shards)]
        if not isinstance(content, Chunk):
            return shard.fence(*content)
        is_new = shard.is_new(content)
        self._replay.append(content)
        return is_new

    def _resolve(self, waiting: _Waiting, result: Any) -> None:
        self._thread.loop.call_soon_threadsafe(_set, waiting.answer.set_result, waiting, result)

    def _fail(self, waiting: list[_Waiting], error: Exception) -> None:
        for one in waiting:
            self._thread.loop.call_soon_threadsafe(_set, one.answer.set_exception, one, error)


async def _wait(line: queue.SimpleQueue[_Waiting], content: Any) -> Any:
    """Hand over to the run's thread, and wait for what it makes of it."""
    answer = asyncio.get_running_loop().create_future()
    line.put(_Waiting(content, answer))
    return await answer


def _set(how: Callable[[Any], object], waiting: _Waiting, result: Any) -> None:
    if not waiting.answer.done():
        how(result)


def _take(line: queue.SimpleQueue[_Waiting], wait_s: float = 0.0) -> list[_Waiting]:
    found = []
    try:
        found.append(line.get(wait_s > 0, wait_s))
        while True:
            found.append(line.get_nowait())
    except queue.Empty:
        return found
