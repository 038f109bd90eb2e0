"""A run as a table of settings, by the names that flags have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldloom.envs.config import EnvConfig
from worldloom_dist.run.config import RunConfig

__all__ = ["Preset", "Settings", "with_settings"]

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """A whole run by name.

    Attributes:
        name: As after ``--preset``.
        summary: What it is, one sentence.
        settings: Flag name (``replay.shards``, ``agent.lr``) -> value.
    """

    name: str
    summary: str
    settings: Settings

    def __call__(self) -> RunConfig:
        """The run."""
        return dataclasses.replace(with_settings(RunConfig(), self.settings), preset=self.name)


def with_settings(config: RunConfig, settings: Settings) -> RunConfig:
    """A run with settings changed; another agent drops what was set for the one before, and an
    env of another suite likewise.
    """
    for name, value in settings.items():
        section, dot, field = name.partition(".")
        if name == "env":
            other = EnvConfig(env=value)
            if other.suite == config.env.suite:
                other = dataclasses.replace(config.env, env=value)
            config = dataclasses.replace(config, env=other)
        elif name == "agent" and value != config.agent:
            config = dataclasses.replace(config, agent=value, agent_overrides={})
        elif section == "agent" and dot:
            overrides = {**config.agent_overrides, field: value}
            config = dataclasses.replace(config, agent_overrides=overrides)
        elif dot:
            changed = dataclasses.replace(getattr(config, section), **{field: value})
            config = dataclasses.replace(config, **{section: changed})
        else:
            config = dataclasses.replace(config, **{name: value})
    return config
