"""Several tasks in one run: which env plays which, and what must fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from worldloom.envs.tasks import turns
from worldloom_dist.run.plan import Plan

logger = logging.getLogger(__name__)

__all__ = ["TaskWatch", "env_cycles", "has_same_tasks", "task_lines", "task_problem"]

NAMED = 10
"""Tasks that are told one by one."""


def env_cycles(
    plan: Plan, slot: int, first_env: int, num_envs: int
) -> list[tuple[int, ...]] | None:
    """The tasks that some envs of a worker play in turn; None in a run of one task.

    The envs are numbered within the shard that their rows go to, so that every shard gets every
    task alike: batches are balanced in each shard alone.

    Args:
        plan: Of the run.
        slot: Which worker.
        first_env, num_envs: Which of its envs.
    """
    if not plan.env_spec.tasks:
        return None
    config = plan.config
    shards = config.replay.shards
    workers = len(range(slot % shards, config.workers, shards))
    own = slot // shards * config.envs_per_worker + first_env
    return turns(
        len(plan.env_spec.tasks),
        envs=range(own, own + num_envs),
        all_envs=workers * config.envs_per_worker,
    )


class TaskWatch:
    """Warns of a task that has no env left: nothing more is learnt of it but from old rows.

    Args:
        plan: Of the run.
    """

    def __init__(self, plan: Plan) -> None:
        config = plan.config
        self._lost: set[str] = set()
        self._players: dict[str, set[tuple[str, str]]] = {
            task.name: set() for task in plan.env_spec.tasks
        }
        names = list(self._players)
        for slot in range(config.workers):
            for env, cycle in enumerate(env_cycles(plan, slot, 0, config.envs_per_worker) or ()):
                for task in cycle:
                    where = (f"worker-{slot}", f"worker-{slot}/env-{env}")
                    self._players[names[task]].add(where)

    def look(self, quarantined: Mapping[str, str]) -> None:
        """Warn once of each task that was lost.

        Args:
            quarantined: Workers and envs that are not started again, and tasks that an env leaves
                out, with the reason.
        """
        if not quarantined:
            return
        for task, players in self._players.items():
            if any(not _lost_by(quarantined, worker, env, task) for worker, env in players):
                self._lost.discard(task)
            elif players and task not in self._lost:
                self._lost.add(task)
                worker, env = min(players)
                logger.warning(
                    "no env is left that plays task %s, so that it is trained on its old rows "
                    "alone (%s); mend its env and resume the run",
                    task,
                    _lost_by(quarantined, worker, env, task),
                )


def _lost_by(quarantined: Mapping[str, str], worker: str, env: str, task: str) -> str:
    """Why an env of a worker does not play a task any more; empty while it does."""
    names = (f"{env}/{task}", env, worker)
    return next((quarantined[name] for name in names if name in quarantined), "")


def task_problem(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why what was trained in some tasks does not fit others: they can only be added at the end.

    Args:
        before, now: Name -> what the task is, as ``EnvConfig.tasks`` has it.

    Returns:
        What differs; empty where it fits.
    """
    for name, other in zip(before, [*now, *[""] * len(before)], strict=False):
        if name != other:
            return f"task {name!r}" + (f" where this run has {other!r}" if other else "")
        for fact in ("env", "settings", "obs", "action"):
            if before[name].get(fact) != now[name].get(fact):
                return (
                    f"{fact} {before[name].get(fact)!r} of task {name!r}, and this run has "
                    f"{now[name].get(fact)!r}"
                )
    return ""


def has_same_tasks(plan: Plan, facts: Mapping[str, Any]) -> bool:
    """True when the score of a checkpoint is of the present tasks, on their present scales."""
    then = (facts.get("env") or {}).get("tasks") or ()
    now = [task.to_dict() for task in plan.env_spec.tasks]
    return [(one["name"], one.get("score")) for one in then] == [
        (one["name"], one["score"]) for one in now
    ]


def task_lines(plan: Plan) -> list[str]:
    """What a run of several tasks says of them before it begins; empty for one task."""
    tasks = plan.env_spec.tasks
    if not tasks:
        return []
    named = [
        f"{task.name} (obs {task.obs_size}, action {task.action_size}, "
        f"{'no limit' if task.episode_limit is None else f'{task.episode_limit} decisions'})"
        for task in tasks[:NAMED]
    ]
    more = [f"and {len(tasks) - NAMED} more"] if len(tasks) > NAMED else []
    lines = [f"tasks    {len(tasks)}: {', '.join([*named, *more])}"]
    may_end = [task.name for task in tasks if task.may_terminate]
    if may_end:
        others = f" and {len(may_end) - 1} more" if len(may_end) > 1 else ""
        lines.append(
            f"tasks    episodes of {may_end[0]}{others} may terminate; {plan.agent.name} does not "
            "learn to foresee that with several tasks"
        )
    return lines
