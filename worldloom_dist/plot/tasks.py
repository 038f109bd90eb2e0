"""The tasks of one run, each as a run of its own: what of its records is of one task alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from worldloom_dist.metrics.names import key_of
from worldloom_dist.run.curves import TRAIN_RETURN, History, finite_number

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
    places = dict.fromkeys(found, 0.0)
    before = 0.0
    for record in records:
        env_steps = finite_number(record.get("env_steps"))
        if env_steps is None:
            continue
        decisions = {
            task: finite_number(record.get(key_of("task_agent_steps_total", task=task))) or 0.0
            for task in found
        }
        if total := sum(decisions.values()):
            shares = {task: count / total for task, count in decisions.items()}
        for task, history in found.items():
            place = env_steps * shares[task]
            # tasks are counted a little later than steps: a share that falls takes nothing back
            places[task] = place if env_steps < before else max(place, places[task])
            history.add({**_of_task(record, task), "env_steps": places[task]})
        before = env_steps
    return found


def _of_task(record: Mapping[str, Any], task: str) -> dict[str, Any]:
    own = _place(record)
    if record.get("kind") == "eval":
        tasks = record.get("tasks")
        result = tasks.get(task) if isinstance(tasks, Mapping) else None
        return own | dict(result) if isinstance(result, Mapping) else own
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
            score = {name: record[name] for name in record if name != "return_std"}
            history.add({**score, "return_mean": record["score"]})
    return history
