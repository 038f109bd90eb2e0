"""Vector envs of counting envs with every autoreset mode, reached as
``package.module:callable``.
"""

from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from worldloom.envs.toy import CountingEnv


def _vector(num_envs: int, mode: AutoresetMode) -> SyncVectorEnv:
    return SyncVectorEnv([CountingEnv for _ in range(num_envs)], autoreset_mode=mode)


def next_step(num_envs: int) -> SyncVectorEnv:
    return _vector(num_envs, AutoresetMode.NEXT_STEP)


def same_step(num_envs: int) -> SyncVectorEnv:
    return _vector(num_envs, AutoresetMode.SAME_STEP)


def disabled(num_envs: int) -> SyncVectorEnv:
    return _vector(num_envs, AutoresetMode.DISABLED)


def single() -> CountingEnv:
    return CountingEnv()


class _Silent(SyncVectorEnv):
    """Does not say when it resets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metadata = {
            name: value for name, value in self.metadata.items() if name != "autoreset_mode"
        }


def silent_next_step(num_envs: int) -> SyncVectorEnv:
    return _Silent([CountingEnv for _ in range(num_envs)], autoreset_mode=AutoresetMode.NEXT_STEP)


def silent_same_step(num_envs: int) -> SyncVectorEnv:
    return _Silent([CountingEnv for _ in range(num_envs)], autoreset_mode=AutoresetMode.SAME_STEP)


def spelled_out(num_envs: int) -> SyncVectorEnv:
    env = same_step(num_envs)
    env.metadata = {**env.metadata, "autoreset_mode": "same_step"}
    return env


class _DictEnv(CountingEnv):
    observation_space = spaces.Dict({"obs": CountingEnv.observation_space})  # type: ignore[assignment]

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(**kwargs)
        return {"obs": obs}, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, *rest = super().step(action)
        return {"obs": obs}, *rest  # type: ignore[return-value]


def same_step_dict(num_envs: int) -> SyncVectorEnv:
    makers: list[Any] = [_DictEnv for _ in range(num_envs)]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def three() -> gymnasium.vector.VectorEnv:
    return next_step(3)
