"""One ``make_env`` for everything: from a config to envs behind the row contract.

Suites are imported when they are asked for: a gym env needs no Atari, and a process whose envs live
in other processes does not even import gymnasium. Nothing here needs torch or ray.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.specs import OBS, EnvSpec
from worldloom.envs.building import foreign_code
from worldloom.envs.config import TASKS_SUITE, EnvConfig, EnvLimits
from worldloom.envs.surroundings import Surroundings, kept
from worldloom.envs.tasks import has_sizes, joined_spec, task_of, turns, with_tasks
from worldloom.envs.vector import VectorEnv

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv as GymVectorEnv

    from worldloom.envs.task_adapter import TaskAdapter
    from worldloom.envs.wrappers import EnvAdapter, RawEnv

__all__ = [
    "VectorEnvError",
    "build_env",
    "build_tasks",
    "env_spec",
    "make_env",
    "make_raw",
    "probe_env",
    "probed",
]

logger = logging.getLogger(__name__)

SUITE_MODULES = {
    "gym": "gymnasium",
    "mujoco": "gymnasium",
    "atari": "atari",
    "dmc": "dmc",
    "crafter": "crafter",
    "toy": "toy",
    "module": "module",
    "rllib": "rllib",
    "rpc": "rpc",
}
"""Suite -> its module; one that is not here is a guest's."""


DRAWING = ("gymnasium", "module", "dmc", "guest")
"""Modules whose envs are told whether they will be asked for pictures."""


class VectorEnvError(ConfigurationError):
    """One env was wanted, and the callable makes a vector of them."""


def make_env(
    config: EnvConfig,
    *,
    num_envs: int = 1,
    seed: int,
    limits: EnvLimits | None = None,
    processes: bool = False,
    is_exact: bool = True,
    renders: bool = False,
    cycles: Sequence[Sequence[int]] | None = None,
) -> VectorEnv:
    """Build ``num_envs`` envs behind one row contract.

    Args:
        config: Which env; open settings take the suite's defaults.
        num_envs: How many.
        seed: Root of all their randomness.
        limits: Deadlines (for processes) and failures that are borne.
        processes: One supervised process per env, which can be killed when it hangs; otherwise all
            in this process. The ALE's own vector env (``config.ale_vector``) and a vector env of
            the user's are always in this process; the latter says so.
        is_exact: False when a vector env of the user's may hold another number of envs.
        renders: The envs will be asked for pictures (those in this process, one by one).
        cycles: Of several tasks, those that each env plays, one after the other; by default these
            envs share the list as if there were no others.

    Raises:
        ConfigurationError: If the env or a setting does not exist; offers the nearest one.
        MissingDependencyError: If a package is missing; says which line installs it.
    """
    if num_envs < 1:
        raise ConfigurationError(f"num_envs must be >= 1, got {num_envs}")
    config = probed(config)
    config = config if config.tasks else config.resolved()
    if config.tasks and cycles is None:
        cycles = turns(len(config.tasks), envs=range(num_envs), all_envs=num_envs)
    cycles = cycles or ()
    if config.ale_vector:
        from worldloom.envs.gym_vector import GymVectorAdapter
        from worldloom.envs.suites.atari import make_vector

        return GymVectorAdapter(
            make_vector(config, num_envs), config, num_envs, seed, applies_settings=True
        )
    if processes:
        from worldloom.envs.supervised import SupervisedVectorEnv

        try:
            return SupervisedVectorEnv(config, num_envs, seed, limits=limits, cycles=cycles)
        except VectorEnvError as error:
            logger.warning("%s; it steps in this process, as one", error)
    from worldloom.envs.local import LocalVectorEnv
    from worldloom.envs.wrappers import EnvAdapter, RawEnv

    built: list[EnvAdapter] = []
    if config.suite == "module":
        raw = make_raw(config, num_envs, renders)
        if not isinstance(raw, RawEnv):
            from worldloom.envs.gym_vector import GymVectorAdapter

            return GymVectorAdapter(raw, config, num_envs if is_exact else raw.num_envs, seed)
        built.append(EnvAdapter(raw, config))

    def build() -> EnvAdapter | TaskAdapter:
        """The env that had to be built to see what it is, then new ones."""
        if config.tasks:
            return build_tasks(config, renders=renders)
        return built.pop() if built else build_env(config, renders=renders)

    return LocalVectorEnv(build, num_envs, seed, limits=limits, cycles=cycles)


