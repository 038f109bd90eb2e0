"""What an environment looks like to the rest of the system: names, shapes, dtypes and counts; no
Gymnasium, no torch.

Observations and actions are flat mappings from a key to an array. A space that is not a Dict has
the single key ``obs`` (or ``action``). In stored rows the key becomes a column name: ``obs`` stays
``obs``, key ``camera`` becomes ``obs/camera``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = [
    "ACTION",
    "OBS",
    "TASK",
    "TASK_NAME",
    "ArraySpec",
    "EnvSpec",
    "TaskSpec",
    "all_finite",
    "column_name",
    "group_keys",
]

OBS = "obs"
ACTION = "action"
TASK = "task"
"""Observation key of several tasks: the number of the task in the list, an int32 scalar."""

TASK_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
"""What a task may be called."""

LONGEST = 2**53
"""No episode has as many steps."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and dtype of one array of one row (no batch or time axis).

    Args:
        shape: Shape of one element; ``()`` for a scalar.
        dtype: numpy dtype name.
        num_classes: For a discrete action the number of choices of each component (one entry per
            element of ``shape``, a scalar has one). Empty for everything continuous.

    Continuous actions are always in [-1, 1]: the env adapter rescales them to the env's own bounds.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    num_classes: tuple[int, ...] = ()

    @property
    def is_image(self) -> bool:
        """True for uint8 arrays of rank 3, whatever the order of their axes."""
        return self.dtype == "uint8" and len(self.shape) == 3

    @property
    def is_discrete(self) -> bool:
        """True for an action that chooses among classes."""
        return bool(self.num_classes)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of one element of a row."""
        return self.size * np.dtype(self.dtype).itemsize

    def zeros(self, *lead: int) -> np.ndarray:
        """A zero array with the leading axes ``lead`` in front of ``shape``."""
        return np.zeros((*lead, *self.shape), self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "shape": [int(axis) for axis in self.shape],
            "dtype": str(np.dtype(self.dtype)),
            "num_classes": [int(count) for count in self.num_classes],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ArraySpec:
        """Inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: If it is no description, or names no dtype of plain
                values.
        """
        shape = tuple(data["shape"])
        classes = tuple(data.get("num_classes", ()))
        dtype = np.dtype(data["dtype"])
        if not all(type(number) is int and number >= 0 for number in (*shape, *classes)):
            raise ValueError(f"a shape and numbers of classes cannot be {shape} and {classes}")
        if dtype.hasobject or not dtype.itemsize:
            raise TypeError(f"arrays of {dtype} cannot be stored")
        return cls(shape, dtype.name, classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One of several tasks that one agent learns, and how it lies in their common arrays.

    Args:
        name: Its own in the list; the label of metrics and a part of file names.
        env: The ``--env`` text of the task alone.
        settings: Of that env, complete.
        obs: Keys and sizes of its observations in the order in which they lie in the padded vector,
            which is the env's own order.
        action: Likewise for actions: the env gets the first components of the padded vector.
        episode_limit: As of :class:`EnvSpec`, of the task alone.
        may_terminate: Likewise.
        score: Returns that count as 0 and as 100, or None where they are not known.
        joined: Env steps of the run when the task joined it; 0 for those of its beginning.

    Raises:
        ValueError: If the name cannot be part of a file's name, or the range of the score is empty.
    """

    name: str
    env: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    obs: tuple[tuple[str, int], ...]
    action: tuple[tuple[str, int], ...]
    episode_limit: int | None = None
    may_terminate: bool = False
    score: tuple[float, float] | None = None
    joined: int = 0

    def __post_init__(self) -> None:
        if not TASK_NAME.fullmatch(self.name):
            raise ValueError(
                f"a task's name must be letters, digits, '-', '_' and '.', got {self.name!r}"
            )
        if self.score is not None and not self.score[0] < self.score[1]:
            raise ValueError(f"task {self.name!r}: score must be two rising returns, {self.score}")

    @property
    def obs_size(self) -> int:
        """Components of the padded observation that it uses, the first ones."""
        return sum(size for _, size in self.obs)

    @property
    def action_size(self) -> int:
        """Components of the padded action that it uses, the first ones."""
        return sum(size for _, size in self.action)

    def score_of(self, episode_return: float) -> float | None:
        """The return on the task's scale from 0 to 100; it may lie beyond."""
        if self.score is None:
            return None
        low, high = self.score
        return 100.0 * (episode_return - low) / (high - low)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "name": self.name,
            "env": self.env,
            "settings": dict(self.settings),
            "obs": [list(pair) for pair in self.obs],
            "action": [list(pair) for pair in self.action],
            "episode_limit": self.episode_limit,
            "may_terminate": self.may_terminate,
            "score": None if self.score is None else list(self.score),
            "joined": self.joined,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskSpec:
        """Inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: If it is no description.
        """
        score = data.get("score")
        return cls(
            name=data["name"],
            env=data["env"],
            settings=dict(data["settings"]),
            obs=_sizes(data[OBS]),
            action=_sizes(data[ACTION]),
            episode_limit=data.get("episode_limit"),
            may_terminate=bool(data.get("may_terminate", False)),
            score=None if score is None else (float(score[0]), float(score[1])),
            joined=int(data.get("joined", 0)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSpec:
    """What an environment gives and takes.

    Args:
        name: The ``--env`` text that made it.
        obs: Observation keys, in a fixed (sorted) order.
        action: Action keys, likewise.
        episode_limit: Time limit in agent steps, or None when the env has none that we know of.
        action_repeat: Simulator steps per decision; ``env_steps = agent_steps * action_repeat``.
        may_terminate: False when episodes are known to end by truncation only.
        settings: Of the env, as it was made.
        spaces: The env's own spaces as JSON (``obs``, ``action``: ``worldloom.envs.space_json``);
            empty where they are not known.
        tasks: The tasks of an env that plays several of them; empty for one alone. Then the vectors
            are padded with zeros to the largest, and :data:`TASK` is an observation key.
        order: Observation keys in the order in which the env itself gives them, where that is not
            the sorted one.
    """

    name: str
    obs: Mapping[str, ArraySpec]
    action: Mapping[str, ArraySpec]
    episode_limit: int | None = None
    action_repeat: int = 1
    may_terminate: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    spaces: Mapping[str, Any] = field(default_factory=dict, compare=False)
    tasks: tuple[TaskSpec, ...] = ()
    order: tuple[str, ...] = field(default=(), compare=False)

    @property
    def task_column(self) -> str | None:
        """The column of a stored row that tells its task; None for one task alone."""
        return column_name(OBS, TASK) if self.tasks else None

    @property
    def played(self) -> str:
        """The name of the env; of several tasks the names of all that are built, with commas."""
        return ",".join(task.env for task in self.tasks) or self.name

    def action_mask(self) -> np.ndarray:
        """``[tasks, A]`` float32: 1 for the action components that each task uses."""
        size = sum(spec.size for spec in self.action.values())
        used = np.array([[task.action_size] for task in self.tasks])
        mask: np.ndarray = (np.arange(size) < used).astype(np.float32)
        return mask

    def columns(self, extras: Mapping[str, ArraySpec] | None = None) -> dict[str, ArraySpec]:
        """Every column of a stored row: observations, actions, reward, flags, and an agent's own
        ``extras``.
        """
        flag = ArraySpec((), "bool")
        return {
            **{column_name(OBS, key): spec for key, spec in self.obs.items()},
            **{column_name(ACTION, key): spec for key, spec in self.action.items()},
            "reward": ArraySpec((), "float32"),
            "is_first": flag,
            "terminated": flag,
            "truncated": flag,
            **(extras or {}),
        }

    @property
    def has_continuous_actions_only(self) -> bool:
        """True when every action key is a continuous vector."""
        return not any(spec.is_discrete for spec in self.action.values())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "name": self.name,
            "obs": {key: spec.to_dict() for key, spec in self.obs.items()},
            "action": {key: spec.to_dict() for key, spec in self.action.items()},
            "episode_limit": self.episode_limit,
            "action_repeat": self.action_repeat,
            "may_terminate": self.may_terminate,
            "settings": dict(self.settings),
            **({"spaces": dict(self.spaces)} if self.spaces else {}),
            **({"tasks": [task.to_dict() for task in self.tasks]} if self.tasks else {}),
            **({"order": list(self.order)} if self.order else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EnvSpec:
        """Inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: If it says no such thing.
        """
        specs = {
            group: {k: ArraySpec.from_dict(v) for k, v in data[group].items()}
            for group in (OBS, ACTION)
        }
        rest = {
            k: data[k]
            for k in ("name", "episode_limit", "action_repeat", "may_terminate", "settings")
        }
        _check_counts(rest)
        spaces = data.get("spaces", {})
        return cls(
            obs=specs[OBS],
            action=specs[ACTION],
            spaces=spaces,
            tasks=tuple(TaskSpec.from_dict(task) for task in data.get("tasks", ())),
            order=tuple(data.get("order", ())),
            **rest,
        )


def _check_counts(facts: Mapping[str, Any]) -> None:
    """Refuse what others compute with and no env has."""
    limit, repeat, settings = (facts[k] for k in ("episode_limit", "action_repeat", "settings"))
    if limit is not None and not (type(limit) is int and 0 < limit < LONGEST):
        raise ValueError(f"episode_limit cannot be {limit!r:.40}")
    if type(repeat) is not int or not 0 < repeat < LONGEST:
        raise ValueError(f"action_repeat cannot be {repeat!r:.40}")
    if not isinstance(facts["name"], str) or not isinstance(settings, Mapping):
        raise TypeError("name must be a text, and settings a table")


def _sizes(pairs: Sequence[Sequence[Any]]) -> tuple[tuple[str, int], ...]:
    return tuple((str(key), int(size)) for key, size in pairs)


def all_finite(array: np.ndarray) -> bool:
    """True when no element of a float array is NaN or infinite.

    One number tells nearly always, in a fifth of the time: a sum of squares is finite only if every
    element is. Squares of large elements overflow, so only a look at every element can say no.
    """
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def column_name(group: str, key: str) -> str:
    """Column of ``key`` in group ``obs`` or ``action``: the bare group name for a space with a
    single key.
    """
    return group if key == group else f"{group}/{key}"


def group_keys(columns: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The part of ``columns`` that belongs to ``group``, keyed by the space's own keys."""
    prefix = group + "/"
    return {
        (name if name == group else name[len(prefix) :]): value
        for name, value in columns.items()
        if name == group or name.startswith(prefix)
    }
