"""``gym:ID`` and ``mujoco:ID`` (Gymnasium's MuJoCo v5 envs), by Gymnasium's own registry."""

from __future__ import annotations

import functools
import logging
from typing import Any

import gymnasium
from gymnasium.wrappers import AddRenderObservation

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import ConfigurationError, MissingDependencyError, nearest
from worldloom.envs.config import EnvConfig
from worldloom.envs.contract import may_terminate, own_limit
from worldloom.envs.suites.module import local_modules
from worldloom.envs.suites.rendering import set_up_headless
from worldloom.envs.wrappers import RawEnv

__all__ = ["make"]

logger = logging.getLogger(__name__)

NEVER_TERMINATE = ("Pendulum", "HalfCheetah", "Swimmer", "Reacher", "Pusher", "HumanoidStandup")
"""Gymnasium's own ids, in any version."""
EXTRA_OF_ENTRY_POINT = {"gymnasium.envs.mujoco": "mujoco", "ale_py": "atari"}


def make(config: EnvConfig, *, renders: bool = False) -> RawEnv:
    """Build a registered environment; ``renders`` if it will be asked for pictures.

    Raises:
        ConfigurationError: If the id is unknown; offers the nearest registered one.
        MissingDependencyError: If the env's package is not installed; says what installs it.
    """
    name = _mujoco_id(config.name) if config.suite == "mujoco" else config.name
    if name.startswith("ALE/"):
        _register_atari()
    options: dict[str, Any] = {"disable_env_checker": True}
    if config.time_limit is not None:
        options["max_episode_steps"] = -1
    if config.pixels or renders:
        set_up_headless()
        options["render_mode"] = "rgb_array"
    try:
        env = _make(name, options, must_render=bool(config.pixels))
        if config.pixels:
            env = AddRenderObservation(env, render_only=True)
    except gymnasium.error.UnregisteredEnv as error:
        hint = nearest(name, gymnasium.registry)
        if name in local_modules():
            hint = f"; for a class in {name}.py say {name}:CLASS"
        raise ConfigurationError(
            f"env {config.env!r}: gymnasium knows no {name!r}{hint}"
        ) from error
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        _raise_missing(name, error)
        raise
    except gymnasium.error.Error as error:
        raise ConfigurationError(f"env {config.env!r}: {first_line(error)}") from error
    registered = None if env.spec is None else env.spec.max_episode_steps
    limit = None if config.time_limit is not None else registered or own_limit(env.unwrapped)
    is_endless = name.partition("-v")[0] in NEVER_TERMINATE
    return RawEnv(
        env,
        episode_limit=limit,
        may_terminate=not is_endless and may_terminate(env.unwrapped),
    )


def _make(name: str, options: dict[str, Any], *, must_render: bool) -> gymnasium.Env[Any, Any]:
    """The env, without pictures if it cannot draw any and need not."""
    try:
        return gymnasium.make(name, **options)
    except (AssertionError, TypeError, ValueError) as error:
        if must_render or "render_mode" not in options:
            raise
        _say_no_video(name, first_line(error))
    return gymnasium.make(
        name, **{key: value for key, value in options.items() if key != "render_mode"}
    )


@functools.cache  # once, however many are built
def _say_no_video(name: str, reason: str) -> None:
    logger.warning("no video of env %s: it takes no render_mode='rgb_array' (%s)", name, reason)


def _mujoco_id(name: str) -> str:
    """``half-cheetah``, ``halfcheetah`` and ``HalfCheetah-v5`` name the same env."""
    wanted = name.lower().replace("-", "").replace("_", "").removesuffix("v5")
    for known in gymnasium.registry:
        if known.endswith("-v5") and known.lower().replace("-", "").removesuffix("v5") == wanted:
            return known
    return name


def _register_atari() -> None:
    try:
        import ale_py
    except ImportError as error:
        raise MissingDependencyError("atari envs", "ale-py", "atari") from error
    gymnasium.register_envs(ale_py)


def _raise_missing(name: str, error: Exception) -> None:
    """Say what installs the package of one of Gymnasium's own envs."""
    spec = gymnasium.registry.get(name)
    for prefix, extra in EXTRA_OF_ENTRY_POINT.items():
        if spec is not None and str(spec.entry_point).startswith(prefix):
            raise MissingDependencyError(
                f"env {name!r}", getattr(error, "name", None) or "a package", extra
            ) from error
