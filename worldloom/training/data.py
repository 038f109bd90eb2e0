"""Replay for offline training: the public face of ``worldloom.data.SequenceBuffer``.

A user hands over episodes as Gymnasium gives them: ``obs[t]``, the action taken in it, that
action's reward and end. Inside they are rows whose reward is the one received on arrival
(``worldloom.core.sequence`` does both shifts), so every episode has one row more than transitions.
When no one recorded what the last action led to, that row's observation is blank and marked unseen:
its reward and its end are kept, and no model is asked to reconstruct it.

Legend: n transitions, B batch, T window.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from worldloom.core.damage import reading
from worldloom.core.exceptions import (
    BufferError,
    CheckpointError,
    ConfigurationError,
    ShapeMismatchError,
)
from worldloom.core.fields import NOT_NEGATIVE, Bounds, checked
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import (
    Rows,
    SequenceBatch,
    StreamId,
    rows_from_gym,
    rows_to_gym,
    transitions,
)
from worldloom.core.specs import ArraySpec
from worldloom.data.sequence_buffer import SequenceBuffer
from worldloom.training.casting import cast, flags, stored_dtype, stored_obs_dtype
from worldloom.training.episodes import EpisodeIndex
from worldloom.training.npz import is_choice, read_episodes, write_episodes
from worldloom.training.trajectories import split_trajectory

__all__ = ["ReplayBuffer", "TrajectoryDataset", "create_random_buffer"]

logger = logging.getLogger(__name__)

SEEN = "seen"
"""Column that is False for a row without an observation."""
RING_BYTES = 1 << 33
"""Above this the observations are kept per episode, because a ring of that size could not be
reserved everywhere.
"""


class ReplayBuffer:
    """Episodes, oldest evicted first, sampled as windows inside one episode.

    Args:
        capacity: Transitions kept.
        obs_shape: Shape of one observation.
        action_dim: Width of an action; integer actions become one-hot codes of this width.
        obs_dtype: What observations are stored as; uint8 for images.
        seed: Of the draws; None takes fresh entropy.

    Raises:
        ConfigurationError: If a size is not positive.

    Example:
        >>> buffer = ReplayBuffer(capacity=100, obs_shape=(3,), action_dim=2, seed=0)
        >>> end = np.arange(9) == 8
        >>> buffer.add_episode(np.zeros((9, 3)), np.zeros((9, 2)), np.arange(9.0), end)
        >>> batch = buffer.sample(4, 5)
        >>> batch["obs"].shape, batch["rewards"].shape, len(buffer), buffer.num_episodes
        (torch.Size([4, 5, 3]), torch.Size([4, 5]), 9, 1)
    """

    def __init__(
        self,
        capacity: int,
        obs_shape: Sequence[int],
        action_dim: int,
        obs_dtype: Any = np.float32,
        *,
        seed: int | None = None,
    ) -> None:
        shape = (obs_shape,) if np.ndim(obs_shape) == 0 else tuple(obs_shape)
        self.capacity = _count("capacity", capacity)
        self.action_dim = _count("action_dim", action_dim)
        self.obs_shape = shape = tuple(_count("each axis of obs_shape", axis) for axis in shape)
        if not shape:
            raise ConfigurationError(
                "obs_shape must have at least one axis, got (); pass the shape of "
                "one observation, e.g. (4,)"
            )
        self.obs_dtype = stored_dtype("obs_dtype", obs_dtype)
        flag = ArraySpec((), "bool")
        columns = {
            "obs": ArraySpec(shape, self.obs_dtype.name),
            "action": ArraySpec((self.action_dim,)),
            "reward": ArraySpec(()),
        }
        columns |= dict.fromkeys(("is_first", "terminated", "truncated", SEEN), flag)
        size = columns["obs"].nbytes * self.capacity
        self._rows = SequenceBuffer(
            columns,
            SamplingSpec(batch_size=1, length=1, bootstrap=1),
            capacity_rows=2 * self.capacity,  # an episode of one step has two rows
            encoded=("obs",) if size > RING_BYTES else (),
        )
        self._index = EpisodeIndex(self.capacity)
        self._rng = np.random.default_rng(checked("seed", seed, int | None, NOT_NEGATIVE))
        self._has_noticed = False

    def __len__(self) -> int:
        return self._index.num_steps

    def __repr__(self) -> str:
        what = f"{len(self)} of {self.capacity} transitions in {self.num_episodes} episodes"
        return (
            f"<ReplayBuffer: {what}, obs {self.obs_shape} {self.obs_dtype.name}, "
            f"action_dim {self.action_dim}>"
        )

    @property
    def num_transitions(self) -> int:
        """Transitions stored."""
        return self._index.num_steps

    @property
    def num_episodes(self) -> int:
        """Episodes stored, the oldest perhaps in part."""
        return len(self._index.episodes)

    def add_episode(
        self,
        obs: Any,
        actions: Any,
        rewards: Any,
        dones: Any = None,
        *,
        truncated: Any = None,
        final_obs: Any = None,
    ) -> None:
        """Store an episode of n transitions; an empty one is ignored.

        Args:
            obs: ``[n, *obs_shape]``, what each action was taken in; with n + 1 entries the last one
                is ``final_obs``.
            actions: ``[n, action_dim]``; integers ``[n]`` or ``[n, 1]`` become one-hot codes.
            rewards: ``[n]`` of each action.
            dones: ``[n]`` True where the action ended the episode; entries after such a place
                begin another one. Without any, the end is a truncation: what lies after it still
                    counts.
            truncated: ``[n]`` True where that end was a time limit or the like.
            final_obs: What the last action led to.

        Raises:
            ShapeMismatchError: If an array has another shape.
            BufferError: If a number is not finite, or the episode does not fit into the capacity.
        """
        obs = _array("obs", obs)
        actions = _array("actions", actions)
        with np.errstate(over="ignore"):  # what overflows is refused below
            reward = _array("rewards", rewards).astype(np.float32).reshape(-1)
        steps = len(reward)
        if not steps:
            return
        seen = self._observations(obs, final_obs, steps)
        action = self._actions(actions, steps)
        cut = flags("truncated", truncated, steps)
        ended = flags("dones", dones, steps) & ~cut
        _check_finite("rewards", reward)
        bounds = [*(np.flatnonzero((ended | cut)[:-1]) + 1).tolist(), steps]
        longest = int(np.diff([0, *bounds]).max())
        if longest > self.capacity:
            raise BufferError(
                f"an episode of {longest} transitions exceeds the capacity of "
                f"{self.capacity}; raise it or split it"
            )
        for start, stop in zip([0, *bounds], bounds, strict=False):
            last = seen[stop : stop + 1] if stop == steps else seen[:0]
            self._add(
                seen[start:stop],
                last,
                action[start:stop],
                reward[start:stop],
                bool(ended[stop - 1]),
            )

    def _add(
        self,
        obs: np.ndarray,
        last: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        is_terminal: bool,
    ) -> None:
        """Store one episode whose end is its last transition; ``last`` holds the final observation
        or nothing.
        """
        steps = len(reward)
        final = last if len(last) else np.zeros((1, *self.obs_shape), self.obs_dtype)
        end = np.zeros(steps, bool)
        end[-1] = True
        rows: Rows = rows_from_gym(
            {"obs": np.concatenate([obs, final])},
            {"action": action},
            reward,
            end & is_terminal,
            end & (not is_terminal),
        )
        rows[SEEN] = np.ones(steps + 1, bool)
        rows[SEEN][-1] = bool(len(last))
        first = self._rows.next_row
        self._rows.append(StreamId(0, 0, 0), self._rows.next_seq(StreamId(0, 0, 0)), rows)
        self._index.add(first, steps, self._rows.first_row)

    def sample(
        self,
        batch_size: int,
        seq_len: int,
        device: torch.device | str = "cpu",
        *,
        rng: np.random.Generator | None = None,
        held_out: tuple[int, bool] | None = None,
    ) -> dict[str, Tensor]:
        """Draw windows uniformly over all that lie inside one episode.

        Args:
            batch_size: B.
            seq_len: T transitions.
            device: Where the tensors go.
            rng: Source of the draw instead of the buffer's own.
            held_out: ``(n, True)`` draws from every n-th episode only, ``(n, False)`` from the
                others.

        Returns:
            ``obs`` ``[B, T, *obs_shape]``, ``actions`` ``[B, T, A]``, ``rewards`` and ``continues``
            ``[B, T]``, ``last_obs`` ``[B, *obs_shape]`` after the last action and
            ``last_obs_mask`` ``[B]``, where that was recorded.

        Raises:
            BufferError: If no episode is long enough.
        """
        batch_size = checked("batch_size", batch_size, int)
        seq_len = checked("seq_len", seq_len, int)
        if batch_size < 1 or seq_len < 1:
            raise BufferError(
                f"sample needs batch_size >= 1 and seq_len >= 1, got {batch_size} and {seq_len}"
            )
        part = (1, 0) if held_out is None else (held_out[0], int(held_out[1]))
        starts = self._index.draw(batch_size, seq_len, rng or self._rng, part)
        if not len(starts):
            longest = max((e.steps for e in self._index.episodes), default=0)
            raise BufferError(
                f"no episode is long enough: seq_len is {seq_len}, the longest of "
                f"{self.num_episodes} stored episodes has "
                f"{longest} transitions; sample shorter windows or add longer episodes"
            )
        columns = self._rows.windows_at(starts, seq_len + 1).decode().columns
        seen = columns.pop(SEEN)
        seen_obs, action, reward, terminated = transitions(SequenceBatch.from_columns(columns))
        obs = torch.from_numpy(seen_obs["obs"]).to(device)
        return {
            "obs": obs[:, :-1],
            "actions": torch.from_numpy(action["action"]).to(device),
            "rewards": torch.from_numpy(reward).to(device),
            "continues": torch.from_numpy(1.0 - terminated.astype(np.float32)).to(device),
            "last_obs": obs[:, -1],
            "last_obs_mask": torch.from_numpy(seen[:, -1].copy()).to(device),
        }

    def has_windows(self, seq_len: int, held_out: tuple[int, bool] | None = None) -> bool:
        """True when :meth:`sample` would find a window."""
        part = (1, 0) if held_out is None else (held_out[0], int(held_out[1]))
        return bool(len(self._index.draw(1, seq_len, np.random.default_rng(0), part)))

    def seed(self, seed: int) -> None:
        """Begin the buffer's own draws again."""
        self._rng = np.random.default_rng(seed)

    def episodes(self) -> Iterable[dict[str, Any]]:
        """Every stored episode, oldest first, as :meth:`add_episode` takes it (``final_obs`` is
        None where unknown).
        """
        for episode in self._index.episodes:
            columns = (
                self._rows.windows_at(np.array([episode.first_row]), episode.steps + 1)
                .decode()
                .columns
            )
            rows = {name: values[0] for name, values in columns.items()}
            seen = bool(rows.pop(SEEN)[-1])
            gym = rows_to_gym(rows)
            obs = gym["obs"]["obs"]
            yield {
                "obs": obs[:-1],
                "actions": gym["action"]["action"],
                "rewards": gym["reward"],
                "dones": gym["terminated"] | gym["truncated"],
                "truncated": gym["truncated"],
                "final_obs": obs[-1] if seen else None,
            }

    def save(self, path: str | PathLike[str]) -> None:
        """Write an ``.npz`` with ``obs, actions, rewards, dones, obs_shape, action_dim, capacity``
        and, since 0.2, what is needed to tell truncation from termination and to keep final
        observations. One episode at a time is in memory.
        """
        write_episodes(
            path,
            self.episodes(),
            lengths=[e.steps for e in self._index.episodes],
            obs=(self.obs_shape, self.obs_dtype),
            action_dim=self.action_dim,
            capacity=self.capacity,
        )

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, capacity: int | None = None, seed: int | None = None
    ) -> ReplayBuffer:
        """Read an ``.npz`` of :meth:`save`, of 0.1, or of your own with at least ``obs, actions,
        rewards``.

        Gymnasium's, D4RL's and Minari's names are understood (see
        :mod:`worldloom.training.array_names`). Integer actions ``[n]`` become one-hot codes. What
        is not used or had to be concluded is logged as a warning. Observations are read one episode
        at a time, so memory holds one copy of them.

        Raises:
            CheckpointError: If the file is missing, damaged, lacks an array, or holds an episode
                that cannot be stored.
        """
        facts, episodes = read_episodes(path)
        room = max(facts.capacity, facts.steps, 1) if capacity is None else capacity
        with reading(path):
            try:
                buffer = cls(
                    room, facts.obs_shape or (1,), facts.action_dim, facts.obs_dtype, seed=seed
                )
            except ConfigurationError as error:
                if capacity is not None:
                    raise
                raise CheckpointError(f"{path}: {error}") from error
            for number, episode in enumerate(episodes):
                try:
                    buffer.add_episode(**(episode if facts.obs_shape else _with_axis(episode)))
                except (BufferError, ShapeMismatchError) as error:
                    raise CheckpointError(f"{path}: episode {number}: {error}") from error
        for note in facts.notes:
            logger.warning("%s: %s", path, note)
        buffer._tell_of(str(path), facts.obs_shape, facts.steps)
        return buffer

    @classmethod
    def from_trajectories(
        cls, trajectories: Sequence[Mapping[str, Any]], capacity: int | None = None
    ) -> ReplayBuffer:
        """A buffer of episodes that are given as dicts with the arguments of :meth:`add_episode`,
        or under the names of Gymnasium, D4RL or Minari (see :mod:`worldloom.training.array_names`).

        Raises:
            BufferError: If there are none, one lacks an array, or has one that is not known.
        """
        if not trajectories:
            raise BufferError("from_trajectories needs at least one trajectory, got none")
        split = [split_trajectory(each, f"trajectory {n}") for n, each in enumerate(trajectories)]
        episodes = [episode for found, _ in split for episode in found]
        if not episodes:
            raise BufferError("from_trajectories needs at least one transition, got none")
        obs = episodes[0]["obs"]
        actions = [episode["actions"] for episode in episodes]
        width = 1 if actions[0].ndim == 1 else actions[0].shape[-1]
        if all(is_choice(action) for action in actions):
            width = max(1, *(int(action.max()) + 1 for action in actions))
        dtype = stored_obs_dtype(np.result_type(*(episode["obs"] for episode in episodes)))
        steps = sum(len(episode["rewards"]) for episode in episodes)
        shape = obs.shape[1:]
        buffer = cls(steps if capacity is None else capacity, shape or (1,), width, dtype)
        for episode in episodes:
            buffer.add_episode(**(episode if shape else _with_axis(episode)))
        for number, (_, notes) in enumerate(split):
            for note in notes:
                logger.warning("trajectory %d: %s", number, note)
        buffer._tell_of("trajectories", shape, steps)
        return buffer

    def _tell_of(self, source: str, obs_shape: tuple[int, ...], steps: int) -> None:
        """Say what became of data that do not fit as they are."""
        if not obs_shape:
            logger.warning(
                "%s: observations are single numbers; they are stored as arrays of (1,)", source
            )
        if lost := steps - len(self):
            logger.warning(
                "%s: the oldest %d of %d transitions have no room; raise capacity, now %d",
                source,
                lost,
                steps,
                self.capacity,
            )

    def _observations(self, obs: Any, final_obs: Any, steps: int) -> np.ndarray:
        """[steps or steps + 1, *obs_shape] in the stored dtype."""
        array = np.asarray(obs)
        if array.shape[1:] != self.obs_shape or len(array) not in (steps, steps + 1):
            raise ShapeMismatchError(
                f"obs of an episode with {steps} rewards", (steps, *self.obs_shape), array.shape
            )
        if final_obs is not None:
            final = (
                np.asarray(final_obs).reshape(-1, *self.obs_shape)
                if np.size(final_obs) == np.prod(self.obs_shape)
                else None
            )
            if final is None:
                raise ShapeMismatchError("final_obs", self.obs_shape, np.shape(final_obs))
            array = np.concatenate([array[:steps], final])
        _check_finite("obs", array)
        return cast("obs", array, self.obs_dtype)

    def _actions(self, actions: Any, steps: int) -> np.ndarray:
        """[steps, action_dim] float32."""
        array = np.asarray(actions)
        is_index = (
            array.dtype.kind in "iu"
            and array.size == steps
            and (self.action_dim > 1 or array.ndim == 1)
        )
        if is_index and self.action_dim > 1:
            index = array.reshape(steps).astype(np.int64)
            if index.min() < 0 or index.max() >= self.action_dim:
                raise ShapeMismatchError(
                    "integer actions", f"0..{self.action_dim - 1}", f"{index.min()}..{index.max()}"
                )
            if not self._has_noticed:
                logger.info(
                    "integer actions are stored as one-hot codes of width %d", self.action_dim
                )
                self._has_noticed = True
            return np.eye(self.action_dim, dtype=np.float32)[index]
        array = (
            array.reshape(steps, 1) if array.shape == (steps,) and self.action_dim == 1 else array
        )
        if array.shape != (steps, self.action_dim):
            raise ShapeMismatchError(
                f"actions of an episode with {steps} rewards", (steps, self.action_dim), array.shape
            )
        _check_finite("actions", array)
        return cast("actions", array, np.dtype(np.float32))


