"""One env that plays several tasks in turn, an episode of each, behind padded vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from worldloom.core.exceptions import (
    ConfigurationError,
    EnvFailureError,
    MissingDependencyError,
    ShapeMismatchError,
    StateError,
)
from worldloom.core.specs import ACTION, OBS, TASK, EnvSpec, TaskSpec
from worldloom.envs.building import FOREIGN_ERRORS, EnvBuildError, error_text
from worldloom.envs.config import EnvConfig
from worldloom.envs.tasks import joined_spec, next_place
from worldloom.envs.vector import env_seed
from worldloom.envs.wrappers import EnvAdapter

__all__ = ["PaddedActions", "TaskAdapter"]


class PaddedActions:
    """Padded actions as the adapter takes them: the very array.

    Args:
        size: Of the padded vector.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, action: Mapping[str, np.ndarray], lead: tuple[int, ...] = ()) -> np.ndarray:
        """The vector of one action (with the leading axes ``lead``).

        Raises:
            ShapeMismatchError: If it has another shape.
        """
        if ACTION not in action:
            raise ShapeMismatchError("keys of an action", [ACTION], sorted(action))
        value = np.asarray(action[ACTION])
        if value.shape != (*lead, self._size):
            raise ShapeMismatchError(f"action {ACTION!r}", (*lead, self._size), value.shape)
        return value

    def rows(self, action: Mapping[str, np.ndarray], count: int) -> Sequence[Any]:
        """``[count, size]`` actions, one per row."""
        return self(action, (count,))  # type: ignore[return-value]


class TaskAdapter:
    """As :class:`~worldloom.envs.wrappers.EnvAdapter`, for the tasks of a list.

    The env of a task is built when its turn first comes, and kept.

    Args:
        config: With tasks whose sizes are known.
        build: Makes the env of one task from its resolved settings.

    Attributes:
        check_finite: Look for NaN in every observation; False when the caller does.
    """

    def __init__(self, config: EnvConfig, build: Callable[[EnvConfig], EnvAdapter]) -> None:
        self.spec: EnvSpec = joined_spec(config)
        self.check_finite = True
        size = self.spec.action[ACTION].size
        self.map_action = PaddedActions(size)
        self._build = build
        self._parts = config.parts()
        self._envs: dict[int, EnvAdapter] = {}
        self._cycle: tuple[int, ...] = tuple(range(len(self._parts)))
        self._place = 0
        self._seed: int | None = None
        self._seeded: set[int] = set()

    @property
    def task(self) -> int:
        """The task that is played, or that could not be."""
        return self._cycle[self._place]

    def take_turns(self, cycle: Sequence[int]) -> None:
        """Play these tasks, one after the other; builds the env of the first one.

        Raises:
            ConfigurationError: If it cannot be built, or is another than it was.
        """
        self._cycle = tuple(cycle)
        self._place = 0
        self._inner(self._cycle[0])

    def reset(self, seed: int | None = None) -> dict[str, np.ndarray]:
        """Start an episode of the next task; with a seed, of one that the seed says."""
        self._place = next_place(self._cycle, self._place, seed)
        if seed is not None:
            self._seed = seed
            self._seeded = set()
        task = self._cycle[self._place]
        own = None
        if self._seed is not None and task not in self._seeded:
            own = env_seed(self._seed, task)
        self._seeded.add(task)
        try:
            return self._padded(self._inner(task).reset(own))
        except FOREIGN_ERRORS as error:  # the edge of foreign code
            self._raise_named(task, error)

    def step(
        self, action: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], float, bool, bool]:
        """As :meth:`EnvAdapter.step`, with a padded action."""
        return self.step_native(self.map_action(action))

    def step_native(self, native: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool]:
        """As :meth:`step`, with the padded vector itself."""
        index = self._cycle[self._place]
        env = self._envs[index]
        action: dict[str, np.ndarray] = {}
        start = 0
        for key, size in self.spec.tasks[index].action:
            shape = env.spec.action[key].shape
            action[key] = native[start : start + size].reshape(shape)
            start += size
        try:
            obs, reward, terminated, truncated = env.step(action)
        except FOREIGN_ERRORS as error:  # the edge of foreign code
            self._raise_named(index, error)
        return self._padded(obs), reward, terminated, truncated

    def get_state(self) -> dict[str, Any] | None:
        """Everything that decides what happens next, or None when an env cannot tell."""
        names = {index: self.spec.tasks[index].name for index in self._seeded}
        states = {name: self._envs[index].get_state() for index, name in names.items()}
        if any(state is None for state in states.values()):
            return None
        current = self.spec.tasks[self._cycle[self._place]].name
        return {"task": current, "seed": self._seed, "envs": states}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`get_state`.

        Raises:
            StateError: If the task that was played is none of this env's any more.
        """
        numbers = {self.spec.tasks[index].name: index for index in self._cycle}
        if state.get("task") not in numbers:
            raise StateError(
                f"this env of {self.spec.name!r} plays {', '.join(numbers)} now, and played "
                f"{state.get('task')!r}"
            )
        self._seed = None if state["seed"] is None else int(state["seed"])
        self._seeded = set()
        for name, saved in state["envs"].items():
            if name in numbers:
                self._inner(numbers[name]).set_state(saved)
                self._seeded.add(numbers[name])
        self._place = self._cycle.index(numbers[state["task"]])

    def render(self) -> Any:
        """What the env of the present task renders."""
        return self._inner(self._cycle[self._place]).render()

    def close(self) -> None:
        """Close every env, also when closing one of them fails."""
        envs = list(self._envs.values())
        self._envs = {}
        failed: BaseException | None = None
        for env in envs:
            try:
                env.close()
            except BaseException as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _raise_named(self, index: int, error: BaseException) -> NoReturn:
        """Raise what an env raised, with the name of its task."""
        said = f"task {self.spec.tasks[index].name!r}: {error_text(error)}"
        if isinstance(error, EnvBuildError):
            raise EnvBuildError(said) from error
        if isinstance(error, ConfigurationError | MissingDependencyError):
            raise error
        raise EnvFailureError(said) from error

    def _inner(self, index: int) -> EnvAdapter:
        """The env of a task, built when it is first asked for."""
        if index not in self._envs:
            env = self._build(self._parts[index])
            env.check_finite = False  # the padded vector is looked at
            _check_sizes(self.spec.tasks[index], env)
            self._envs[index] = env
        self._envs[index].check_finite = self.check_finite
        return self._envs[index]

    def _padded(self, obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        index = self._cycle[self._place]
        row = self.spec.obs[OBS].zeros()
        start = 0
        for key, size in self.spec.tasks[index].obs:
            row[start : start + size] = obs[key].reshape(-1)
            start += size
        return {OBS: row, TASK: np.int32(index)}  # type: ignore[dict-item]


def _check_sizes(task: TaskSpec, env: EnvAdapter) -> None:
    """Refuse an env that is another one than the run has begun with.

    Raises:
        ConfigurationError: Names the task, the array and both sizes.
    """
    pairs = ((OBS, task.obs, env.spec.obs), (ACTION, task.action, env.spec.action))
    for what, sizes, arrays in pairs:
        then = dict(sizes)
        now = {key: array.size for key, array in arrays.items()}
        if then != now:
            env.close()
            key = next(k for k in {**then, **now} if then.get(k) != now.get(k))
            raise ConfigurationError(
                f"env: task {task.name!r} ({task.env}) had {then.get(key)} numbers in {what} "
                f"{key!r}, and has {now.get(key)} here; install the version of its package that "
                "the run began with"
            )
