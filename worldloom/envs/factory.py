"""One ``make_env`` for everything: from a config to envs behind the row contract.

Suites are imported when they are asked for: a gym env needs no Atari, and a process whose envs live in other processes does
not even import gymnasium. Nothing here needs torch or ray.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import TYPE_CHECKING, Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import EnvSpec
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.vector import VectorEnv

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv as GymVectorEnv

    from worldloom.envs.wrappers import EnvAdapter, RawEnv

__all__ = ["build_env", "env_spec", "make_env"]

SUITE_MODULES = {"gym": "gymnasium", "mujoco": "gymnasium", "atari": "atari", "dmc": "dmc", "toy": "toy", "module": "module"}


def make_env(
    config: EnvConfig,
    *,
    num_envs: int = 1,
    seed: int,
    limits: EnvLimits | None = None,
    processes: bool = False,
) -> VectorEnv:
    """Build ``num_envs`` envs behind one row contract.

    Args:
        config: Which env; open settings take the suite's defaults.
        num_envs: How many.
        seed: Root of all their randomness.
        limits: Deadlines (for processes) and failures that are borne.
        processes: One supervised process per env, which can be killed when it hangs; otherwise all in this process. The ALE's
            own vector env (``config.ale_vector``) is always in this process.

    Raises:
        ConfigurationError: If the env or a setting does not exist; offers the nearest one.
        MissingDependencyError: If a package is missing; says which line installs it.
    """
    if num_envs < 1:
        raise ConfigurationError(f"num_envs must be >= 1, got {num_envs}")
    config = config.resolved()
    if config.ale_vector:
        from worldloom.envs.gym_vector import GymVectorAdapter
        from worldloom.envs.suites.atari import make_vector

        return GymVectorAdapter(make_vector(config, num_envs), config, num_envs, seed, applies_settings=True)
    if processes:
        from worldloom.envs.supervised import SupervisedVectorEnv

        return SupervisedVectorEnv(config, num_envs, seed, limits=limits)
    from worldloom.envs.local import LocalVectorEnv
    from worldloom.envs.wrappers import RawEnv

    if config.suite == "module":
        raw = _make_raw(config, num_envs)
        if not isinstance(raw, RawEnv):
            from worldloom.envs.gym_vector import GymVectorAdapter

            return GymVectorAdapter(raw, config, num_envs, seed)
        raw.env.close()
    return LocalVectorEnv(partial(build_env, config), num_envs, seed, limits=limits)


def env_spec(config: EnvConfig) -> EnvSpec:
    """What the env gives and takes; builds one and closes it again.

    Raises:
        ConfigurationError, MissingDependencyError: As :func:`make_env`.
    """
    env = make_env(config, seed=0)
    env.close()
    return env.spec


def build_env(config: EnvConfig) -> EnvAdapter:
    """One env, adapted, from a resolved config.

    Raises:
        ConfigurationError, MissingDependencyError: As :func:`make_env`.
    """
    from worldloom.envs.wrappers import EnvAdapter, RawEnv

    raw = _make_raw(config, 1)
    if not isinstance(raw, RawEnv):
        raw.close()
        raise ConfigurationError(f"env {config.env!r} is a vector env, which cannot be split into supervised processes")
    return EnvAdapter(raw, config)


def _make_raw(config: EnvConfig, num_envs: int) -> RawEnv | GymVectorEnv[Any, Any, Any]:
    if config.is_none:
        raise ConfigurationError(
            "env 'none' is for offline training and has nothing to step; name an env, for example gym:Pendulum-v1"
        )
    suite: Any = importlib.import_module(f"worldloom.envs.suites.{SUITE_MODULES[config.suite]}")
    raw: RawEnv | GymVectorEnv[Any, Any, Any]
    raw = suite.make(config, num_envs) if config.suite == "module" else suite.make(config)
    return raw
