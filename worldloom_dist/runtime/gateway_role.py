"""A gateway as a Ray actor: clients' questions go to an inference server, or to a policy of its
own; their rows to the shards.

Supervised as every role is. A successor listens at the same address; sessions that its predecessor
had are resumed by their clients (see ``worldloom_dist.gateway.gateway``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from worldloom.core.exceptions import ConfigurationError, StateError
from worldloom.core.metrics import MetricMap, merge_into
from worldloom.core.sequence import Chunk
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.actors.batching import Batcher
from worldloom_dist.actors.inference import InferenceServer
from worldloom_dist.gateway.building import access_of, build_gateway
from worldloom_dist.gateway.server import GatewayServer
from worldloom_dist.interfaces import Inference, Shard, inference_client, shard_client
from worldloom_dist.ports import FIRST_GATEWAY_SLOT, EpisodeOverError, FencedError
from worldloom_dist.rpc.async_client import AsyncRpcClient
from worldloom_dist.run.builders import build_policy
from worldloom_dist.run.intervals import Interval
from worldloom_dist.run.plan import Plan
from worldloom_dist.runtime.allocator import freeze_objects, keep_freed_memory
from worldloom_dist.runtime.log_forwarder import LogForwarder
from worldloom_dist.runtime.reporting import FLUSH_EVERY_S, Reporter, with_planner
from worldloom_dist.runtime.weight_roles import RemoteWeights

__all__ = ["GatewayRole", "refusal_of"]

logger = logging.getLogger(__name__)

DRAIN_S = 10.0
PORT_WITHIN_S = 15.0
"""A predecessor that was killed may hold the port for a moment."""
NOT_AGAIN = (FencedError, EpisodeOverError)
"""Refusals of a shard after which the chunk is not to be sent again."""


class GatewayRole:
    """One gateway.

    Args:
        plan: Of the run.
        index: Which gateway; it listens at the run's gateway port plus this.
        incarnation: Of this process; no other of this gateway has had it.
        key: Signs the secrets of sessions.
    """

    def __init__(self, plan: Plan, index: int, incarnation: int, key: bytes) -> None:
        keep_freed_memory()
        self._plan = plan
        self._index = index
        self._incarnation = incarnation
        self._key = key
        self._log_forwarder = LogForwarder().listen()
        self._reporter = Reporter("gateway", index)
        self._stopping = asyncio.Event()
        actors = plan.config.actors
        self.batcher = Batcher(actors.max_batch, actors.max_wait_ms / 1000)
        self._inference: InferenceServer | None = None
        self._server: GatewayServer | None = None
        self._shards = [
            AsyncRpcClient(shard_client(shard), Shard.append)
            for shard in range(plan.config.replay.shards)
        ]

    async def run_forever(self) -> dict[str, Any]:
        """Serve until told to stop; what clients sent has been stored then."""
        is_central = self._plan.inference == "central"
        ask = self._ask_central() if is_central else self.batcher.ask_when_built
        server = self._server = self._build(ask)
        tasks = [asyncio.ensure_future(work) for work in self._work(server)]
        try:
            await _listen(server, self._plan, self._index)
            server.health.set(is_serving=True)
            stopped = asyncio.ensure_future(self._stopping.wait())
            done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            left = await server.stop(DRAIN_S)
        finally:
            for task in tasks:
                task.cancel()
        self._emit(server)
        return {"open_rows": left, **server.gateway.meter.totals}

    async def ping(self) -> dict[str, Any]:
        """Alive; ``stuck`` says that a batch of its own policy is past its deadline."""
        busy = self.batcher.busy_s
        is_stuck = busy > self._plan.config.actors.act_timeout_s
        gateway = self._server.gateway if self._server is not None else None
        return {
            "pid": os.getpid(),
            "stuck": f"its policy did not return from a batch for {busy:.0f} s" if is_stuck else "",
            "counts": gateway.meter.totals if gateway is not None else {},
            "said": self._log_forwarder.drain(),
        }

    async def stop(self) -> None:
        """Ask to end."""
        self._stopping.set()

    def _build(self, ask: Callable[[ActRequest], Awaitable[ActReply]]) -> GatewayServer:
        gateway = build_gateway(
            self._plan,
            ask,
            index=self._index,
            incarnation=self._incarnation,
            key=self._key,
            append=self._append,
            fence=self._fence,
            forget=self._forget,
        )
        return GatewayServer(gateway, access_of(self._plan.config.gateway))

    def _work(self, server: GatewayServer) -> list[Any]:
        work: list[Any] = [server.gateway.tend_for_ever(), self._report_for_ever(server)]
        if self._plan.inference != "central":
            every_s = self._plan.pull_interval_s
            work.append(self.batcher.run_forever(self._build_policy, every_s, self._note_policy))
        return work

    def _ask_central(self) -> Callable[[ActRequest], Awaitable[ActReply]]:
        servers = self._plan.config.inference_servers
        clients = [AsyncRpcClient(inference_client(n), Inference.act) for n in range(servers)]

        async def ask(request: ActRequest) -> ActReply:
            """Of one session always the same server, which has its carries."""
            return await clients[request.slot % servers].call(request)

        return ask

    def _build_policy(self) -> InferenceServer:
        import torch

        torch.set_num_threads(1)
        index = FIRST_GATEWAY_SLOT + self._index
        policy = build_policy(self._plan, index, self._incarnation)
        server = InferenceServer(policy, RemoteWeights())
        freeze_objects()
        return server

    def _note_policy(self, server: InferenceServer) -> None:
        self._inference = server

    def _forget(self, slot: int) -> None:
        """A slot is used again under another incarnation, and its carries are forgotten then."""
        self.batcher.forget(slot)

    async def _append(self, chunk: Chunk) -> bool:
        line = self._shards[chunk.stream.slot % len(self._shards)]
        try:
            is_new: bool = await line.call(chunk)
        except StateError as error:
            raise refusal_of(error) from None
        return is_new

    async def _fence(self, slot: int, incarnation: int) -> Mapping[int, int]:
        shard = shard_client(slot % len(self._shards))
        return await shard.acall(Shard.fence, slot, incarnation)

    async def _report_for_ever(self, server: GatewayServer) -> None:
        flush = Interval(FLUSH_EVERY_S)
        while True:
            await asyncio.sleep(FLUSH_EVERY_S / 4)
            if flush.is_due():
                self._emit(server)

    def _emit(self, server: GatewayServer) -> None:
        values: MetricMap
        values, facts = server.gateway.drain_metrics()
        if self._inference is not None:
            own = with_planner(self._inference.drain_metrics(), self._plan.spec.acting)
            merge_into(values, own)
            merge_into(values, self.batcher.drain_metrics())
        self._reporter.emit(values, facts)


def refusal_of(error: StateError) -> StateError:
    """What a shard said no with, before it went over a line or through Ray."""
    cause = getattr(error, "cause", None)  # of a call over Ray, whose own text is a traceback
    if isinstance(cause, NOT_AGAIN):
        return cause
    name, _, why = str(error).partition(": ")
    kinds = [kind for kind in NOT_AGAIN if name == kind.__name__]
    return kinds[0](why) if kinds else error


async def _listen(server: GatewayServer, plan: Plan, index: int) -> None:
    """Open the port, once the process that had it before is gone."""
    assert plan.config.gateway_port is not None
    give_up = time.monotonic() + PORT_WITHIN_S
    while True:
        try:
            await server.start(plan.config.gateway_port + index)
            return
        except ConfigurationError as error:
            if time.monotonic() > give_up:
                raise
            logger.info("%s; trying again", error)
            await asyncio.sleep(0.2)
