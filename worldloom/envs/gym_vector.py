"""Anybody's Gymnasium vector env behind the row contract, whichever autoreset mode it has.

NEXT_STEP is the contract itself. With SAME_STEP (the final observation is in ``infos["final_obs"]``) and DISABLED (the caller
resets) the reset rows get a call of their own: the call after an episode's end gives the reset rows of the envs that ended,
and no row for the others, whose actions are kept for the call after that. So no env ever takes an action that was chosen for
another row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymVectorEnv

from worldloom.core.exceptions import ConfigurationError, EnvFailureError, ShapeMismatchError, StateError
from worldloom.core.specs import EnvSpec
from worldloom.envs.config import NEUTRAL, EnvConfig
from worldloom.envs.faults import EnvFault
from worldloom.envs.spaces import ActionMapper, ObsMapper
from worldloom.envs.vector import EnvStep, env_seed

__all__ = ["GymVectorAdapter"]

OURS_ONLY = ("action_repeat", "time_limit", "image_size", "grayscale", "frame_stack", "pixels")


class GymVectorAdapter:
    """A Gymnasium vector env as a :class:`worldloom.envs.vector.VectorEnv`.

    It is one object, so it fails as one: an exception in it reaches the caller.

    Args:
        env: The vector env.
        config: Resolved settings; those that wrap single envs are refused.
        num_envs: How many the caller wants.
        seed: Root of its randomness.
        applies_settings: True when the env itself applies the settings of ``config``.

    Raises:
        ConfigurationError: If the number of envs differs or a setting cannot be applied from outside.
    """

    has_deadlines, patience_s = False, float("inf")

    def __init__(
        self, env: GymVectorEnv[Any, Any, Any], config: EnvConfig, num_envs: int, seed: int, *, applies_settings: bool = False
    ) -> None:
        if env.num_envs != num_envs:
            raise ConfigurationError(
                f"env {config.env!r} holds {env.num_envs} envs and {num_envs} were asked for; "
                "give its callable a parameter num_envs, or ask for as many"
            )
        used = [name for name in OURS_ONLY if getattr(config, name) not in (None, NEUTRAL.get(name))]
        if used and not applies_settings:
            names = ", ".join(f"env.{name}" for name in used)
            raise ConfigurationError(f"{names} cannot be applied to the vector env {config.env!r}; do it inside the env")
        self._env, self._seed = env, seed
        self._mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self._map_obs = ObsMapper(env.single_observation_space)
        self._map_action = ActionMapper(env.single_action_space)
        self._seeded = False
        self._ended = np.zeros(num_envs, bool)
        self._reset_obs: dict[str, np.ndarray] | None = None
        self._kept: dict[str, np.ndarray] | None = None
        self._fresh = np.zeros(num_envs, bool)
        self.num_envs = num_envs
        self.spec = EnvSpec(
            name=config.env,
            obs=self._map_obs.specs,
            action=self._map_action.specs,
            episode_limit=config.time_limit if applies_settings else getattr(env.spec, "max_episode_steps", None),
            action_repeat=config.action_repeat or 1,
            may_terminate=bool(getattr(env, "may_terminate", True)),
            settings=config.settings(),
        )

    def reset(self, seed: int | None = None) -> EnvStep:
        """Start a new episode everywhere."""
        self._seed = self._seed if seed is None else seed
        seeds: Any = [env_seed(self._seed, index) for index in range(self.num_envs)]
        obs, _ = self._env.reset(seed=seeds if seed is not None or not self._seeded else None)
        self._seeded, self._kept = True, None
        self._ended = np.zeros(self.num_envs, bool)
        row = EnvStep.blank(self.spec, self.num_envs)
        row.obs, row.live[:] = self._copy_obs(obs), True
        return row

    def step(self, action: Mapping[str, np.ndarray]) -> EnvStep:
        """Act, or deliver the reset rows that are due.

        Raises:
            EnvFailureError: If a number is not finite.
            ShapeMismatchError: If an array has not one element per env, or an observation not its promised shape.
        """
        if self._ended.any() and self._mode is not AutoresetMode.NEXT_STEP:
            return self._give_reset_rows(action)
        if self._kept is not None:
            action = {key: np.where(_lead(self._fresh, value), value, self._kept[key]) for key, value in action.items()}
            self._kept = None
        lead = (self.num_envs,)
        obs, reward, terminated, truncated, infos = self._env.step(self._map_action(action, lead))
        first = self._ended if self._mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        flat = self._copy_obs(obs)
        row = EnvStep(
            obs=flat,
            reward=np.where(first, 0, self._per_env("reward", reward)).astype(np.float32),
            is_first=first.copy(),
            terminated=self._per_env("terminated", terminated).astype(bool) & ~first,
            truncated=self._per_env("truncated", truncated).astype(bool) & ~first,
            live=np.ones(self.num_envs, bool),
        )
        if not np.isfinite(row.reward).all():
            raise EnvFailureError(f"rewards {row.reward.tolist()} are not all finite")
        self._ended = row.is_last
        if self._mode is AutoresetMode.SAME_STEP and self._ended.any():
            self._reset_obs = flat
            row.obs = self._with_final(flat, infos)
        return row

    def state(self) -> list[Any] | None:
        """None: Gymnasium vector envs cannot tell."""
        return None

    def set_state(self, state: Sequence[Any]) -> None:
        """Never succeeds.

        Raises:
            StateError: Always.
        """
        raise StateError(f"vector env {self.spec.name!r} cannot be resumed exactly")

    def drain_faults(self) -> list[EnvFault]:
        """None: it fails as one."""
        return []

    def close(self) -> None:
        """Close the vector env."""
        self._env.close()

    def _give_reset_rows(self, action: Mapping[str, np.ndarray]) -> EnvStep:
        """Rows for the envs that ended and for nobody else."""
        row = EnvStep.blank(self.spec, self.num_envs)
        if self._mode is AutoresetMode.DISABLED:
            obs, _ = self._env.reset(options={"reset_mask": self._ended.copy()})
            source = self._copy_obs(obs)
        else:
            assert self._reset_obs is not None
            source = self._reset_obs
        for key, value in source.items():
            row.obs[key][self._ended] = value[self._ended]
        row.live[:] = self._ended
        self._kept = {key: np.array(value) for key, value in action.items()}
        self._fresh, self._ended = self._ended, np.zeros(self.num_envs, bool)
        return row

    def _per_env(self, name: str, value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.shape != (self.num_envs,):
            raise ShapeMismatchError(f"{name} of vector env {self.spec.name!r}", (self.num_envs,), array.shape)
        return array

    def _copy_obs(self, obs: Any) -> dict[str, np.ndarray]:
        """Arrays of our own, because vector envs may reuse theirs."""
        return {key: np.array(value) for key, value in self._map_obs(obs, (self.num_envs,)).items()}

    def _with_final(self, reset_obs: Mapping[str, np.ndarray], infos: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if "final_obs" not in infos:
            raise EnvFailureError(f"vector env {self.spec.name!r} resets in the same step but gives no infos['final_obs']")
        result = {key: value.copy() for key, value in reset_obs.items()}
        for index in np.flatnonzero(self._ended):
            for key, value in self._map_obs(_pick(infos["final_obs"], int(index))).items():
                result[key][index] = value
        return result


def _pick(final_obs: Any, index: int) -> Any:
    """The observation of one env from an array of observations or from a mapping of arrays."""
    if isinstance(final_obs, Mapping):
        return {key: _pick(value, index) for key, value in final_obs.items()}
    return final_obs[index]


def _lead(mask: np.ndarray, value: np.ndarray) -> np.ndarray:
    return mask.reshape(mask.shape + (1,) * (np.ndim(value) - 1))
