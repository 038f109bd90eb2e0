"""The env worker as a Ray actor. Torch is imported only when the policy lives here.

``run`` is the lifeline and the only thread that touches the worker. ``ping`` reads, from another thread, what that thread is doing
and since when, so the supervisor can tell a hanging env from a worker that waits for its turn.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from worldloom.core.exceptions import StateError
from worldloom.core.sequence import Chunk
from worldloom_dist.actors.acting import ActClient, ActReply, ActRequest, LocalActing, RemoteActing
from worldloom_dist.actors.rollout_worker import RolloutWorker
from worldloom_dist.assembly import Plan, build_policy, build_worker
from worldloom_dist.runtime.remote import GONE, Remote
from worldloom_dist.runtime.reporting import Reporter, flush_interval_s, with_planner
from worldloom_dist.runtime.weight_roles import RemoteWeights

__all__ = ["ShardWriter", "WorkerRole"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0


class ShardWriter:
    """``ports.ReplayWriter`` over Ray: the shard of a worker is fixed, so a stream's order never crosses shards.

    Waits as long as the shard lives; when it dies, finds its successor and sends the same chunk again, which is ignored if it had
    been stored. In lock-step it also waits for the version that the new rows make due.

    Args:
        plan: Of the run.
        slot: The worker's slot.
        stopping: Ends the waiting when the worker is told to stop and its shard stays away.
    """

    def __init__(self, plan: Plan, slot: int, stopping: threading.Event) -> None:
        self._shard = Remote(f"shard-{slot % plan.config.replay.shards}")
        self._ledger, self._weights = Remote("ledger-0"), RemoteWeights()
        self._is_lockstep, self._stopping = plan.is_lockstep, stopping
        self._pretrain = plan.spec.pretrain_updates
        self.is_waiting, self.waited_until = False, 0.0

    def append(self, chunk: Chunk) -> None:
        """Return when the chunk is acknowledged.

        Raises:
            StateError: If the run is stopped while the shard stays away; the chunk counts as open.
        """
        self.is_waiting = True
        try:
            while not self._try(chunk):
                if self._stopping.is_set():
                    raise StateError(f"{self._shard.name} is away while the run stops; chunk {chunk.stream}/{chunk.seq} is lost")
                self._shard.forget()
                time.sleep(0.2)
            if self._is_lockstep:
                self._wait_for_version()
        finally:
            self.is_waiting, self.waited_until = False, time.monotonic()

    def _try(self, chunk: Chunk) -> bool:
        try:
            reference = self._shard.handle.append.remote(chunk)
            while True:
                ready, _ = ray.wait([reference], timeout=LOOK_EVERY_S)
                if ready:
                    ray.get(reference)
                    return True
        except GONE as error:
            logger.warning(
                "%s went away (%s); chunk %s/%d is sent again", self._shard.name, type(error).__name__, chunk.stream, chunk.seq
            )
        except ValueError as error:  # no actor of that name yet
            if "Failed to look up actor" not in str(error):
                raise
        return False

    def _wait_for_version(self) -> None:
        due = self._ledger.call("updates_due")
        while due > 0 and self._weights.version().update < due and not self._stopping.is_set():
            time.sleep(0.002)


class WorkerRole:
    """Steps envs until told to stop.

    Args:
        plan: Of the run.
        slot: Which worker.
        incarnation: Which of its lives.
    """

    def __init__(self, plan: Plan, slot: int, incarnation: int) -> None:
        self._plan, self._slot, self._incarnation = plan, slot, incarnation
        self._stopping = threading.Event()
        self._writer = ShardWriter(plan, slot, self._stopping)
        self._reporter = Reporter("actor", slot)
        self._doing, self._since = "starting", time.monotonic()
        self._steps = 0
        self._is_waiting_for_policy = False
        self._worker: RolloutWorker | None = None

    def run(self) -> dict[str, Any]:
        """Step until told to stop; what is open has been sent then."""
        worker = build_worker(self._plan, self._slot, self._incarnation, self._acting(), self._writer)
        self._worker = worker
        flushed, every_s = time.monotonic(), flush_interval_s(self._plan.config.workers)
        try:
            while not self._stopping.is_set():
                self._doing, self._since = "reset" if worker.begins_episode else "step", time.monotonic()
                worker.step()
                self._steps += 1
                now = time.monotonic()
                if now - flushed >= every_s:
                    flushed = now
                    self._emit(worker)
        finally:
            self._doing, self._since = "closing", time.monotonic()
            worker.close()
            self._emit(worker)
        return {"agent_steps": worker.agent_steps, "open_rows": worker.open_rows}

    def ping(self) -> dict[str, Any]:
        """What it is doing, and the rows that would be lost now; ``stuck`` names a call of the env that is past its deadline."""
        config = self._plan.config
        seconds = time.monotonic() - max(self._since, self._writer.waited_until)
        status = {"pid": os.getpid(), "doing": self._doing, "seconds": seconds, "steps": self._steps, "stuck": ""}
        status["open_rows"] = self._worker.open_rows if self._worker else 0
        limit = {"step": config.actors.step_timeout_s, "reset": config.actors.reset_timeout_s}.get(self._doing)
        is_waiting = self._writer.is_waiting or self._is_waiting_for_policy
        has_children = config.envs_per_worker > 1 and config.actors.supervise  # they have deadlines of their own
        if limit is not None and seconds > limit and not (is_waiting or has_children):
            status["stuck"] = f"its env did not return from {self._doing} for {seconds:.0f} s"
        return status

    def stop(self) -> None:
        """Ask to end."""
        self._stopping.set()

    def _acting(self) -> ActClient:
        config = self._plan.config
        if self._plan.inference == "central":
            server = Remote(f"inference-{self._slot % config.inference_servers}")
            newest = partial(server.call, "version", patience_s=300.0)
            return RemoteActing(self._slot, self._incarnation, call=self._ask(server), newest=newest)
        import torch

        torch.set_num_threads(1)
        num_envs = config.envs_per_worker
        policy = build_policy(self._plan, self._slot, self._incarnation, num_envs=num_envs)
        return LocalActing(policy, num_envs, RemoteWeights(), pull_interval_s=self._plan.pull_interval_s)

    def _ask(self, server: Remote) -> Callable[[ActRequest], ActReply]:
        def call(request: ActRequest) -> ActReply:
            self._is_waiting_for_policy = True
            try:
                reply: ActReply = server.call("act", request, timeout_s=60.0, patience_s=300.0)
            finally:
                self._is_waiting_for_policy, self._since = False, time.monotonic()
            return reply

        return call

    def _emit(self, worker: RolloutWorker) -> None:
        episodes = [episode.to_fact() for episode in worker.drain_episodes()]
        self._reporter.emit(with_planner(worker.drain_metrics(), self._plan.spec.acting), {"episodes": episodes})