def env_spec(config: EnvConfig) -> EnvSpec:
    """What the env gives and takes; builds one and closes it again.

    Raises:
        ConfigurationError, MissingDependencyError: As :func:`make_env`.
    """
    return probe_env(config)[0]


def probe_env(config: EnvConfig) -> tuple[EnvSpec, int | None]:
    """As :func:`env_spec`, and from the same env how many envs a vector env of the user's holds,
    whatever number is asked for.

    Returns:
        The spec, and that number; None for every other env.
    """
    config = probed(config)
    if config.tasks:
        return joined_spec(config), None
    with kept(config.env):
        env = make_env(config, seed=0, is_exact=False)
        env.close()
    return env.spec, env.num_envs if env.num_envs > 1 else None


def _look(config: EnvConfig) -> tuple[EnvConfig, EnvSpec, int | None]:
    alone = config.resolved()
    return alone, *probe_env(alone)


def probed(
    config: EnvConfig,
    look: Callable[[EnvConfig], tuple[EnvConfig, EnvSpec, int | None]] = _look,
) -> EnvConfig:
    """A list of tasks with what each of them gives and takes; the env of one that is not known yet
    is built once.

    Args:
        config: Whose ``env`` names a list; another is returned as it is, and of a list of one
            that env.
        look: Resolves the settings of one task as they were typed, and says what
            :func:`probe_env` does of its env.

    Raises:
        ConfigurationError, MissingDependencyError: As :func:`make_env`; also if a task cannot be
            one of several.
    """
    if config.suite != TASKS_SUITE:
        return config
    config = config if config.tasks else with_tasks(config)
    if has_sizes(config):  # also a list of one, which is that env
        return config
    tasks: dict[str, Any] = {}
    for (name, entry), part in zip(config.tasks.items(), config.parts(), strict=True):
        if OBS in entry:
            tasks[name] = entry
            continue
        alone, spec, size = look(part)
        if size is not None:
            raise ConfigurationError(
                f"env: task {name!r} ({part.env}) is a vector env of {size} envs, and several "
                "tasks are played one env at a time; leave it out"
            )
        tasks[name] = task_of(name, entry, alone, spec).to_dict()
    return dataclasses.replace(config, tasks=tasks)


def build_tasks(config: EnvConfig, *, renders: bool = False) -> TaskAdapter:
    """One env that plays several tasks, from a config that :func:`probed` knows.

    Raises:
        ConfigurationError, MissingDependencyError: As :func:`make_env`.
    """
    from worldloom.envs.task_adapter import TaskAdapter

    return TaskAdapter(config, partial(build_env, renders=renders))


def build_env(config: EnvConfig, *, renders: bool = False) -> EnvAdapter:
    """One env, adapted, from a resolved config of one task.

    Raises:
        ConfigurationError, MissingDependencyError: As :func:`make_env`.
    """
    from worldloom.envs.wrappers import EnvAdapter, RawEnv

    raw = make_raw(config, 1, renders)
    if not isinstance(raw, RawEnv):
        raw.close()
        raise VectorEnvError(
            f"env {config.env!r} is a vector env, which cannot be split into supervised processes"
        )
    return EnvAdapter(raw, config)


def make_raw(
    config: EnvConfig, num_envs: int, renders: bool = False
) -> RawEnv | GymVectorEnv[Any, Any, Any]:
    """One env, or a vector env of the user's, as its suite makes it from a resolved config: nothing
    of ours is around it.

    Raises:
        ConfigurationError, MissingDependencyError: As :func:`make_env`.
        EnvBuildError: If the env's own code raises.
    """
    if config.is_none:
        raise ConfigurationError(
            "env 'none' is for offline training and has nothing to step; name an "
            "env, for example gym:Pendulum-v1"
        )
    if config.suite == TASKS_SUITE:
        raise ConfigurationError(f"env {config.env!r} names several tasks; name one of them")
    module = SUITE_MODULES.get(config.suite, "guest")
    suite: Any = importlib.import_module(f"worldloom.envs.suites.{module}")
    options: dict[str, Any] = {"renders": renders} if module in DRAWING else {}
    raw: RawEnv | GymVectorEnv[Any, Any, Any]
    with Surroundings(config.env), foreign_code(config, "built"):
        raw = (
            suite.make(config, num_envs, **options)
            if config.suite == "module"
            else suite.make(config, **options)
        )
    return raw
