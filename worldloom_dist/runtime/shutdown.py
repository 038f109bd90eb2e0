"""How a run on Ray ends: in order, each step with a deadline, and also when a role has just died or
hangs.

    workers are told to stop -> the coordinator lets everything in -> workers send what is open and
    end -> every shard says its final counters: the counters of all that it stored -> the learner:
    last version, last checkpoint

Workers are told first, because what is drained is not bound by the train ratio. The driver's thread
alone calls this; while it waits for a role to come back it polls the supervisor, which starts it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayError

from worldloom_dist.interfaces import Coordinator, Gateway, Shard, Worker
from worldloom_dist.rpc.actor_client import GONE, submit
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.supervisor import Role, Supervisor
from worldloom_dist.runtime.worker_pool import WorkerPool

__all__ = ["Shutdown"]

logger = logging.getLogger(__name__)

POLL_S = 0.25


class Shutdown:
    """The last steps of one run.

    Args:
        supervisor: Of its roles.
        worker_pool: Its workers.
    """

    def __init__(self, supervisor: Supervisor, worker_pool: WorkerPool) -> None:
        self._supervisor = supervisor
        self._worker_pool = worker_pool
        self._give_up: float | None = None

    def end_inserts(self, timeout_s: float) -> dict[str, dict[str, int]]:
        """Stop the workers; returns the counters of every shard that has a final counters, by its
        index.

        Raises:
            TrainingError: If a role that the run needs is given up.
        """
        self._await("coordinator", "shard")
        for worker in self._supervisor.of_kind("worker"):
            if worker.handle is not None:
                submit(worker.handle, Worker.stop)
        for gateway in self._supervisor.of_kind("gateway"):
            if gateway.handle is not None:
                submit(gateway.handle, Gateway.stop)
        self._drain()
        self._supervisor.stop(("gateway",), timeout_s=timeout_s)
        self._worker_pool.stop(timeout_s)
        self._await("shard")
        return self._final_counters()

    def end_training(self, timeout_s: float) -> dict[str, Any] | None:
        """Stop the learner; returns what it says after its last checkpoint, None if it wrote none.

        Raises:
            TrainingError: If a role that the run needs is given up.
        """
        self._await("coordinator", "learner")
        while any(
            not (role.is_done or role.is_given_up) for role in self._supervisor.of_kind("learner")
        ):
            asked = time.monotonic()
            ended = self._supervisor.stop(("learner",), timeout_s=timeout_s, ends_processes=False)
            if "learner-0" in ended:
                last: dict[str, Any] = ended["learner-0"]
                return last
            if time.monotonic() - asked >= timeout_s or time.monotonic() > self._deadline:
                return None
            self._supervisor.start_again("learner")  # it died while it was stopped
            self._await("learner", of_late_ones_too=True)
        return None

    def _drain(self) -> None:
        """A coordinator that hangs is replaced: it knows nothing that shards and learner do not
        know.
        """
        for _ in range(2):
            self._await("coordinator")
            coordinator = self._supervisor.roles.get("coordinator-0")
            if coordinator is None or coordinator.handle is None:
                break
            try:
                ray.get(submit(coordinator.handle, Coordinator.drain), timeout=DEADLINES.drain_s)
                return
            except GONE as error:
                logger.warning(
                    "the coordinator does not answer (%s); it is replaced", type(error).__name__
                )
                self._replace(coordinator)
        logger.warning("workers cannot send their open chunks, because the coordinator is away")

    def _final_counters(self) -> dict[str, dict[str, int]]:
        shards = {
            role.index: submit(role.handle, Shard.finalize)
            for role in self._supervisor.of_kind("shard")
            if role.is_up
        }
        if shards:
            ray.wait(list(shards.values()), num_returns=len(shards), timeout=DEADLINES.finalize_s)
        words = {}
        for index, said in shards.items():
            try:
                words[str(index)] = asdict(ray.get(said, timeout=0))
            except RayError as error:
                logger.warning(
                    "shard-%d has no final counters (%s); the counters may lag behind its disk",
                    index,
                    type(error).__name__,
                )
        self._supervisor.hear(("shard",))
        return words

    @property
    def _deadline(self) -> float:
        """One for all waits, from the first of them on."""
        if self._give_up is None:
            self._give_up = time.monotonic() + DEADLINES.come_back_s
        return self._give_up

    def _await(self, *kinds: str, of_late_ones_too: bool = False) -> None:
        """Let roles that have died come back; those that never were up are not waited for, because
        nothing is lost with them.
        """
        deadline = self._deadline
        is_said = False
        self._supervisor.poll(0.0)  # who died a moment ago counts as up until the next poll
        while missing := [
            role.name
            for kind in kinds
            for role in self._supervisor.of_kind(kind)
            if role.is_missing and (role.has_been_up or of_late_ones_too)
        ]:
            if time.monotonic() > deadline:
                logger.warning("%s did not come back in time", ", ".join(missing))
                return
            if not is_said:
                logger.info("waiting for %s before the run ends", ", ".join(missing))
            is_said = True
            self._supervisor.poll(POLL_S)

    def _replace(self, role: Role) -> None:
        """Kill a role's process, and wait until the supervisor has noticed."""
        process = role.handle
        ray.kill(process, no_restart=True)
        while role.handle is process and time.monotonic() < self._deadline:
            self._supervisor.poll(POLL_S)
