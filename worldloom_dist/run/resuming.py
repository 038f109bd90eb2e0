"""What a resumed run may not change."""

from __future__ import annotations

import dataclasses

from worldloom.algorithms.registry import architecture_changes
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.presets import PRESETS

__all__ = ["resume_problems"]


def resume_problems(base: RunConfig, config: RunConfig) -> list[str]:
    """What a resumed run cannot change: its rows and its weights must fit."""
    changes = architecture_changes(base.agent_config(), config.agent_config())
    old = base.env.resolved()
    new = config.env.resolved()
    for field in dataclasses.fields(old):
        if getattr(old, field.name) != getattr(new, field.name):
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
    fixed["offline_steps"] = (base.offline_steps, config.offline_steps)
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
