"""Three small environments of our own: one that proves the time index, one to solve by state, one
to solve by sight.

All of them are deterministic given the seed, cheap, and can be saved and restored exactly
(``worldloom_get_state`` and ``worldloom_set_state``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

__all__ = ["TOYS", "CountingEnv", "MirrorEnv", "PixelToyEnv", "PointEnv"]

Info = dict[str, Any]


class _ToyEnv(gymnasium.Env[np.ndarray, Any], ABC):
    """What the toys share: their random generator is part of their state."""

    may_terminate = True
    episode_limit: int | None = None

    def worldloom_get_state(self) -> dict[str, Any]:
        """Everything that decides what happens next."""
        return {"rng": self.np_random.bit_generator.state, **self._variables()}

    def worldloom_set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`worldloom_get_state`."""
        self.np_random.bit_generator.state = state["rng"]
        self._restore({name: value for name, value in state.items() if name != "rng"})

    @abstractmethod
    def _variables(self) -> dict[str, Any]:
        """What a toy remembers beside its generator; every toy says its own."""

    @abstractmethod
    def _restore(self, variables: Mapping[str, Any]) -> None:
        """Inverse of :meth:`_variables`."""


class CountingEnv(_ToyEnv):
    """Observes its own counters, so that any stored row proves where it belongs.

    ``obs = [episode, step, a]``: the episode's number since the env was seeded, the step's number
    inside the episode, and the first component of the action that led here (0 after a reset). The
    reward is the step's number. Episode ``e`` has ``LENGTHS[e % 5]`` decisions and ends by
    termination when ``e`` is even, by truncation when it is odd.

    Example:
        >>> env = CountingEnv()
        >>> env.reset(seed=0)[0].tolist()
        [0.0, 0.0, 0.0]
        >>> obs, reward, *_ = env.step(np.array([0.5, 0.0]))
        >>> obs.tolist(), reward
        ([0.0, 1.0, 0.5], 1.0)
    """

    LENGTHS = (5, 1, 3, 8, 2)
    metadata: dict[str, Any] = {}  # noqa: RUF012 - the base class declares it so
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self) -> None:
        self._episode = -1
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[np.ndarray, Info]:
        """Begin the next episode; with a seed, episode 0."""
        super().reset(seed=seed)
        self._episode = 0 if seed is not None else self._episode + 1
        self._step = 0
        return self._observe(0.0), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Count."""
        self._step += 1
        is_last = self._step >= self.LENGTHS[self._episode % len(self.LENGTHS)]
        terminates = self._episode % 2 == 0
        return (
            self._observe(float(action[0])),
            float(self._step),
            is_last and terminates,
            is_last and not terminates,
            {},
        )

    def _observe(self, action: float) -> np.ndarray:
        return np.array([self._episode, self._step, action], np.float32)

    def _variables(self) -> dict[str, Any]:
        return {"episode": self._episode, "step": self._step}

    def _restore(self, variables: Mapping[str, Any]) -> None:
        self._episode = int(variables["episode"])
        self._step = int(variables["step"])


class PointEnv(_ToyEnv):
    """Steer a point to a goal in the plane.

    ``obs = [x, y, goal_x - x, goal_y - y]``; the action is a velocity in [-1, 1]^2, of which a
    tenth is moved per step. The reward is 1 at the goal and falls to 0 at distance 1. Episodes are
    truncated after 40 decisions. Going straight to the goal gives about 32 on average, a random
    policy about 8.
    """

    metadata: dict[str, Any] = {}  # noqa: RUF012 - the base class declares it so
    observation_space = spaces.Box(-4.0, 4.0, (4,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    may_terminate = False
    episode_limit = 40

    def __init__(self) -> None:
        self._place = np.zeros(2)
        self._goal = np.zeros(2)
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[np.ndarray, Info]:
        """Draw a start and a goal."""
        super().reset(seed=seed)
        self._place, self._goal, self._step = (
            self.np_random.uniform(-1, 1, 2),
            self.np_random.uniform(-1, 1, 2),
            0,
        )
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Move."""
        self._place = np.clip(self._place + 0.1 * np.clip(action, -1, 1), -1.5, 1.5)
        self._step += 1
        reward = max(0.0, 1.0 - float(np.linalg.norm(self._goal - self._place)))
        return self._observe(), reward, False, self._step >= 40, {}

    def _observe(self) -> np.ndarray:
        return np.concatenate([self._place, self._goal - self._place]).astype(np.float32)

    def _variables(self) -> dict[str, Any]:
        return {"place": self._place.copy(), "goal": self._goal.copy(), "step": self._step}

    def _restore(self, variables: Mapping[str, Any]) -> None:
        self._place = np.array(variables["place"])
        self._goal = np.array(variables["goal"])
        self._step = int(variables["step"])


