"""Many envs behind one contract: every step gives exactly one row per env, ready to be stored.

After a row with ``terminated`` or ``truncated`` (it holds the true final observation) the next
``step`` ignores that env's action and gives the reset row of its next episode (Gymnasium's
NEXT_STEP). A row with ``live`` False is no row: the env is being rebuilt, waits, or is in
quarantine. No one stores it, and no carry advances by it. After a failure the next live row of that
env is ``is_first``; the broken episode has no last row.

Needs no gymnasium, so that a process whose envs live in other processes never imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from worldloom.core.specs import EnvSpec
from worldloom.envs.faults import EnvFault

__all__ = ["EnvStep", "RandomActions", "VectorEnv", "env_seed", "sample_actions"]

STEPS_AHEAD = 64
"""For how many steps random actions are drawn at once."""


@dataclass(slots=True)
class EnvStep:
    """One row of every env; the arrays belong to the caller.

    Attributes:
        obs: Per key ``[N, ...]``.
        reward: ``[N]`` float32, received on arrival at this row, 0 where ``is_first``.
        is_first, terminated, truncated: ``[N]`` bool.
        live: ``[N]`` bool, False where there is no row (zeros, and ``is_first`` so that it does no
            harm).
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

    def copy(self) -> EnvStep:
        """The same rows in arrays of their own."""
        obs = {key: array.copy() for key, array in self.obs.items()}
        flags = (
            self.is_first.copy(),
            self.terminated.copy(),
            self.truncated.copy(),
            self.live.copy(),
        )
        return EnvStep(obs, self.reward.copy(), *flags)

    @property
    def is_last(self) -> np.ndarray:
        """``[N]`` bool: the episode ends with this row."""
        ended: np.ndarray = self.terminated | self.truncated
        return ended

    def put_first(self, env: int, obs: Mapping[str, np.ndarray]) -> None:
        """Enter a reset row."""
        self.put(env, obs, 0.0, terminated=False, truncated=False)
        self.is_first[env] = True

    def put(
        self,
        env: int,
        obs: Mapping[str, np.ndarray],
        reward: float,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Enter the row that an action led to."""
        for key, array in self.obs.items():
            array[env] = obs[key]
        self.live[env] = True
        self.is_first[env] = False
        self.reward[env] = reward
        if terminated or truncated:
            self.terminated[env] = terminated
            self.truncated[env] = truncated

    def clear(self, env: int) -> None:
        """Take a row back: there is none."""
        for array in self.obs.values():
            array[env] = 0
        self.reward[env] = 0
        self.terminated[env] = self.truncated[env] = self.live[env] = False
        self.is_first[env] = True


class VectorEnv(Protocol):
    """N envs; used by one thread.

    Attributes:
        spec: What each env gives and takes.
        num_envs: N.
        has_deadlines: True when an env that hangs is ended here; False when someone else has to
            end this process.
        patience_s: How long ``step`` waits for a row while no env can give one (all are late, or
            being rebuilt); infinite at first. When it is over, no row is live. Without deadlines
            there is no such wait to cut short.
    """

    spec: EnvSpec
    num_envs: int
    has_deadlines: bool
    patience_s: float

    def reset(self, seed: int | None = None) -> EnvStep:
        """Start a new episode everywhere; every row is ``is_first``. With a seed, everything that
        follows depends on it alone.
        """

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


def sample_actions(
    spec: EnvSpec, generators: Sequence[np.random.Generator]
) -> dict[str, np.ndarray]:
    """Uniformly random actions ``[N, ...]``, row i drawn from ``generators[i]`` alone."""
    return {key: block[0] for key, block in _draw(spec, generators, 1).items()}


class RandomActions:
    """What :func:`sample_actions` gives step after step, each env with a generator of its own; used
    by one thread.

    Drawn for many steps at once, which gives the same numbers in a fraction of the time.

    Args:
        spec: Which actions.
        num_envs: N.
        seed: Root of the generators.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, seed: int) -> None:
        self._spec = spec
        self._generators = [
            np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(num_envs)
        ]
        self._blocks: dict[str, np.ndarray] = {}
        self._left = 0

    def __call__(self) -> dict[str, np.ndarray]:
        """The actions of the next step, per key ``[N, ...]``."""
        if not self._left:
            self._blocks = _draw(self._spec, self._generators, STEPS_AHEAD)
            self._left = STEPS_AHEAD
        step = STEPS_AHEAD - self._left
        self._left = self._left - 1
        return {key: block[step] for key, block in self._blocks.items()}

    def states(self) -> list[dict[str, Any]]:
        """The state of every generator after the steps that were asked for; what was drawn ahead is
        given back.
        """
        unused = self._left * sum(array.size for array in self._spec.action.values())
        self._left = 0
        for generator in self._generators:
            generator.bit_generator.advance(-unused)  # type: ignore[attr-defined]  # PCG64 has it
        return [dict(generator.bit_generator.state) for generator in self._generators]

    def set_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Inverse of :meth:`states`."""
        self._left = 0
        for generator, state in zip(self._generators, states, strict=True):
            generator.bit_generator.state = state


def _draw(
    spec: EnvSpec, generators: Sequence[np.random.Generator], steps: int
) -> dict[str, np.ndarray]:
    """Uniformly random actions ``[steps, N, ...]``."""
    sizes = [array.size for array in spec.action.values()]
    uniform = np.empty((len(generators), steps, sum(sizes)))
    for own, generator in zip(uniform, generators, strict=True):
        generator.random(out=own)
    result = {}
    start = 0
    for (key, array), size in zip(spec.action.items(), sizes, strict=True):
        part = uniform[..., start : start + size].swapaxes(0, 1).reshape(steps, -1, *array.shape)
        part = (
            np.floor(part * np.reshape(array.num_classes, array.shape))
            if array.is_discrete
            else part * 2 - 1
        )
        result[key] = part.astype(array.dtype, order="C")
        start += size
    return result
