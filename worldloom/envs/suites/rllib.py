"""``--env rllib:NAME``: an environment that was registered with RLlib or Tune
(``ray.tune.register_env``).

A name lives in the Ray job that registered it, so the process that launches registers it first and
then calls ``worldloom_dist.launch.main`` (``examples/rllib_env.py``); workers find it through Ray.
As in RLlib, a name that no one registered may be a Gymnasium id.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom.envs.config import EnvConfig
from worldloom.envs.contract import may_terminate, own_limit
from worldloom.envs.wrappers import RawEnv

__all__ = ["make"]

NEEDED = ("reset", "step", "observation_space", "action_space")


def make(config: EnvConfig) -> RawEnv:
    """Call the registered creator with an empty ``env_config``.

    Raises:
        ConfigurationError: If the name is unknown, or what it makes is no single-agent Gymnasium
            env.
    """
    from ray.tune.registry import ENV_CREATOR, _global_registry

    registry: Any = _global_registry
    if registry.contains(ENV_CREATOR, config.name):
        env: Any = registry.get(ENV_CREATOR, config.name)({})
    elif config.name in gymnasium.registry:
        env = gymnasium.make(config.name, disable_env_checker=True)
    else:
        hint = nearest(config.name, gymnasium.registry)
        raise ConfigurationError(
            f"env {config.env!r}: no one registered {config.name!r} in this Ray job{hint}; call "
            "ray.tune.register_env before worldloom_dist.launch.main, as examples/rllib_env.py does"
        )
    missing = [name for name in NEEDED if not hasattr(env, name)]
    if (
        missing
        or not isinstance(env.observation_space, gymnasium.Space)
        or isinstance(getattr(env, "agents", None), list)
    ):
        raise ConfigurationError(
            f"env {config.env!r} makes a {type(env).__name__}, which is no "
            "single-agent Gymnasium env" + (f" (it lacks {', '.join(missing)})" if missing else "")
        )
    return RawEnv(env, episode_limit=own_limit(env), may_terminate=may_terminate(env))
