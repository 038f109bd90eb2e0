"""Many envs behind one contract: every step gives exactly one row per env, ready to be stored.

After a row with ``terminated`` or ``truncated`` (it holds the true final observation) the next ``step`` ignores that env's
action and gives the reset row of its next episode (Gymnasium's NEXT_STEP). A row with ``live`` False is no row: the env is
being rebuilt, waits, or is in quarantine. Nobody stores it, and no carry advances by it. After a failure the next live row of
that env is ``is_first``; the broken episode has no last row.

Needs no gymnasium, so that a process whose envs live in other processes never imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from worldloom.core.specs import EnvSpec
from worldloom.envs.faults import EnvFault

__all__ = ["EnvStep", "VectorEnv", "env_seed", "sample_actions"]


@dataclass(slots=True)
class EnvStep:
    """One row of every env; the arrays belong to the caller.

    Attributes:
        obs: Per key ``[N, ...]``.
        reward: ``[N]`` float32, received on arrival at this row, 0 where ``is_first``.
        is_first, terminated, truncated: ``[N]`` bool.
        live: ``[N]`` bool, False where there is no row (zeros, and ``is_first`` so that it does no harm).
    """

    obs: dict[str, np.ndarray]
    reward: np.ndarray
    is_first: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    live: np.ndarray

    @classmethod
    def blank(cls, spec: EnvSpec, num_envs: int) -> EnvStep:
        """No row for any env."""
        obs = {key: array.zeros(num_envs) for key, array in spec.obs.items()}
        flags = (np.ones(num_envs, bool), *(np.zeros(num_envs, bool) for _ in range(3)))
        return cls(obs, np.zeros(num_envs, np.float32), *flags)

    @property
    def is_last(self) -> np.ndarray:
        """``[N]`` bool: the episode ends with this row."""
        ended: np.ndarray = self.terminated | self.truncated
        return ended

    def put_first(self, env: int, obs: Mapping[str, np.ndarray]) -> None:
        """Enter a reset row."""
        self._put(env, obs)
        self.is_first[env] = True

    def put(self, env: int, obs: Mapping[str, np.ndarray], reward: float, terminated: bool, truncated: bool) -> None:
        """Enter the row that an action led to."""
        self._put(env, obs)
        self.is_first[env], self.reward[env] = False, reward
        self.terminated[env], self.truncated[env] = terminated, truncated

    def clear(self, env: int) -> None:
        """Take a row back: there is none."""
        for array in self.obs.values():
            array[env] = 0
        self.reward[env] = 0
        self.terminated[env] = self.truncated[env] = self.live[env] = False
        self.is_first[env] = True

    def _put(self, env: int, obs: Mapping[str, np.ndarray]) -> None:
        for key, array in self.obs.items():
            array[env] = obs[key]
        self.live[env] = True


class VectorEnv(Protocol):
    """N envs; used by one thread.

    Attributes:
        spec: What each env gives and takes.
        num_envs: N.
        has_deadlines: True when an env that hangs is ended here; False when somebody else has to end this process.
    """

    spec: EnvSpec
    num_envs: int
    has_deadlines: bool

    def reset(self, seed: int | None = None) -> EnvStep:
        """Start a new episode everywhere; every row is ``is_first``. With a seed, everything that follows depends on it alone."""

    def step(self, action: Mapping[str, np.ndarray]) -> EnvStep:
        """Act, per key ``[N, ...]``.

        Raises:
            EnvFailureError: If every env is in quarantine.
        """

    def state(self) -> list[Any] | None:
        """The state of every env for an exact resume, or None when one of them cannot tell."""

    def set_state(self, state: Sequence[Any]) -> None:
        """Inverse of :meth:`state`; the next call is ``step``."""

    def drain_faults(self) -> list[EnvFault]:
        """Failures since the last call."""

    def close(self) -> None:
        """Close every env."""


def env_seed(seed: int, env: int, rebuild: int = 0) -> int:
    """The seed of env number ``env`` after it was rebuilt ``rebuild`` times."""
    return int(np.random.SeedSequence(seed, spawn_key=(env, rebuild)).generate_state(1)[0])


def sample_actions(spec: EnvSpec, generators: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
    """Uniformly random actions ``[N, ...]``, row i drawn from ``generators[i]`` alone."""
    sizes = [array.size for array in spec.action.values()]
    uniform = np.empty((len(generators), sum(sizes)))
    for row, rng in enumerate(generators):
        rng.random(out=uniform[row])
    result, start = {}, 0
    for (key, array), size in zip(spec.action.items(), sizes, strict=True):
        part = uniform[:, start : start + size].reshape(-1, *array.shape)
        start += size
        if array.is_discrete:
            part = np.floor(part * np.reshape(array.num_classes, array.shape))
        else:
            part *= 2  # in place: the numbers are nobody else's
            part -= 1
        result[key] = part.astype(array.dtype)
    return result