def _with_axis(episode: Mapping[str, Any]) -> dict[str, Any]:
    """An episode of observations that are single numbers, as arrays of one."""
    final = episode.get("final_obs")
    return {
        **episode,
        "obs": np.asarray(episode["obs"])[:, None],
        "final_obs": None if final is None else np.reshape(final, 1),
    }


def _array(name: str, values: Any) -> np.ndarray:
    """What a user gave as an array of numbers."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ShapeMismatchError(
            f"{name} of an episode", "entries of one shape", "entries of different shapes"
        ) from error
    if array.dtype.kind not in "biuf":
        raise ShapeMismatchError(f"dtype of {name} of an episode", "numbers", str(array.dtype))
    return array


def _count(name: str, value: Any) -> int:
    """A size; 1e6 is as good as 1000000."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return int(checked(f"{name} of a replay buffer", whole, int, Bounds(1)))


def _check_finite(name: str, values: np.ndarray) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        step = int(np.argwhere(~np.isfinite(values))[0][0])
        raise BufferError(
            f"{name}: entry {step} is NaN or infinite, expected finite numbers; clean "
            "the episode before adding it"
        )


class TrajectoryDataset(Dataset[dict[str, Tensor]]):
    """Windows of a buffer as a torch dataset: each item is one freshly drawn window without batch
    axis.

    In the process that holds the dataset, windows come from the buffer's own generator. In a worker
    of a ``DataLoader`` each draw is a function of ``seed``, of the worker's seed, which torch
    chooses again for every epoch (``torch.manual_seed`` makes that repeatable), of the index, and
    of how often this worker drew that index: no worker and no epoch repeats another.

    Args:
        buffer: Where windows come from.
        seq_len: Transitions per window.
        samples_per_epoch: Length of the dataset.
        seed: Root of the draws in workers.
    """

    def __init__(
        self, buffer: ReplayBuffer, seq_len: int, samples_per_epoch: int = 1000, *, seed: int = 0
    ) -> None:
        self.buffer = buffer
        self.seq_len = checked("seq_len", seq_len, int, Bounds(1))
        self.samples_per_epoch: int = checked(
            "samples_per_epoch", samples_per_epoch, int, NOT_NEGATIVE
        )
        self.seed = checked("seed", seed, int, NOT_NEGATIVE)
        self._draws: Counter[int] = Counter()

    def __len__(self) -> int:
        return self.samples_per_epoch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.samples_per_epoch:
            raise IndexError(f"index {index} of a dataset of {self.samples_per_epoch}")
        return {
            name: value[0]
            for name, value in self.buffer.sample(
                1, self.seq_len, rng=self._generator(int(index))
            ).items()
        }

    def _generator(self, index: int) -> np.random.Generator | None:
        """The source of one draw in a worker; None elsewhere."""
        worker = get_worker_info()
        if worker is None:
            return None
        self._draws[index] += 1
        return np.random.default_rng([self.seed, worker.seed, index, self._draws[index]])


