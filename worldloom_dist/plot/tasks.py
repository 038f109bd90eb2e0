"""The tasks of one run, each as a run of its own: what of its records is of one task alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from worldloom_dist.metrics.names import key_of
from worldloom_dist.run.curves import TRAIN_RETURN, History

__all__ = ["histories_of_tasks", "history_of_scores"]

PLACE = ("kind", "time", "wall_time_s", "env_steps", "train_steps")
"""Where in a run a record is."""


def histories_of_tasks(
    records: Iterable[Mapping[str, Any]], tasks: Iterable[str]
) -> dict[str, History]:
    """The returns of each task over the env steps of that task: all env steps in the share that the
    task's decisions have of all decisions, which training records count.

    Args:
        records: Of a run of several tasks, in order.
        tasks: Their names.
    """
    found = {task: History() for task in tasks}
    shares = dict.fromkeys(found, 1 / max(1, len(found)))
    for record in records:
        if not isinstance(record.get("env_steps"), int | float):
            continue
        decisions = {
            task: record.get(key_of("task_agent_steps_total", task=task)) or 0 for task in found
        }
        if total := sum(decisions.values()):
            shares = {task: count / total for task, count in decisions.items()}
        for task, history in found.items():
            env_steps = record["env_steps"] * shares[task]
            history.add({**_of_task(record, task), "env_steps": env_steps})
    return found


def _of_task(record: Mapping[str, Any], task: str) -> dict[str, Any]:
    own = _place(record)
    if record.get("kind") == "eval":
        return own | dict((record.get("tasks") or {}).get(task) or {})
    value = record.get(key_of("task_return_mean", split="train", task=task))
    return own if value is None else own | {TRAIN_RETURN: value}


def _place(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in PLACE if name in record}


def history_of_scores(records: Iterable[Mapping[str, Any]]) -> History:
    """The mean score over tasks, of the evaluations that have one; it is without a band."""
    history = History()
    for record in records:
        if record.get("kind") != "eval":
            history.add(_place(record))
        elif "score" in record:
            history.add({**record, "return_mean": record["score"], "return_std": 0.0})
    return history
