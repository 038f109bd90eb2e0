"""Envs in this process, one after the other, with failing ones rebuilt."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from worldloom.core.exceptions import (
    ConfigurationError,
    EnvFailureError,
    MissingDependencyError,
    StateError,
)
from worldloom.core.specs import TASK, EnvSpec, all_finite
from worldloom.envs.building import FOREIGN_ERRORS, EnvBuildError, error_text
from worldloom.envs.config import EnvLimits
from worldloom.envs.faults import EnvFault, FailureTracker
from worldloom.envs.spaces import not_finite
from worldloom.envs.surroundings import Surroundings
from worldloom.envs.vector import EnvStep, env_seed
from worldloom.envs.wrappers import EnvAdapter

if TYPE_CHECKING:
    from worldloom.envs.task_adapter import TaskAdapter

__all__ = ["LocalVectorEnv"]

logger = logging.getLogger(__name__)


class LocalVectorEnv:
    """Envs in this process, one after the other.

    A failing env is closed and built again, after a growing pause when it fails often; the others
    go on meanwhile. What a process boundary is needed for (hangs, crashes of the interpreter) is
    ``envs.supervised``.

    Args:
        build: Makes one env.
        num_envs: How many.
        seed: Root of the envs' seeds.
        limits: Failures that are borne.
        cycles: Of several tasks, those that each env plays in turn; empty for one task.
        clock, sleep: Monotonic seconds, and how to wait when no env can be stepped.
    """

    has_deadlines = False
    patience_s = float("inf")

    def __init__(
        self,
        build: Callable[[], EnvAdapter | TaskAdapter],
        num_envs: int,
        seed: int,
        *,
        limits: EnvLimits | None = None,
        cycles: Sequence[Sequence[int]] = (),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._build = build
        self._cycles = [tuple(cycle) for cycle in cycles]
        self._seed = seed
        self._sleep = sleep
        self._book = FailureTracker(limits or EnvLimits(), num_envs, clock)
        first = self._made(0)
        self.spec: EnvSpec = first.spec
        self._map_action = first.map_action
        self._actions_differ = False
        others = [self._build_one(index) for index in range(1, num_envs)]
        self._envs: list[EnvAdapter | TaskAdapter | None] = [first, *others]
        self._ended = [False] * num_envs
        self._rebuilds = [0] * num_envs
        self._started = False
        self.num_envs = num_envs
        self._surroundings = Surroundings(self.spec.name)
        self._surroundings_of_step = Surroundings(self.spec.name, is_quick=True)
        self._blank = EnvStep.blank(self.spec, num_envs)
        self._float_keys = [key for key, array in self.spec.obs.items() if array.dtype != "uint8"]

    def reset(self, seed: int | None = None) -> EnvStep:
        """Start a new episode everywhere (see :class:`VectorEnv`)."""
        reseed = seed is not None or not self._started
        if seed is not None:
            self._seed = seed
            self._rebuilds = [0] * self.num_envs
        self._started = True

        def start(row: EnvStep, index: int, env: EnvAdapter | TaskAdapter) -> None:
            """Begin an episode of one env."""
            row.put_first(index, env.reset(env_seed(self._seed, index) if reseed else None))

        with self._surroundings:
            return self._sweep(start)

    def step(self, action: Mapping[str, np.ndarray]) -> EnvStep:
        """Act (see :class:`VectorEnv`)."""
        if not self._started:
            raise StateError("step was called before reset")
        native = self._native(action)

        def advance(row: EnvStep, index: int, env: EnvAdapter | TaskAdapter) -> None:
            """Step one env, or begin its next episode."""
            if self._ended[index]:
                row.put_first(index, env.reset())
            else:
                row.put(index, *env.step_native(native[index]))

        with self._surroundings if True in self._ended else self._surroundings_of_step:
            return self._sweep(advance)

    def state(self) -> list[Any] | None:
        """The state of every env (see :class:`VectorEnv`)."""
        states = [None if env is None else env.get_state() for env in self._envs]
        if any(state is None for state in states):
            return None
        return [
            {"adapter": state, "ended": ended}
            for state, ended in zip(states, self._ended, strict=True)
        ]

    def set_state(self, state: Sequence[Any]) -> None:
        """Inverse of :meth:`state`."""
        for index, saved in enumerate(state):
            env = self._envs[index] or self._build_one(index)
            env.set_state(saved["adapter"])
            self._envs[index] = env
            self._ended[index] = bool(saved["ended"])
        self._started = True

    def render(self, index: int) -> Any:
        """What one env draws, None when there is nothing."""
        env = self._envs[index]
        return None if env is None else env.render()

    def drain_faults(self) -> list[EnvFault]:
        """Failures since the last call."""
        return self._book.drain()

    def close(self) -> None:
        """Close every env."""
        for index, env in enumerate(self._envs):
            self._envs[index] = None
            with self._surroundings:
                error = None if env is None else _close(env)
            if error is not None:
                logger.warning(
                    "env %d of %s could not be closed: %s: %s",
                    index,
                    self.spec.name,
                    type(error).__name__,
                    error,
                )

    def _sweep(self, advance: Callable[[EnvStep, int, EnvAdapter | TaskAdapter], None]) -> EnvStep:
        """Advance each env once, at least one of them for real."""
        row = self._blank.copy()
        for index, env in enumerate(self._envs):
            try:
                if env is not None:
                    advance(row, index, env)
                elif self._book.wait_s(index) == 0:
                    self._rebuild(row, index)
            except EnvBuildError as error:  # it could be built before
                self._fail(row, index, error)
            except (ConfigurationError, MissingDependencyError):
                raise
            # the edge of foreign code: any failure costs this env only
            except FOREIGN_ERRORS as error:
                self._fail(row, index, error)
        while (broken := self._not_finite(row)) is not None:
            index, key = broken
            why = not_finite(key, row.obs[key][index])
            if self.spec.tasks:
                why = f"task {self.spec.tasks[int(row.obs[TASK][index])].name!r}: {why}"
            self._fail(row, index, EnvFailureError(why))
        if True not in row.live.tolist():
            self._sleep(min(self._book.wait_s(index) for index in range(self.num_envs)))
            return self._sweep(advance)
        self._ended = row.is_last.tolist()
        return row

    def _not_finite(self, row: EnvStep) -> tuple[int, str] | None:
        """The first env and key with a NaN or infinity; looked for in all rows at once, because
        that is cheaper.
        """
        for key in self._float_keys:
            if not all_finite(row.obs[key]):
                return int(np.argwhere(~np.isfinite(row.obs[key]))[0, 0]), key
        return None

    def _native(self, action: Mapping[str, np.ndarray]) -> Sequence[Any]:
        """Every env's action in its own space; mapped at once where all have the same one."""
        if not self._actions_differ:
            return self._map_action.rows(action, self.num_envs)
        return [
            None
            if env is None
            else env.map_action.rows({k: v[[index]] for k, v in action.items()}, 1)[0]
            for index, env in enumerate(self._envs)
        ]

    def _made(self, index: int) -> EnvAdapter | TaskAdapter:
        env: Any = self._build()
        env.check_finite = False
        if self._cycles:
            env.take_turns(self._cycles[index])
        return env  # type: ignore[no-any-return]

    def _build_one(self, index: int) -> EnvAdapter | TaskAdapter:
        env = self._made(index)
        mine, other = _shapes(self.spec), _shapes(env.spec)
        if mine != other:
            _close(env)
            key = next(key for key in mine | other if mine.get(key) != other.get(key))
            raise ConfigurationError(
                f"env {self.spec.name!r} is built with {key} {mine.get(key)} once and "
                f"{other.get(key)} another time; all envs of a run must have the same arrays"
            )
        if env.spec.spaces.get("action") != self.spec.spaces.get("action"):  # other bounds
            self._actions_differ = True
        return env

    def _rebuild(self, row: EnvStep, index: int) -> None:
        self._rebuilds[index] += 1
        env = self._envs[index] = self._build_one(index)
        row.put_first(index, env.reset(env_seed(self._seed, index, self._rebuilds[index])))

    def _fail(self, row: EnvStep, index: int, error: BaseException) -> None:
        broken = self._envs[index]
        self._envs[index] = None
        row.clear(index)
        if broken is not None:
            _close(broken)  # it may fail at anything, and is thrown away in either case
        self._record(index, broken, error_text(error))
        if self._book.wait_s(index) == 0:
            try:
                self._rebuild(row, index)
            # the same edge; its back-off is longer now, so this ends
            except FOREIGN_ERRORS as again:
                self._fail(row, index, again)

    def _record(self, index: int, broken: EnvAdapter | TaskAdapter | None, why: str) -> None:
        """Enter a failure; of several tasks, one that fails again and again is left out."""
        if not self._cycles:
            self._book.record(index, "raised", why)
            return
        cycle = self._cycles[index]
        task: int = cycle[0] if broken is None else broken.task  # type: ignore[union-attr]
        names = [one.name for one in self.spec.tasks]
        plays_others = len(cycle) > 1
        lost = self._book.record(index, "raised", why, names[task], plays_others=plays_others)
        self._cycles[index] = tuple(one for one in cycle if names[one] != lost)


def _close(env: EnvAdapter | TaskAdapter) -> BaseException | None:
    """Close an env; returns what went wrong."""
    try:
        env.close()
    except FOREIGN_ERRORS as error:  # the edge of foreign code
        return error
    return None


def _shapes(spec: EnvSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (array.shape, array.dtype) for name, array in spec.columns().items()}
