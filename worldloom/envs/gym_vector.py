"""Any Gymnasium vector env behind the row contract, whichever autoreset mode it has.

NEXT_STEP is the contract itself. With SAME_STEP (the final observation is in
``infos["final_obs"]``) and DISABLED (the caller resets) the reset rows get a call of their own: the
call after an episode's end gives the reset rows of the envs that ended, and no row for the others,
whose actions are kept for the call after that. So no env ever takes an action that was chosen for
another row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymVectorEnv

from worldloom.core.exceptions import (
    ConfigurationError,
    EnvFailureError,
    ShapeMismatchError,
    StateError,
)
from worldloom.core.specs import EnvSpec
from worldloom.envs.config import NEUTRAL, EnvConfig
from worldloom.envs.contract import call_step, may_terminate, own_limit, say_once
from worldloom.envs.faults import EnvFault
from worldloom.envs.space_json import spaces_to_json
from worldloom.envs.spaces import ActionMapper, ObsMapper
from worldloom.envs.surroundings import Surroundings
from worldloom.envs.vector import EnvStep
from worldloom.envs.vector_contract import (
    Autoreset,
    VectorResetter,
    flags_of,
    foreign_vector,
    rewards_of,
)

__all__ = ["GymVectorAdapter"]

OURS_ONLY = ("action_repeat", "time_limit", "image_size", "grayscale", "frame_stack", "pixels")


class GymVectorAdapter:
    """A Gymnasium vector env as a :class:`worldloom.envs.vector.VectorEnv`.

    It is one object, so it fails as one: an exception in it reaches the caller, as an
    ``EnvFailureError``.

    Args:
        env: The vector env.
        config: Resolved settings; those that wrap single envs are refused.
        num_envs: How many the caller wants.
        seed: Root of its randomness.
        applies_settings: True when the env itself applies the settings of ``config``.

    Raises:
        ConfigurationError: If the number of envs differs or a setting cannot be applied from
            outside.
    """

    has_deadlines = False
    patience_s = float("inf")

    def __init__(
        self,
        env: GymVectorEnv[Any, Any, Any],
        config: EnvConfig,
        num_envs: int,
        seed: int,
        *,
        applies_settings: bool = False,
    ) -> None:
        if env.num_envs != num_envs:
            raise ConfigurationError(
                f"env {config.env!r} holds {env.num_envs} envs and {num_envs} were asked for; "
                "give its callable a parameter num_envs, or ask for as many"
            )
        used = [
            name for name in OURS_ONLY if getattr(config, name) not in (None, NEUTRAL.get(name))
        ]
        if used and not applies_settings:
            names = ", ".join(f"env.{name}" for name in used)
            raise ConfigurationError(
                f"{names} cannot be applied to the vector env {config.env!r}; do it inside the env"
            )
        self._env = env
        self._seed = seed
        self._reset = VectorResetter(env, config.env)
        self._autoreset = Autoreset(env, config.env)
        self._map_obs = ObsMapper(env.single_observation_space)
        self._map_action = ActionMapper(env.single_action_space)
        self._seeded = False
        self._ended = np.zeros(num_envs, bool)
        # as the env returned it: in SAME_STEP that of a reset, where one was due
        self._last_obs: dict[str, np.ndarray] = {}
        self._kept: dict[str, np.ndarray] | None = None
        self._fresh = np.zeros(num_envs, bool)
        self.num_envs = num_envs
        self._surroundings = Surroundings(config.env)
        self._surroundings_of_step = Surroundings(config.env, is_quick=True)
        for remark in self._map_obs.remarks:
            say_once(f"vector env {config.env!r}: {remark}")
        self.spec = EnvSpec(
            name=config.env,
            obs=self._map_obs.specs,
            action=self._map_action.specs,
            episode_limit=config.time_limit if applies_settings else own_limit(env),
            action_repeat=config.action_repeat or 1,
            may_terminate=may_terminate(env),
            settings=config.settings(),
            spaces=spaces_to_json(env.single_observation_space, env.single_action_space),
        )

    def reset(self, seed: int | None = None) -> EnvStep:
        """Start a new episode everywhere."""
        self._seed = self._seed if seed is None else seed
        with self._surroundings, foreign_vector(self.spec.name, "reset"):
            obs = self._reset(self._seed if seed is not None or not self._seeded else None)
        self._seeded = True
        self._kept = None
        self._ended = np.zeros(self.num_envs, bool)
        row = EnvStep.blank(self.spec, self.num_envs)
        row.obs = self._copy_obs(obs)
        row.live[:] = True
        self._last_obs = row.obs
        return row

    def step(self, action: Mapping[str, np.ndarray]) -> EnvStep:
        """Act, or deliver the reset rows that are due.

        Raises:
            EnvFailureError: If the env raises, a number is not finite, or the env resets in another
                way than it says.
            ShapeMismatchError: If an array has not one element per env, or an observation not its
                promised shape.
        """
        if self._ended.any() and self._autoreset.mode is not AutoresetMode.NEXT_STEP:
            return self._give_reset_rows(action)
        if self._kept is not None:
            action = {
                key: np.where(_lead(self._fresh, value), value, self._kept[key])
                for key, value in action.items()
            }
            self._kept = None
        native = self._map_action(action, (self.num_envs,))
        with self._surroundings_of_step, foreign_vector(self.spec.name, "step"):
            obs, *numbers, infos = call_step(self._env, native)
        first = self._ended
        reward, terminated, truncated = self._numbers(*numbers)
        if first.any():
            self._autoreset.see_reset_rows(first, reward, terminated, truncated)
        row = EnvStep(
            obs=self._copy_obs(obs),
            reward=reward.astype(np.float32),
            is_first=first.copy(),
            terminated=terminated.copy(),
            truncated=truncated.copy(),
            live=np.ones(self.num_envs, bool),
        )
        self._last_obs = row.obs
        self._ended = row.is_last
        if self._ended.any():
            self._autoreset.see_ends(self._ended, infos)
            if self._autoreset.mode is AutoresetMode.SAME_STEP:
                row.obs = self._with_final(row.obs, infos)
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

    def render(self, index: int) -> Any:
        """What env ``index`` draws, None when the vector env draws nothing."""
        with foreign_vector(self.spec.name, "render"):
            pictures: Any = self._env.render()
        return (
            pictures[index]
            if isinstance(pictures, tuple | list | np.ndarray) and len(pictures) == self.num_envs
            else None
        )

    def drain_faults(self) -> list[EnvFault]:
        """None: it fails as one."""
        return []

    def close(self) -> None:
        """Close the vector env."""
        with self._surroundings:
            self._env.close()

    def _give_reset_rows(self, action: Mapping[str, np.ndarray]) -> EnvStep:
        """Rows for the envs that ended and for no one else."""
        row = EnvStep.blank(self.spec, self.num_envs)
        source = self._last_obs
        if self._autoreset.mode is AutoresetMode.DISABLED:
            with self._surroundings, foreign_vector(self.spec.name, "reset"):
                obs = self._reset(None, options={"reset_mask": self._ended.copy()})
            source = self._copy_obs(obs)
            self._check_others(source)
        for key, value in source.items():
            row.obs[key][self._ended] = value[self._ended]
        row.live[:] = self._ended
        self._kept = {key: np.array(value) for key, value in action.items()}
        self._fresh = self._ended
        self._ended = np.zeros(self.num_envs, bool)
        return row

    def _check_others(self, obs: Mapping[str, np.ndarray]) -> None:
        """Envs that the mask of a reset leaves out observe what they did."""
        others = ~self._ended
        if any(
            not np.array_equal(value[others], self._last_obs[key][others])
            for key, value in obs.items()
        ):
            raise EnvFailureError(
                f"vector env {self.spec.name!r}: reset(options={{'reset_mask': "
                "mask}}) changed the observation of an env that the "
                "mask leaves out; reset only where the mask is True and return the "
                "others' last observations"
            )

    def _numbers(
        self, reward: Any, terminated: Any, truncated: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        name = self.spec.name
        return (
            rewards_of(name, self._per_env("reward", reward)),
            flags_of("terminated", name, self._per_env("terminated", terminated)),
            flags_of("truncated", name, self._per_env("truncated", truncated)),
        )

    def _per_env(self, name: str, value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.shape != (self.num_envs,):
            raise ShapeMismatchError(
                f"{name} of vector env {self.spec.name!r}", (self.num_envs,), array.shape
            )
        return array

    def _copy_obs(self, obs: Any) -> dict[str, np.ndarray]:
        """Arrays of our own, because vector envs may reuse theirs."""
        return {key: np.array(value) for key, value in self._map_obs(obs, (self.num_envs,)).items()}

    def _with_final(self, reset_obs: Mapping[str, np.ndarray], infos: Any) -> dict[str, np.ndarray]:
        result = {key: value.copy() for key, value in reset_obs.items()}
        for index in np.flatnonzero(self._ended):
            for key, value in self._map_obs(self._autoreset.final_obs(infos, int(index))).items():
                result[key][index] = value
        return result


def _lead(mask: np.ndarray, value: np.ndarray) -> np.ndarray:
    return mask.reshape(mask.shape + (1,) * (np.ndim(value) - 1))
