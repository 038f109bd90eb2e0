"""A trained agent that acts in an env, or in several side by side."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import CheckpointError, ConfigurationError, ShapeMismatchError
from worldloom.core.specs import TASK, ArraySpec
from worldloom.training.one_task import for_task
from worldloom.training.saved_agents import SavedAgent

__all__ = ["EnvBatch", "TrainedPolicy", "obs_reader", "torch_threads"]


class TrainedPolicy:
    """Acts in an env: takes its observations and gives its actions, and remembers in between.

    Args:
        saved: What to act with.
        num_envs: None for one env; a number for that many side by side, whose observations and
            actions have a batch axis as those of ``gymnasium.vector`` envs have.
        device: cpu, cuda, cuda:N, or auto.
        seed: Of the draws that acting makes.
        threads: Torch threads while it acts; a network this small is fastest with one, and the
            evaluations of a run have one.
    """

    def __init__(
        self,
        saved: SavedAgent,
        *,
        num_envs: int | None = None,
        device: str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        from worldloom.algorithms.base import place_of
        from worldloom.envs.spaces import ActionMapper

        self.saved = dataclasses.replace(saved, state={})  # it holds what training needs besides
        self.observation_space, self.action_space = saved.spaces()
        count = num_envs or 1
        # one for each env: stacked frames are an env's own
        self._readers = [obs_reader(saved, self.observation_space) for _ in range(count)]
        self._map_action = ActionMapper(self.action_space)
        self._threads = threads
        with torch_threads(threads):
            self._policy = saved.build(device=str(place_of(device)), seed=seed)
        self._batch = None if num_envs is None else EnvBatch(self, num_envs)
        self._carry = self._policy.initial_carry(count)
        self._is_first = np.ones(count, bool)

    def reset(self) -> None:
        """The next observation is the first one of an episode, in every env."""
        self._is_first[:] = True

    def act(self, obs: Any, is_first: Any = None, *, explore: bool = False) -> Any:
        """Choose an action, of several envs one for each.

        Args:
            obs: As the env returns it, without a time axis; of several envs with their axis first.
            is_first: True for the first observation of an episode, as :meth:`reset` before it; of
                several envs one truth value for each, or one for all.
            explore: Act as in training instead of as well as it can.

        Returns:
            What the env's ``step`` takes.

        Raises:
            ShapeMismatchError, EnvFailureError: If the observation is not one of the env's.
        """
        if is_first is not None:
            self._is_first |= self._truths(is_first)
        first = self._is_first
        flat = (
            {key: value[None] for key, value in self._one(obs, bool(first[0])).items()}
            if self._batch is None
            else self._batch.read(obs, first)
        )
        with torch_threads(self._threads):
            out = self._policy.act(flat, self._carry, first, explore=explore)
        self._carry = out.carry
        self._is_first = np.zeros(len(first), bool)
        if self._batch is not None:
            return self._batch.actions(out.action)
        return self._map_action({key: value[0] for key, value in out.action.items()})

    def _truths(self, is_first: Any) -> np.ndarray:
        found = np.asarray(is_first)
        if found.dtype != bool or found.shape not in ((), self._is_first.shape):
            raise ShapeMismatchError(
                "is_first",
                f"bool {self._is_first.shape} or one bool",
                f"{found.dtype} {found.shape}",
            )
        return np.broadcast_to(found, self._is_first.shape)

    def _one(self, obs: Any, first: bool, index: int = 0) -> dict[str, np.ndarray]:
        """One env's observation as the agent takes it."""
        if isinstance(obs, tuple) and len(obs) == 2 and not isinstance(obs[0], dict):
            from gymnasium.spaces import Tuple

            if isinstance(obs[1], dict) and not isinstance(self.observation_space, Tuple):
                raise ConfigurationError(
                    "obs must be an observation alone, got a pair; write obs, info = env.reset(), "
                    "then agent.act(obs)"
                )
        found: dict[str, np.ndarray] = self._readers[index](obs, first=first)
        return found

    def save(self, folder: Path) -> Path:
        """As :meth:`SavedAgent.save`, read again from where it lies."""
        again = SavedAgent.read(self.saved.path)
        task = self.saved.origin.get(TASK) if again.env.tasks else None
        return for_task(again, task).save(folder)


class EnvBatch:
    """Between the batched observations and actions of a vector env and those of its envs.

    Args:
        policy: Whose spaces these are.
        num_envs: How many.
    """

    def __init__(self, policy: TrainedPolicy, num_envs: int) -> None:
        from gymnasium.vector.utils import batch_space

        self._policy = policy
        self._num_envs = num_envs
        self.observation_space = batch_space(policy.observation_space, num_envs)
        self.action_space = batch_space(policy.action_space, num_envs)

    def read(self, obs: Any, first: np.ndarray) -> dict[str, np.ndarray]:
        """Observations of all envs, as the agent takes them.

        Raises:
            ShapeMismatchError: If they are not of this many envs.
        """
        from gymnasium.vector.utils import iterate

        try:
            single = list(iterate(self.observation_space, obs))
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise ShapeMismatchError("obs", self.observation_space, f"{type(obs)}") from error
        if len(single) != self._num_envs:
            raise ShapeMismatchError(
                "obs", f"{self._num_envs} envs", f"{len(single)} along the first axis"
            )
        rows = [
            self._policy._one(one, bool(is_first), index)
            for index, (one, is_first) in enumerate(zip(single, first, strict=True))
        ]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def actions(self, action: Mapping[str, np.ndarray]) -> Any:
        """Actions of all envs, as a vector env takes them."""
        from gymnasium.vector.utils import concatenate, create_empty_array

        single = [
            self._policy._map_action({key: value[index] for key, value in action.items()})
            for index in range(self._num_envs)
        ]
        space = self._policy.action_space
        return concatenate(space, single, create_empty_array(space, self._num_envs))


def obs_reader(saved: SavedAgent, space: Any) -> Any:
    """From the env's observations to the agent's; those of a vector env of the ALE's come resized
    already.
    """
    from worldloom.envs.spaces import ObsMapper
    from worldloom.envs.wrappers import ObsReader

    plain = ObsMapper(space)
    config = saved.env_config()
    # a grey stack of three has the shape of one picture in colours: shapes alone decide nothing
    if plain.specs == dict(saved.env.obs) and (config.ale_vector or not plain.frames):
        return lambda obs, *, first: plain(obs)
    reader = ObsReader(space, config)
    if reader.specs != dict(saved.env.obs):
        raise CheckpointError(
            f"{saved.path}: the agent observes {_shapes(saved.env.obs)}, and the env's space "
            f"{space} becomes {_shapes(reader.specs)}; the two are of different runs"
        )
    return reader


def _shapes(specs: Mapping[str, ArraySpec]) -> str:
    return ", ".join(f"{key} {list(spec.shape)} {spec.dtype}" for key, spec in specs.items())


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with this many threads in this block."""
    import torch

    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