class MirrorEnv(PointEnv):
    """:class:`PointEnv` in which the point moves against the action.

    It looks like the other one, so an agent of both must be told which one it plays.
    """

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Move the other way."""
        return super().step(-np.asarray(action))


class PixelToyEnv(_ToyEnv):
    """Walk a white square onto the red square and keep off the blue one. Only the 64 x 64 RGB image
    tells where they are.

    Five actions: stay, up, down, left, right, on a 2 x 2 board; its edge stops. Reaching red gives
    1, reaching blue -1. The image then shows white inside the colour; on the next step white rests,
    and both colours move to other cells. Episodes are truncated after 40 decisions. The shortest
    way past blue scores about 17 on average. An agent that does not look scores 0 on average,
    whatever the plan, because red and blue are drawn alike.
    """

    SIDE = 2
    CELL = 30
    MARGIN = 2
    INSET = 8
    LIMIT = 40
    MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
    REWARDS = (1.0, -1.0)
    COLOURS = ((255, 255, 255), (230, 40, 40), (40, 40, 230))
    metadata: dict[str, Any] = {}  # noqa: RUF012 - the base class declares it so
    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = spaces.Discrete(5)
    may_terminate = False
    episode_limit = LIMIT

    def __init__(self) -> None:
        self._cells = np.zeros((3, 2), np.int64)
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[np.ndarray, Info]:
        """Put the three squares on different cells."""
        super().reset(seed=seed)
        self._cells = self._draw_cells(3)
        self._step = 0
        return self._draw(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Move one cell, or rest and see the colours move."""
        self._step += 1
        reward = 0.0
        if self._touched() is not None:
            self._cells[1:] = self._draw_cells(2, free_of=self._cells[0])
        else:
            self._cells[0] = np.clip(self._cells[0] + self.MOVES[int(action)], 0, self.SIDE - 1)
            touched = self._touched()
            reward = 0.0 if touched is None else self.REWARDS[touched]
        return self._draw(), reward, False, self._step >= self.LIMIT, {}

    def _touched(self) -> int | None:
        """Which colour white is on: 0 red, 1 blue."""
        found = np.nonzero((self._cells[1:] == self._cells[0]).all(1))[0]
        return int(found[0]) if len(found) else None

    def _draw_cells(self, count: int, free_of: np.ndarray | None = None) -> np.ndarray:
        """``count`` different cells at random, none of them ``free_of``. [count, 2]."""
        places = np.arange(self.SIDE**2)
        if free_of is not None:
            places = places[places != free_of[0] * self.SIDE + free_of[1]]
        drawn = self.np_random.choice(places, count, replace=False)
        return np.stack([drawn // self.SIDE, drawn % self.SIDE], axis=1)

    def _draw(self) -> np.ndarray:
        image = np.zeros((64, 64, 3), np.uint8)
        for which in (2, 1, 0):
            inset = 0 if which else self.INSET
            top, left = (self.MARGIN + self.CELL * self._cells[which] + inset).tolist()
            side = self.CELL - 2 * inset
            image[top : top + side, left : left + side] = self.COLOURS[which]
        return image

    def _variables(self) -> dict[str, Any]:
        return {"cells": self._cells.copy(), "step": self._step}

    def _restore(self, variables: Mapping[str, Any]) -> None:
        self._cells = np.array(variables["cells"])
        self._step = int(variables["step"])


TOYS: Mapping[str, type[_ToyEnv]] = {
    "counting": CountingEnv,
    "mirror": MirrorEnv,
    "pixel": PixelToyEnv,
    "point": PointEnv,
}
"""``toy:NAME`` -> class."""
