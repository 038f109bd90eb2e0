"""The env workers of a run: started in waves, kept at the wanted number, moved away from machines
that are about to go.

How many are wanted: ``--workers``; with ``actors.elastic`` that number holds for the cluster as it
was at the start, and follows its CPUs in proportion. A worker that is no longer wanted, or whose
node drains, is asked to stop: it sends what is open and ends; in the second case it begins again
elsewhere. Every process of a slot gets an incarnation of its own, so no stream is written twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ray

from worldloom_dist.interfaces import Worker
from worldloom_dist.run.builders import check_live
from worldloom_dist.run.intervals import Interval
from worldloom_dist.run.plan import Plan
from worldloom_dist.runtime.cluster import CPUS_PER_ROLE
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.ray_internals import draining_nodes
from worldloom_dist.runtime.supervisor import Role, Supervisor, start_actor
from worldloom_dist.runtime.worker_role import WorkerRole

__all__ = ["WorkerPool", "wanted_workers", "wave_size"]

logger = logging.getLogger(__name__)

CLUSTER_EVERY_S = 2.0
STARTS_WITHIN_S = 20.0
"""A worker that needs longer, or that comes back, holds up no other one's start."""


def wanted_workers(workers: int, cpus_at_start: float, cpus: float, min_live: int) -> int:
    """Workers for a cluster that has ``cpus`` now, when ``workers`` were right for
    ``cpus_at_start``; at least one.

    Example:
        >>> wanted_workers(8, cpus_at_start=4.0, cpus=6.0, min_live=1)
        12
    """
    if cpus_at_start <= 0 or cpus <= 0:
        return workers
    return max(1, min_live, round(workers * cpus / cpus_at_start))


def wave_size(most: int, cpus: float, *, leaves_core: bool) -> int:
    """Workers that start at the same time: each takes a core for a second or more.

    Args:
        most: What the user allows (``actors.start_wave``).
        cpus: Cores of the cluster.
        leaves_core: True until the learner has made an update, and while it owes some: it would
            have to share its core. Else the cores are kept busy.

    Example:
        >>> [wave_size(8, cpus, leaves_core=True) for cpus in (0.0, 1.0, 2.0, 4.0, 64.0)]
        [1, 1, 1, 3, 8]
        >>> [wave_size(8, cpus, leaves_core=False) for cpus in (0.0, 1.0, 2.0, 4.0, 64.0)]
        [1, 2, 4, 8, 8]
    """
    room = int(cpus) - 1 if leaves_core else 2 * int(cpus)
    return max(1, min(most, room))


