"""What an environment looks like to the rest of the system: names, shapes, dtypes and counts; no
Gymnasium, no torch.

Observations and actions are flat mappings from a key to an array. A space that is not a Dict has
the single key ``obs`` (or ``action``). In stored rows the key becomes a column name: ``obs`` stays
``obs``, key ``camera`` becomes ``obs/camera``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["ACTION", "OBS", "ArraySpec", "EnvSpec", "all_finite", "column_name", "group_keys"]

OBS = "obs"
ACTION = "action"


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
    """

    name: str
    obs: Mapping[str, ArraySpec]
    action: Mapping[str, ArraySpec]
    episode_limit: int | None = None
    action_repeat: int = 1
    may_terminate: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    spaces: Mapping[str, Any] = field(default_factory=dict, compare=False)

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
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EnvSpec:
        """Inverse of :meth:`to_dict`."""
        specs = {
            group: {k: ArraySpec.from_dict(v) for k, v in data[group].items()}
            for group in (OBS, ACTION)
        }
        rest = {
            k: data[k]
            for k in ("name", "episode_limit", "action_repeat", "may_terminate", "settings")
        }
        spaces = data.get("spaces", {})
        return cls(obs=specs[OBS], action=specs[ACTION], spaces=spaces, **rest)


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
