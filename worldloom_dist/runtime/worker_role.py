"""The env worker as a Ray actor. Torch is imported only when the policy lives here.

``run`` is the run_forever and the only thread that touches the worker. ``ping`` reads, from another
thread, what that thread is doing and since when, so the supervisor can tell a hanging env from a
worker that waits for its turn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from worldloom.core.memory import tree_of
from worldloom.core.metrics import Sum
from worldloom_dist.actors.acting import ActClient, ActReply, ActRequest, LocalActing, RemoteActing
from worldloom_dist.actors.groups import GroupedWorker
from worldloom_dist.actors.rollout_worker import RolloutWorker
from worldloom_dist.actors.step_budget import StepBudget
from worldloom_dist.interfaces import (
    Coordinator,
    Inference,
    coordinator_client,
    inference_client,
)
from worldloom_dist.ports import StepPermit, StepQuestion, WeightSource
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.rpc.connection import RpcClient
from worldloom_dist.run.builders import build_grouped_worker, build_policy, worker_memory
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.intervals import Interval
from worldloom_dist.run.plan import Plan
from worldloom_dist.runtime.allocator import keep_freed_memory
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.log_forwarder import LogForwarder, stack_of
from worldloom_dist.runtime.reporting import Reporter, flush_interval_s, with_planner
from worldloom_dist.runtime.shard_client import ShardWriter
from worldloom_dist.runtime.supervisor import PINGS_PER_S, STOOD_STILL_S
from worldloom_dist.runtime.weight_roles import RemoteWeights

__all__ = ["WorkerRole", "overdue", "stood_still", "wait_for_weights"]

logger = logging.getLogger(__name__)

ASK_VERSION_EVERY_S = 0.5
VERSIONS_PER_S = 32.0
"""Before the first weights: how often a worker asks for them, and how many do so in a second when
there are many workers.
"""


class WorkerRole:
    """Steps envs until told to stop, or until its machine is taken away (SIGTERM): then what is
    open is sent first.

    Args:
        plan: Of the run.
        slot: Which worker.
        incarnation: Its incarnation.
    """

    def __init__(self, plan: Plan, slot: int, incarnation: int) -> None:
        keep_freed_memory()
        self._plan = plan
        self._slot = slot
        self._incarnation = incarnation
        self._stopping = threading.Event()
        self._is_preempted = False
        self._writer = ShardWriter(plan, slot, self._stopping)
        self._reporter = Reporter("actor", slot)
        self._log_forwarder = LogForwarder().listen()
        self._memory = worker_memory(plan)
        self._doing = "starting"
        self._since = self._asked_at = time.monotonic()
        self._steps = self._waiting = self._thread = 0
        self._flush = Interval(flush_interval_s(plan.config.workers))
        self._worker: RolloutWorker | GroupedWorker | None = None
        self._client: RpcClient[Inference, ActRequest, ActReply] | None = None
        self._node = ray.get_runtime_context().get_node_id()
        if threading.current_thread() is threading.main_thread():  # where Ray constructs actors
            signal.signal(signal.SIGTERM, self._on_preemption)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def run(self) -> dict[str, Any]:
        """Step until told to stop; what is open has been sent then."""
        self._thread = threading.get_ident()
        permits = RpcClient(
            coordinator_client(),
            Coordinator.permit_steps,
            DEADLINES.permit_s,
            DEADLINES.coordinator_patience_s,
            on_wait=self._on_wait,
        )
        budget = StepBudget(
            self._slot,
            self._incarnation,
            partial(self._ask_for_steps, permits),
            self._stopping.is_set,
            self._emit_if_due,
        )
        worker = build_grouped_worker(
            self._plan, self._slot, self._incarnation, self._acting, self._writer, budget
        )
        self._worker = worker
        open_rows = 0
        try:
            self._wait_for_offline_updates()
            while not self._stopping.is_set():
                self._doing = "reset" if worker.begins_episode else "step"
                self._since = time.monotonic()
                worker.step()
                self._steps += 1
                self._emit_if_due()
        finally:
            self._doing = "closing"
            self._since = time.monotonic()
            open_rows = worker.open_rows
            worker.close()
            self._writer.close()
            permits.close()
            self._emit(worker)
        return {
            "agent_steps": worker.agent_steps,
            "open_rows": worker.open_rows,
            "flushed_rows": open_rows - worker.open_rows,
            "is_preempted": self._is_preempted,
        }

    def ping(self) -> dict[str, Any]:
        """What it is doing, and the rows that would be lost now; ``stuck`` names a call of the env
        that is past its deadline.
        """
        self._reporter.beat()
        now = time.monotonic()
        if stood_still(now - self._asked_at, self._plan.config.workers):
            self._since = now  # the env was stopped, too
        self._asked_at = now
        seconds = now - max(self._since, self._writer.waited_until)
        status = {
            "pid": os.getpid(),
            "doing": self._doing,
            "seconds": seconds,
            "steps": self._steps,
            "stuck": "",
        }
        status["open_rows"] = self._worker.open_rows if self._worker else 0
        status["quarantined"] = dict(self._worker.quarantined) if self._worker else {}
        status["lost_tasks"] = dict(self._worker.lost_tasks) if self._worker else {}
        why = overdue(self._plan.config, self._doing, seconds)
        is_waiting = self._writer.is_waiting or self._waiting > 0
        has_deadlines = self._worker is not None and self._worker.has_deadlines
        if why and not (is_waiting or has_deadlines):
            status["stuck"] = why
            status["stack"] = stack_of(self._thread)
        status["stuck"] = status["stuck"] or self._memory_complaint()
        status["node"] = self._node
        status["said"] = self._log_forwarder.drain()
        return status

    def _memory_complaint(self) -> str:
        """What is wrong with this process's memory, that of its envs included unless these are
        looked after.
        """
        pid = os.getpid()
        looks_after = self._worker is not None and self._worker.has_deadlines
        complaint = self._memory.complaint(lambda: [pid] if looks_after else tree_of(pid))
        if not complaint:
            return ""
        self._reporter.emit({"env_errors_total{reason=memory}": Sum(1)})
        return f"with its env {self._plan.env.env}, {complaint}"

    def stop(self) -> None:
        """Ask to end."""
        self._stopping.set()

    def _on_preemption(self, *_: object) -> None:
        self._is_preempted = True
        self._stopping.set()

    def _acting(self, first_env: int, num_envs: int) -> ActClient:
        config = self._plan.config
        slot = self._slot
        if self._plan.inference == "central":
            if self._client is None:
                server = inference_client(slot % config.inference_servers)
                self._client = RpcClient(
                    server,
                    Inference.act,
                    DEADLINES.act_s,
                    DEADLINES.act_patience_s,
                    on_wait=self._on_wait,
                )
            client = self._client
            return RemoteActing(
                slot,
                self._incarnation,
                call=client.call,
                submit=client.submit,
                first_env=first_env,
                refresh_interval_s=self._ask_every_s,
            )
        import torch

        torch.set_num_threads(1)
        policy = build_policy(self._plan, slot, self._incarnation, num_envs=num_envs)
        return LocalActing(
            policy, num_envs, RemoteWeights(), pull_interval_s=self._plan.pull_interval_s
        )

    @property
    def _ask_every_s(self) -> float:
        return max(ASK_VERSION_EVERY_S, self._plan.config.workers / VERSIONS_PER_S)

    def _wait_for_offline_updates(self) -> None:
        """Wait until the policy that acts has been trained offline."""
        if not self._plan.config.offline_steps:
            return
        self._on_wait(True)
        try:
            wait_for_weights(self._plan, RemoteWeights(), self._stopping, self._ask_every_s)
            if self._plan.inference == "central":  # until the servers have pulled them too
                self._stopping.wait(self._plan.pull_interval_s)
        finally:
            self._on_wait(False)

    def _ask_for_steps(
        self, permits: RpcClient[Coordinator, StepQuestion, StepPermit], question: StepQuestion
    ) -> Callable[[], StepPermit]:
        """Send the question; a coordinator that is away is waited for."""
        self._on_wait(True)
        try:
            return permits.submit(question)
        finally:
            self._on_wait(False)

    def _on_wait(self, is_waiting: bool) -> None:
        self._waiting += 1 if is_waiting else -1
        if not is_waiting:
            self._since = time.monotonic()

    def _emit_if_due(self) -> None:
        """Send metrics now and then, also while no step may be made."""
        if self._worker is not None and self._flush.is_due():
            self._emit(self._worker)

    def _emit(self, worker: RolloutWorker | GroupedWorker) -> None:
        episodes = [episode.to_fact() for episode in worker.drain_episodes()]
        self._reporter.emit(
            with_planner(worker.drain_metrics(), self._plan.spec.acting), {"episodes": episodes}
        )


def stood_still(silence_s: float, workers: int) -> bool:
    """True when a worker was stopped for a while (Ctrl-Z, a batch system that suspends it), or who
    asks it was.

    Args:
        silence_s: Since it was asked last.
        workers: Of the run; many of them are asked less often.
    """
    return silence_s > max(STOOD_STILL_S, 4 * workers / PINGS_PER_S)


def overdue(config: RunConfig, doing: str, seconds: float) -> str:
    """What a worker's env does not return from; empty while there is time.

    Args:
        config: Of the run.
        doing: ``starting``, ``step``, ``reset`` or ``closing``.
        seconds: Since when.
    """
    actors = config.actors
    of_all = max(DEADLINES.start_s, actors.reset_timeout_s) * config.envs_per_worker
    limits = {"step": actors.step_timeout_s, "reset": actors.reset_timeout_s}
    if seconds <= limits.get(doing, of_all):
        return ""
    if doing == "starting":
        return f"its env was not built within {seconds:.0f} s"
    return f"its env did not return from {doing} for {seconds:.0f} s"


def wait_for_weights(
    plan: Plan, weights: WeightSource, stopping: threading.Event, every_s: float
) -> None:
    """Wait for the weights that the updates before the first step come to: batches are admitted
    before they are trained on, so a permit to act comes earlier, and an agent that acts from the
    first step on has published weights before its first update.

    Args:
        plan: Of the run.
        weights: Where they are published.
        stopping: Ends the wait.
        every_s: How often to look.
    """
    while not stopping.is_set():
        with contextlib.suppress(RoleGoneError):
            if plan.is_pretrained(weights.version().update):
                return
        stopping.wait(every_s)
