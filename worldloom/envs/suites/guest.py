"""``SUITE:NAME``: an env of a suite that an installed package brings."""

from __future__ import annotations

import inspect
from typing import Any

from gymnasium.vector import VectorEnv as GymVectorEnv

from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.building import foreign_code
from worldloom.envs.config import EnvConfig
from worldloom.envs.contract import may_terminate, own_limit
from worldloom.envs.guest_suites import suite_maker
from worldloom.envs.wrappers import RawEnv

__all__ = ["make"]

NEEDED = ("reset", "step", "observation_space", "action_space")


def make(config: EnvConfig, *, renders: bool = False) -> RawEnv:
    """Call the suite's ``make``; a parameter ``renders`` is told that pictures are wanted.

    Raises:
        ConfigurationError: If there is no such function, or what it returns is no env.
        EnvBuildError: If it raises.
    """
    maker = suite_maker(config.suite)
    with foreign_code(config, "built"):
        takes = "renders" in inspect.signature(maker).parameters
        made: Any = maker(config, **({"renders": renders} if takes else {}))
        if isinstance(made, RawEnv):
            return made
        missing = [name for name in NEEDED if not hasattr(made, name)]
        is_single = not isinstance(made, GymVectorEnv)
        if is_single and not missing:
            return RawEnv(made, episode_limit=own_limit(made), may_terminate=may_terminate(made))
    lack = f" without {', '.join(missing)}" if missing else ""
    raise ConfigurationError(
        f"env {config.env!r}: its suite returned a {type(made).__name__}{lack}; it must return one "
        "Gymnasium env, no vector of them"
    )
