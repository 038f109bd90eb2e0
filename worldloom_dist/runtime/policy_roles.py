"""Roles that act for others: inference servers, which decide for many workers at once, and the evaluator.

    workers --act--> pending requests --(full, or all clients are waiting, or max_wait)--> one policy call in a thread --> replies

The batch loop of an inference server *is* its lifeline: if it fails, the supervisor sees why and starts another server.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from worldloom.core.metrics import Last, MetricMap
from worldloom.core.sequence import NO_POLICY, PolicyVersion
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.actors.inference import InferenceServer
from worldloom_dist.assembly import Plan, build_evaluator, build_policy
from worldloom_dist.runtime.learner_roles import choose_device
from worldloom_dist.runtime.pace import Pace
from worldloom_dist.runtime.reporting import FLUSH_EVERY_S, Reporter, with_planner
from worldloom_dist.runtime.weight_roles import RemoteWeights

__all__ = ["EvaluatorRole", "InferenceRole"]


class InferenceRole:
    """Batches the requests of its workers.

    Args:
        plan: Of the run.
        index: Which server; it serves the workers whose slot has this remainder.
        incarnation: Which of its lives, so that a successor does not repeat its random draws.
    """

    def __init__(self, plan: Plan, index: int, incarnation: int) -> None:
        self._plan, self._index, self._incarnation = plan, index, incarnation
        servers = plan.config.inference_servers
        self._clients = len(range(index, plan.config.workers, servers))
        self._pending: list[tuple[ActRequest, asyncio.Future[ActReply]]] = []
        self._arrived = asyncio.Event()
        self._version = NO_POLICY

    async def act(self, request: ActRequest) -> ActReply:
        """Decide for the rows of one worker."""
        future: asyncio.Future[ActReply] = asyncio.get_running_loop().create_future()
        self._pending.append((request, future))
        self._arrived.set()
        return await future

    async def version(self) -> PolicyVersion:
        """Weights that act now."""
        return self._version

    async def ping(self) -> dict[str, Any]:
        """Alive."""
        return {"pid": os.getpid(), "version": tuple(self._version)}

    async def lifeline(self) -> None:
        """The batch loop."""
        loop, flush, look = asyncio.get_running_loop(), Pace(FLUSH_EVERY_S), Pace(self._plan.pull_interval_s)
        reporter = Reporter("inference", self._index)
        with ThreadPoolExecutor(1) as thread:
            server = await loop.run_in_executor(thread, self._build)
            while True:
                batch = await self._next_batch()
                if batch:
                    requests = [request for request, _ in batch]
                    replies = await loop.run_in_executor(thread, server.act_batch, requests)
                    for (_, future), reply in zip(batch, replies, strict=True):
                        if not future.done():
                            future.set_result(reply)
                elif look.is_due():
                    await loop.run_in_executor(thread, server.refresh)
                self._version = server.version
                if flush.is_due():
                    reporter.emit({**with_planner(server.drain_metrics(), self._plan.spec.acting), **self._queue()})

    def _queue(self) -> MetricMap:
        waiting, room = Last(float(len(self._pending))), Last(float(self._clients))
        return {"queue_items{queue=inference}": waiting, "queue_capacity_items{queue=inference}": room}

    async def _next_batch(self) -> list[tuple[ActRequest, asyncio.Future[ActReply]]]:
        """Wait for requests; close the batch when it is full, when every client is in it, or after ``max_wait_ms``."""
        actors = self._plan.config.actors
        if not await self._wait(0.1):
            return []
        close_at = time.monotonic() + actors.max_wait_ms / 1000
        while sum(r.num_rows for r, _ in self._pending) < actors.max_batch and len(self._pending) < self._clients:
            left = close_at - time.monotonic()
            if left <= 0 or not await self._wait(left, for_more=True):
                break
        batch: list[tuple[ActRequest, asyncio.Future[ActReply]]] = []
        size = 0
        while self._pending and (not batch or size + self._pending[0][0].num_rows <= actors.max_batch):
            batch.append(self._pending.pop(0))
            size += batch[-1][0].num_rows
        return batch

    async def _wait(self, seconds: float, *, for_more: bool = False) -> bool:
        if self._pending and not for_more:
            return True
        self._arrived.clear()
        try:
            await asyncio.wait_for(self._arrived.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _build(self) -> InferenceServer:
        import torch

        torch.set_num_threads(1)
        device = choose_device(self._plan.config.learner.device)
        policy = build_policy(self._plan, self._index, self._incarnation, device=device)
        return InferenceServer(policy, RemoteWeights(), pull_interval_s=self._plan.pull_interval_s)


class EvaluatorRole:
    """Plays evaluation episodes when asked; builds its policy when it is first needed.

    Args:
        plan: Of the run.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._evaluator: Any = None
        self._gone = threading.Event()

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the newest weights; the result is as in ``summary.json``, with the version beside it."""
        if self._evaluator is None:
            import torch

            torch.set_num_threads(1)
            self._evaluator = build_evaluator(self._plan)
        self._evaluator.load_weights(RemoteWeights(timeout_s=60.0).fetch())
        result = self._evaluator.evaluate()
        return {**result.to_dict(), "version": tuple(result.version)}

    def ping(self) -> dict[str, Any]:
        """Alive."""
        return {"pid": os.getpid()}

    def lifeline(self) -> None:
        """Lasts as long as the process."""
        reporter = Reporter("evaluator")
        while not self._gone.wait(FLUSH_EVERY_S):
            reporter.emit()
