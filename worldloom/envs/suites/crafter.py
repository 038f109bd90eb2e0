"""``crafter:reward``: the survival game Crafter (Hafner, arXiv:2109.06780), from images;
``crafter:noreward`` gives no reward.

An episode that its time limit ends is truncated, as the authors' ``discount`` says: only death
terminates. The limit of 10,000 steps is the game's own.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError, nearest
from worldloom.envs.config import EnvConfig
from worldloom.envs.wrappers import RawEnv

__all__ = ["CrafterEnv", "make"]

TASKS = {"reward": True, "noreward": False}
EPISODE_LIMIT = 10_000
MOST_SEED = 2**31
PICTURE_SIDE = 256


def make(config: EnvConfig) -> RawEnv:
    """Build the game from a resolved config.

    Raises:
        MissingDependencyError: If crafter is not installed.
        ConfigurationError: If there is no such task.
    """
    if config.name not in TASKS:
        raise ConfigurationError(
            f"env {config.env!r}: there is no such task{nearest(config.name, TASKS)} "
            f"(tasks: {', '.join(TASKS)})"
        )
    try:
        import crafter  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("crafter envs", "crafter", "crafter") from error
    return RawEnv(
        CrafterEnv(config.image_size or 64, has_reward=TASKS[config.name]),
        episode_limit=EPISODE_LIMIT,
    )


class CrafterEnv(gymnasium.Env[np.ndarray, Any]):
    """The game with Gymnasium's interface.

    Args:
        size: Side of the image that is observed.
        has_reward: False gives 0 at every step.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, size: int, *, has_reward: bool) -> None:
        self._size = size
        self._has_reward = has_reward
        self._game = self._begun(0)
        self.render_mode = "rgb_array"
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(self._game.action_space.n)

    def _begun(self, seed: int) -> Any:
        import crafter

        side = (self._size, self._size)
        return crafter.Env(size=side, reward=self._has_reward, seed=seed % MOST_SEED)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new world; the next of the seed's where none is given."""
        super().reset(seed=seed)
        if seed is not None:
            self._game = self._begun(seed)
        return self._game.reset(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One action; ``info`` has ``achievements`` and ``inventory``."""
        obs, reward, is_over, info = self._game.step(int(action))
        is_dead = info["discount"] == 0
        facts = {"achievements": info["achievements"], "inventory": info["inventory"]}
        return obs, float(reward), bool(is_dead), bool(is_over and not is_dead), facts

    def render(self) -> Any:
        """The picture now, larger than the one that is observed: ``[Y, X, 3]`` uint8."""
        return self._game.render((PICTURE_SIDE, PICTURE_SIDE))
