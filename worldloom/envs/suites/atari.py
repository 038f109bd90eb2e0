"""``atari:GAME``: the Arcade Learning Environment with DreamerV3's protocol.

One step is one decision: the action is repeated, rewards are summed without clipping, and the image
is the pixelwise maximum of the last two frames. A random number of no-ops starts an episode; losing
a life ends nothing; fire is an action like any other. Only the end of the game terminates; the time
limit (``EnvConfig.time_limit``) truncates. Resizing and grey happen in ``worldloom.envs.wrappers``.
Source: DreamerV3, arXiv:2301.04104v2, appendix, and its authors' published code; unlike there, the
image of an episode's end is the frame at the end and not an older one.
"""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv as GymVectorEnv

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError, nearest
from worldloom.envs.config import EnvConfig
from worldloom.envs.wrappers import RawEnv

__all__ = ["AtariEnv", "make", "make_vector"]

NO_LIMIT = 10**8


def make(config: EnvConfig) -> RawEnv:
    """Build a game from a resolved config.

    Raises:
        MissingDependencyError: If ale-py is not installed.
        ConfigurationError: If there is no such game.
    """
    game = _game(config)
    from ale_py import roms

    env = AtariEnv(
        str(roms.get_rom_path(game)),
        repeat=config.action_repeat or 1,
        sticky=config.sticky or 0.0,
        noops=config.noops or 0,
        full_actions=bool(config.full_actions),
    )
    return RawEnv(env, handles_repeat=True)


def make_vector(config: EnvConfig, num_envs: int) -> GymVectorEnv[Any, Any, Any]:
    """Build the ALE's own vector env from a resolved config.

    Differs from :func:`make` in how images shrink (by areas), and in that the time limit counts the
    no-ops' frames too.

    Raises:
        MissingDependencyError, ConfigurationError: As :func:`make`.
    """
    game = _game(config)
    from ale_py.vector_env import AtariVectorEnv

    size = config.image_size or 0
    repeat = config.action_repeat or 1
    env = AtariVectorEnv(
        game,
        num_envs,
        num_threads=min(num_envs, os.cpu_count() or 1),
        frameskip=repeat,
        max_num_frames_per_episode=(config.time_limit or NO_LIMIT) * repeat,
        repeat_action_probability=config.sticky or 0.0,
        full_action_space=bool(config.full_actions),
        img_height=size or 210,
        img_width=size or 160,
        grayscale=bool(config.grayscale),
        stack_num=config.frame_stack or 1,
        noop_max=config.noops or 0,
        reward_clipping=False,
        use_fire_reset=False,
    )
    return _AleVectorEnv(env)


def _game(config: EnvConfig) -> str:
    try:
        from ale_py import roms
    except ImportError as error:
        raise MissingDependencyError("atari envs", "ale-py", "atari") from error
    game = config.name.lower().replace("-", "_")
    known = roms.get_all_rom_ids()
    if game not in known:
        raise ConfigurationError(f"env {config.env!r}: there is no such game{nearest(game, known)}")
    if config.pixels:
        raise ConfigurationError(
            "env.pixels is not for atari, which observes images anyway; leave it out"
        )
    return game


class _AleVectorEnv(GymVectorEnv[np.ndarray, Any, Any]):
    """The ALE's vector env with images as ``[N, height, width, channels]`` and seeds as any
    sequence.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self.num_envs = env.num_envs
        self.metadata = dict(env.metadata)
        self.single_action_space = env.single_action_space
        shape = self._channels_last(
            np.empty((1, *env.single_observation_space.shape), np.uint8)
        ).shape[1:]
        self.single_observation_space = spaces.Box(0, 255, shape, np.uint8)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a game in every env."""
        seeds = None if seed is None else np.asarray(seed, np.int64) % 2**31
        obs, info = self._env.reset(seed=seeds)
        return self._channels_last(obs), info

    def step(self, actions: Any) -> tuple[np.ndarray, Any, Any, Any, dict[str, Any]]:
        """One decision of every env."""
        obs, *rest = self._env.step(actions)
        return self._channels_last(obs), *rest

    def _channels_last(self, obs: np.ndarray) -> np.ndarray:
        """[N, stack, height, width] or [N, stack, height, width, 3] -> [N, height, width, stack (x
        3)], oldest first.
        """
        moved = np.moveaxis(obs, 1, 3)
        return moved.reshape(*moved.shape[:3], -1)


class AtariEnv(gymnasium.Env[np.ndarray, Any]):
    """One game.

    Args:
        rom: Path of the game.
        repeat: Frames per decision.
        sticky: Probability that a frame repeats the previous action.
        noops: Largest number of no-op frames after a reset, drawn uniformly from 0 to this.
        full_actions: All 18 actions or the game's own.
    """

    metadata: dict[str, Any] = {}  # noqa: RUF012 - the base class declares it so

    def __init__(
        self, rom: str, *, repeat: int, sticky: float, noops: int, full_actions: bool
    ) -> None:
        import ale_py

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", sticky)
        self._ale.setInt("random_seed", 0)
        self._ale.loadROM(rom)
        self._rom = rom
        self._repeat = repeat
        self._noops = noops
        self._actions = (
            self._ale.getLegalActionSet() if full_actions else self._ale.getMinimalActionSet()
        )
        height, width = self._ale.getScreenDims()
        # the last two that were drawn
        self._frames = np.zeros((2, height, width, 3), np.uint8)
        self._newest = 0
        self.action_space = spaces.Discrete(len(self._actions))
        self.observation_space = spaces.Box(0, 255, (height, width, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a game; with a seed, also the emulator's own random numbers."""
        super().reset(seed=seed)
        if seed is not None:
            self._ale.setInt("random_seed", seed % 2**31)
            self._ale.loadROM(self._rom)
        self._ale.reset_game()
        for _ in range(int(self.np_random.integers(self._noops + 1))):
            self._ale.act(0)
            if self._ale.game_over():
                self._ale.reset_game()
        self._ale.getScreenRGB(self._frames[0])
        self._frames[1] = self._frames[0]
        return self._frames[0].copy(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Repeat the action until the decision is over or the game is."""
        reward = 0.0
        is_over = False
        for frame in range(self._repeat):
            reward += self._ale.act(self._actions[int(action)])
            is_over = self._ale.game_over()
            if frame >= self._repeat - 2 or is_over:
                self._newest = 1 - self._newest
                self._ale.getScreenRGB(self._frames[self._newest])
            if is_over:
                break
        return np.maximum(self._frames[0], self._frames[1]), reward, is_over, False, {}