class WorkerPool:
    """Owned by the driver's thread.

    Args:
        plan: Of the run.
        supervisor: Keeps the workers up.
        first_incarnation: Incarnations of this driver's workers begin here.
        on_lost: Told how many open rows died with a worker.
        on_down: Told the slot and the incarnation of a worker that has ended.
        on_drained: Told how many open rows a worker sent before it left a machine that goes.
        cluster_cpus: CPUs of the cluster now.
        draining: Ids of the nodes that are about to go.

    Attributes:
        plan: What workers are started with.
        wanted: How many there should be.
        leaves_core: True while workers that start must not take the learner's core.
        options: Ray's options for the worker of a slot.
    """

    def __init__(
        self,
        plan: Plan,
        supervisor: Supervisor,
        first_incarnation: int,
        on_lost: Callable[[int], None],
        *,
        on_down: Callable[[int, int], None] = lambda *_: None,
        on_drained: Callable[[int], None] = lambda _: None,
        cluster_cpus: Callable[[], float] | None = None,
        draining: Callable[[], set[str]] | None = None,
    ) -> None:
        self.plan = plan
        self._supervisor = supervisor
        self.first_incarnation = first_incarnation
        self._on_lost = on_lost
        self._on_down = on_down
        self._on_drained = on_drained
        self._draining_workers = set[str]()
        self._added_at: dict[int, float] = {}
        self._cluster_cpus = cluster_cpus or count_cluster_cpus
        self._draining = draining or draining_nodes
        self._cpus_at_start = self._cluster_cpus()
        self._look = Interval(CLUSTER_EVERY_S)
        self._next_life: dict[int, int] = {}
        self.wanted = plan.num_workers
        self.leaves_core = True
        self.options: Callable[[int], Mapping[str, Any]] = lambda _: {"num_cpus": CPUS_PER_ROLE}

    @property
    def workers(self) -> list[Role]:
        """Workers that are not leaving."""
        return [role for role in self._supervisor.of_kind("worker") if not role.is_leaving]

    @property
    def live(self) -> int:
        """Workers that have answered."""
        return sum(role.is_up for role in self.workers)

    @property
    def is_complete(self) -> bool:
        """True when every wanted worker has been up or is given up."""
        ended = (role.has_been_up or role.is_given_up for role in self.workers)
        return sum(ended) >= self.wanted

    @property
    def quarantined(self) -> dict[str, str]:
        """Envs and workers that are not started again, and tasks that an env leaves out, with the
        last failure.
        """
        found = {role.name: role.last_failure for role in self.workers if role.is_given_up}
        for role in self.workers:
            found |= {
                f"{role.name}/env-{env}": why
                for env, why in role.status.get("quarantined", {}).items()
            }
            found |= {
                f"{role.name}/env-{env}/{task}": why
                for (env, task), why in role.status.get("lost_tasks", {}).items()
            }
        return found

    def look(self) -> None:
        """Follow the cluster, and start the next wave when the previous one is up.

        Raises:
            TrainingError: If fewer workers than ``actors.min_live`` are left.
        """
        if self._look.is_due():
            self._follow_cluster()
        workers = self.workers
        now = time.monotonic()
        starting = sum(
            not (role.is_up or role.is_given_up)
            and now - self._added_at[role.index] < STARTS_WITHIN_S
            for role in workers
        )
        most = self.plan.config.actors.start_wave
        wave = wave_size(most, self._cluster_cpus(), leaves_core=self.leaves_core)
        room = max(0, wave - starting)
        for slot in self._free_slots()[: min(room, self.wanted - len(workers))]:
            self._add(slot)
        self._check()

    def stop(self, timeout_s: float) -> None:
        """Ask every worker to end, and book what could not be sent."""
        known = {
            role.name: role.status.get("open_rows", 0)
            for role in self._supervisor.of_kind("worker")
            if not role.is_done
        }
        ended = self._supervisor.stop(("worker",), timeout_s=timeout_s)
        self._on_lost(
            sum(ended[name]["open_rows"] if name in ended else rows for name, rows in known.items())
        )

    def _check(self) -> None:
        if not self.plan.num_workers:
            return
        left = sum(not role.is_given_up for role in self.workers)
        missing = self.wanted - len(self.workers)
        check_live(self.plan, left, self.wanted, self.quarantined, missing=missing)

    def _follow_cluster(self) -> None:
        leaving = self._draining()
        for role in self.workers:
            if leaving and role.is_up and role.status.get("node") in leaving:
                logger.warning(
                    "%s: its node is about to go; it sends what is open and begins again elsewhere",
                    role.name,
                )
                self._draining_workers.add(role.name)
                self._supervisor.move(role)
        if not self.plan.num_workers or not self.plan.config.actors.elastic:
            return
        config = self.plan.config
        wanted = wanted_workers(
            config.workers, self._cpus_at_start, self._cluster_cpus(), config.actors.min_live
        )
        if wanted != self.wanted:
            logger.info(
                "workers: %d instead of %d, because the cluster has another size",
                wanted,
                self.wanted,
            )
            self.wanted = wanted
        for role in sorted(self.workers, key=lambda role: (role.is_up, -role.index))[
            : max(0, len(self.workers) - wanted)
        ]:
            self._supervisor.retire(role)

    def _free_slots(self) -> list[int]:
        taken = {role.index for role in self._supervisor.of_kind("worker")}
        return [slot for slot in range(self.wanted + len(taken)) if slot not in taken]

    def _add(self, slot: int) -> None:
        first = self._next_life.get(slot, 0)
        actors = self.plan.config.actors
        start = partial(self._start_worker, slot)
        self._added_at[slot] = time.monotonic()
        self._supervisor.add(
            Role(
                "worker",
                slot,
                start,
                run_forever=Worker.run,
                incarnation=first,
                is_vital=False,
                ping_timeout_s=max(DEADLINES.ping_s, actors.step_timeout_s, actors.reset_timeout_s)
                + DEADLINES.ping_margin_worker_s,
                start_timeout_s=max(DEADLINES.start_s, self.plan.config.placement.wait_s),
                on_down=partial(self._down, slot),
            )
        )

    def _start_worker(self, slot: int, incarnation: int) -> Any:
        role = (self.plan, slot, self.first_incarnation + incarnation)
        return start_actor(
            WorkerRole, f"worker-{slot}", *role, threads=3, options=self.options(slot)
        )

    def _down(self, slot: int) -> None:
        """Book the rows of its open chunk, as of its last heartbeat (at most a few seconds ago),
        as lost; what one that left in time has sent is booked as drained.
        """
        role = self._supervisor.roles[f"worker-{slot}"]
        said = role.status.pop("left_with", {})
        is_drained = role.name in self._draining_workers or said.get("is_preempted", False)
        self._draining_workers.discard(role.name)
        if is_drained and said:
            self._on_drained(said["flushed_rows"])
        self._next_life[slot] = role.incarnation + 1
        self._on_down(slot, self.first_incarnation + role.incarnation)
        self._on_lost(role.status.pop("open_rows", 0))


def count_cluster_cpus() -> float:
    """Cores of all nodes."""
    resources: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return float(resources.get("CPU", 0.0))
