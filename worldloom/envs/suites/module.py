"""``package.module:callable``: a user's own environment, single or vector."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv as GymVectorEnv

from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom.envs.building import foreign_code
from worldloom.envs.config import EnvConfig, suite_names
from worldloom.envs.contract import may_terminate, own_limit
from worldloom.envs.wrappers import RawEnv

__all__ = ["local_modules", "make"]

NEEDED_OF_VECTOR = ("reset", "step", "num_envs", "single_observation_space", "single_action_space")
NEEDED = ("reset", "step", "observation_space", "action_space")


def make(
    config: EnvConfig, num_envs: int, *, renders: bool = False
) -> RawEnv | GymVectorEnv[Any, Any, Any]:
    """Call it; a parameter ``num_envs`` is told how many are wanted, and ``render_mode`` that
    pictures are (``renders``).

    Raises:
        ConfigurationError: If the module, the callable or the result is not what it should be.
        EnvBuildError: If the module or the callable raises.
    """
    factory = _find(config)
    options: dict[str, Any] = {"num_envs": num_envs} if _has_parameter(factory, "num_envs") else {}
    if renders and _has_parameter(factory, "render_mode"):
        options["render_mode"] = "rgb_array"
    with foreign_code(config, "built"):
        env = factory(**options)
        is_vector = isinstance(env, GymVectorEnv)
        missing = [
            name for name in (NEEDED_OF_VECTOR if is_vector else NEEDED) if not hasattr(env, name)
        ]
        raw = (
            None
            if missing or is_vector
            else RawEnv(env, episode_limit=own_limit(env), may_terminate=may_terminate(env))
        )
    if missing:
        raise ConfigurationError(
            f"env {config.env!r} returned a {type(env).__name__} without "
            f"{', '.join(missing)}; it must return a Gymnasium env"
        )
    return raw or env


def local_modules() -> list[str]:
    """Python files of the folder that a command runs in."""
    return sorted(path.stem for path in Path.cwd().glob("*.py"))


def _find(config: EnvConfig) -> Callable[..., Any]:
    module_name, _, attribute = config.name.partition(":")
    with foreign_code(config, "imported"):
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (
                module_name == error.name or module_name.startswith(error.name + ".")
            ):
                raise
            hint = (
                nearest(module_name, [*local_modules(), *suite_names()])
                or "; run from the folder that holds it, or install it"
            )
            raise ConfigurationError(
                f"env {config.env!r}: no module {module_name!r}{hint}"
            ) from error
        for part in attribute.split("."):
            if not hasattr(found, part):  # a module may make its names as they are asked for
                raise ConfigurationError(
                    f"env {config.env!r}: {module_name} has no {attribute!r}"
                    f"{nearest(part, dir(found))}"
                )
            found = getattr(found, part)
    if not callable(found):
        raise ConfigurationError(
            f"env {config.env!r} is a {type(found).__name__}; it must be callable and return an env"
        )
    result: Callable[..., Any] = found
    return result


def _has_parameter(factory: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False
