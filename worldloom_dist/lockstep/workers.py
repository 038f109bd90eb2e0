"""The env workers of a lock-step run: built, stepped in turn, saved in its checkpoints and found
again in them.

A worker that is given up, or that a resumed run leaves out because it has fewer of them, keeps its
state in every checkpoint: when it comes back it goes on with its streams, and begins none twice.
One that comes back with another number of envs begins new streams, under its next incarnation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from worldloom.core.damage import reading
from worldloom.core.exceptions import EnvFailureError
from worldloom.core.protocol import Policy
from worldloom_dist.actors.acting import LocalActing
from worldloom_dist.actors.rollout_worker import RolloutWorker
from worldloom_dist.ports import ReplayWriter, WeightSource
from worldloom_dist.run.builders import build_policy, build_worker, capture_on_gpu
from worldloom_dist.run.plan import Plan

__all__ = ["LocalWorkers"]

logger = logging.getLogger(__name__)


class LocalWorkers:
    """The workers of one run, in the order of their slots.

    Args:
        plan: Of the run.
        weights: What the policies load.
        replay: Where chunks go.
        device: Where the policies decide.

    Attributes:
        workers: All of them, those that are given up included.
        given_up: Why a worker is left out, by slot.
    """

    def __init__(
        self, plan: Plan, weights: WeightSource, replay: ReplayWriter, device: str = "cpu"
    ) -> None:
        self._plan = plan
        self.device = device
        self._weights = weights
        self._replay = replay
        self.workers: list[RolloutWorker] = []
        self.given_up: dict[int, str] = {}
        self._absent: list[Mapping[str, Any]] = []

    def begin(self, states: Sequence[Mapping[str, Any]] = ()) -> None:
        """Build the workers, and let those go on that a checkpoint has."""
        num_workers = self._plan.num_workers
        num_envs = self._plan.config.envs_per_worker
        self._absent = list(states[num_workers:])
        for slot in range(num_workers):
            state = states[slot] if slot < len(states) else None
            saved = f"worker-{slot} of the checkpoint"
            with reading(saved):
                incarnation = 0 if state is None else int(state.get("incarnation", 0))
            policy = self._policy(slot, incarnation)
            with reading(saved):
                change = "" if state is None else _change(state, policy, num_envs)
            if change:
                logger.info("worker-%d begins new episodes: %s", slot, change)
                incarnation = incarnation + 1
                state = None
                policy = self._policy(slot, incarnation)
            acting = LocalActing(policy, num_envs, self._weights, pull_interval_s=0.0)
            self.workers.append(build_worker(self._plan, slot, incarnation, acting, self._replay))
            if state is not None:
                with reading(saved):
                    self.workers[-1].restore(state)

    def _policy(self, slot: int, incarnation: int) -> Policy:
        num_envs = self._plan.config.envs_per_worker
        policy = build_policy(self._plan, slot, incarnation, num_envs=num_envs, device=self.device)
        capture_on_gpu(self._plan, policy, self.device, (num_envs,))
        return policy

    @property
    def live(self) -> list[RolloutWorker]:
        """Workers that have an env left."""
        return [worker for worker in self.workers if worker.slot not in self.given_up]

    def step(self) -> list[RolloutWorker]:
        """One decision of every env; returns the workers whose last env was lost by it."""
        lost = []
        for worker in self.live:
            try:
                worker.step()
            except EnvFailureError as error:
                self.given_up[worker.slot] = str(error)
                logger.error("worker-%d is given up: %s", worker.slot, error)
                lost.append(worker)
        return lost

    @property
    def num_envs(self) -> int:
        """Envs of all live workers: the most steps that a decision of all of them makes."""
        return sum(worker.num_envs for worker in self.live)

    @property
    def steps_in_chunks(self) -> int:
        """Agent steps that are made and not stored."""
        return sum(worker.steps_in_chunks for worker in self.workers)

    def flush(self) -> None:
        """Store what is open."""
        for worker in self.workers:
            worker.flush()

    def states(self) -> list[Mapping[str, Any]]:
        """Send what is open, and return what a checkpoint keeps of every worker, absent ones
        included.
        """
        present = [
            {**worker.checkpoint(), "incarnation": worker.incarnation} for worker in self.workers
        ]
        return [*present, *self._absent]

    @property
    def quarantined(self) -> dict[str, str]:
        """Workers that are left out, envs that are not built again, and tasks that an env leaves
        out, with the reason.
        """
        workers = {f"worker-{slot}": why for slot, why in self.given_up.items()}
        envs = {
            f"worker-{worker.slot}/env-{env}": why
            for worker in self.workers
            for env, why in worker.quarantined.items()
        }
        tasks = {
            f"worker-{worker.slot}/env-{env}/{task}": why
            for worker in self.workers
            for (env, task), why in worker.lost_tasks.items()
        }
        return {**workers, **envs, **tasks}

    def close(self) -> None:
        """Close the envs."""
        for worker in self.workers:
            worker.close()


def _change(state: Mapping[str, Any], policy: Policy, num_envs: int) -> str:
    """Why a worker cannot go on where its state is, because of other settings; empty when
    it can.
    """
    had = len(state["writers"])
    if had != num_envs:
        return f"it had {had} envs and has {num_envs} now"
    carry = state["acting"]["carry"]
    fresh = policy.initial_carry(num_envs)
    if {key: value.shape for key, value in carry.items()} != {
        key: value.shape for key, value in fresh.items()
    }:
        return "the agent's settings give what it remembers of them another shape"
    return ""
