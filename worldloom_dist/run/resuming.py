"""What a resumed run may not change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from worldloom.algorithms.registry import architecture_changes
from worldloom.envs.config import EnvConfig
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.presets import PRESETS

__all__ = ["kept_tasks", "resume_problems", "task_changes"]


def kept_tasks(old: EnvConfig, new: EnvConfig) -> EnvConfig:
    """The tasks that were read again, with what the run knows of those that it has.

    Args:
        old: Of the run.
        new: With tasks as they were typed now.
    """
    if not old.tasks:
        return new
    tasks = {
        name: {**old.tasks[name], **_typed_score(entry)} if _is_same(old, name, entry) else entry
        for name, entry in new.tasks.items()
    }
    return dataclasses.replace(new, tasks=tasks)


def task_changes(old: EnvConfig, new: EnvConfig) -> list[str]:
    """What cannot be done to the tasks of a run: they can only be added, at the end."""
    if not (old.tasks and new.tasks):
        return []
    only = "tasks can only be added at the end"
    names = list(new.tasks)
    for place, (name, entry) in enumerate(old.tasks.items()):
        if name not in names:
            return [f"env.tasks: {name!r} is missing, and {only}"]
        if names[place] != name:
            return [f"env.tasks: {name!r} is moved, and {only}"]
        if not _is_same(old, name, new.tasks[name]):
            return [
                f"env.tasks: {name!r} is {entry['env']} with {entry['settings']}, and cannot be "
                f"{new.tasks[name]['env']} with {new.tasks[name]['settings']}"
            ]
    return []


def _is_same(old: EnvConfig, name: str, entry: Mapping[str, Any]) -> bool:
    """True where a task that was read again is the one of the run; settings that are not typed are
    as they were.
    """
    known = old.tasks.get(name)
    if known is None or _spelled_out(known["env"]) != _spelled_out(entry["env"]):
        return False
    return all(known["settings"].get(key) == value for key, value in entry["settings"].items())


def _typed_score(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"score": entry["score"]} if entry.get("score") else {}


def _spelled_out(env: str) -> str:
    config = EnvConfig(env=env)
    return f"{config.suite}:{config.name}"


def resume_problems(base: RunConfig, config: RunConfig) -> list[str]:
    """What a resumed run cannot change: its rows and its weights must fit."""
    changes = architecture_changes(base.agent_config(), config.agent_config())
    old = base.env.resolved()
    new = config.env.resolved()
    apart = ("env", "tasks") if old.tasks and new.tasks else ()
    changes += task_changes(old, new)
    for field in dataclasses.fields(old):
        if field.name not in apart and getattr(old, field.name) != getattr(new, field.name):
            changes.append(
                f"env.{field.name}: the run was made with "
                f"{getattr(old, field.name)!r}, not {getattr(new, field.name)!r}"
            )
    fixed: dict[str, tuple[object, object]] = {"runtime": (base.runtime, config.runtime)}
    if (
        config.preset in PRESETS or "+" in config.preset
    ):  # the run's has been applied; another one would not be
        fixed["preset"] = (base.preset, config.preset)
    fixed["replay.shards"] = (base.replay.shards, config.replay.shards)
    fixed["learner.checkpoints"] = (
        base.learner.whole_checkpoints,
        config.learner.whole_checkpoints,
    )
    fixed["seed"] = (base.seed, config.seed)
    fixed["replay.durability"] = (
        base.replay.durability == "none",
        config.replay.durability == "none",
    )
    changes += [
        f"{name}: the run was made with {was!r}, not {now!r}"
        for name, (was, now) in fixed.items()
        if was != now
    ]
    if base.replay.durability == "none":
        changes.append(
            "replay.durability: the run was made with 'none', so its rows are gone "
            "and it cannot go on"
        )
    return [
        f"{change}; leave the flag out, or start a new run with --run-dir" for change in changes
    ]