def create_random_buffer(
    capacity: int = 10000,
    obs_shape: Sequence[int] = (3, 64, 64),
    action_dim: int = 6,
    num_episodes: int = 100,
    episode_length: int = 100,
    seed: int | None = None,
) -> ReplayBuffer:
    """A buffer of noise for trying things out: observations standard normal, or uniform uint8 for
    images.
    """
    num_episodes = checked("num_episodes", num_episodes, int, NOT_NEGATIVE)
    episode_length = checked("episode_length", episode_length, int, Bounds(1))
    rng = np.random.default_rng(checked("seed", seed, int | None, NOT_NEGATIVE))
    is_image = len(tuple(obs_shape)) == 3
    buffer = ReplayBuffer(
        capacity, obs_shape, action_dim, np.uint8 if is_image else np.float32, seed=seed
    )
    for _ in range(num_episodes):
        lead = (episode_length + 1, *obs_shape)
        obs = (
            rng.integers(0, 256, lead, np.uint8)
            if is_image
            else rng.standard_normal(lead, np.float32)
        )
        dones = np.arange(episode_length) == episode_length - 1
        actions = rng.uniform(-1, 1, (episode_length, action_dim)).astype(np.float32)
        buffer.add_episode(obs, actions, rng.standard_normal(episode_length), dones)
    return buffer
