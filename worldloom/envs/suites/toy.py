"""``toy:NAME``: the environments of ``worldloom.envs.toy``."""

from __future__ import annotations

from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom.envs.config import EnvConfig
from worldloom.envs.toy import TOYS
from worldloom.envs.wrappers import RawEnv

__all__ = ["make"]


def make(config: EnvConfig) -> RawEnv:
    """Build a toy.

    Raises:
        ConfigurationError: If there is no toy of that name.
    """
    if config.name not in TOYS:
        raise ConfigurationError(
            f"env {config.env!r}: no such toy{nearest(config.name, TOYS)} (toys: {', '.join(TOYS)})"
        )
    env = TOYS[config.name]()
    return RawEnv(env, episode_limit=env.episode_limit, may_terminate=env.may_terminate)
