"""Rows, chunks and sequences: the time-index contract, and the only file that shifts an index.

Row ``t`` holds what the agent sees and then does; the reward of a row is the one received on
arrival:

    t                      0      1           2 (last row of the episode)    3 (next episode)
    obs                    o0     o1          o2, the true final observation o'0
    action                 a0     a1          present but ignored            a'0
    reward                 0      r(o0,a0)    r(o1,a1)                       0
    is_first               True   False       False                          True
    terminated/truncated   F/F    F/F         one of them True               F/F

An episode of n decisions has n + 1 rows. ``is_last = terminated | truncated`` and ``cont = 1 -
terminated``; truncation bootstraps. A crash leaves no last row: the end of that episode is inferred
from the next ``is_first`` or from a gap.

``Rows`` maps a column name (see ``core.specs``) to an array with a leading time axis. Axis legend:
B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pickle import PickleBuffer
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from worldloom.core.exceptions import ShapeMismatchError
from worldloom.core.specs import ACTION, OBS, ArraySpec, column_name, group_keys

__all__ = [
    "NO_POLICY",
    "Chunk",
    "PolicyVersion",
    "Rows",
    "SequenceBatch",
    "StreamId",
    "agent_steps",
    "check_sequence",
    "rows_from_gym",
    "rows_to_gym",
    "transitions",
]

Rows = dict[str, np.ndarray]
FLAGS = ("is_first", "terminated", "truncated")


class StreamId(NamedTuple):
    """One env's endless stream of rows. A restarted worker (or rebuilt env slot) has a new
    incarnation, hence a new stream.
    """

    slot: int
    incarnation: int
    env: int

    @property
    def is_imported(self) -> bool:
        """True for rows that came from a file: no policy of this run made them, so they are no
        agent steps and owe no training.
        """
        return self.incarnation < 0

    def __str__(self) -> str:
        return f"{self.slot}.{self.incarnation}.{self.env}"


class PolicyVersion(NamedTuple):
    """Which weights acted: ordered, never falling. ``(0, 0)`` is no weights at all (random or
    prefill actions).
    """

    incarnation: int
    update: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.update}"


NO_POLICY = PolicyVersion(0, 0)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of consecutive rows of one stream, encoded for transport and storage.

    ``(stream, seq)`` names it for ever: ``seq`` counts the stream's chunks from 0, so a receiver
    can ignore a retry and see a gap. ``payload`` is what ``worldloom.data.codec.encode_rows`` made
    of ``num_rows`` rows, ``num_agent_steps`` of which complete a decision (see
    :func:`agent_steps`). All rows were acted by ``version``.

    Pickled with protocol 5 the payload travels out of band, so between processes it is copied once,
    into shared memory; who receives it gets a view.
    """

    stream: StreamId
    seq: int
    version: PolicyVersion
    num_rows: int
    num_agent_steps: int
    payload: bytes | memoryview

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        payload = PickleBuffer(self.payload) if int(protocol) >= 5 else bytes(self.payload)
        return _receive, (
            *self.stream,
            self.seq,
            *self.version,
            self.num_rows,
            self.num_agent_steps,
            payload,
        )


def _receive(
    slot: int,
    env_incarnation: int,
    env: int,
    seq: int,
    incarnation: int,
    update: int,
    num_rows: int,
    num_agent_steps: int,
    payload: Any,
) -> Chunk:
    """A chunk as it was pickled; ``payload`` is any buffer."""
    return Chunk(
        StreamId(slot, env_incarnation, env),
        seq,
        PolicyVersion(incarnation, update),
        num_rows,
        num_agent_steps,
        memoryview(payload),
    )


def agent_steps(is_first: np.ndarray) -> int:
    """Decisions whose result these rows hold: each row that is not a reset is the arrival of one
    decision.
    """
    return int(is_first.size - np.count_nonzero(is_first))


def check_sequence(rows: Mapping[str, np.ndarray], columns: Mapping[str, ArraySpec]) -> int:
    """Check rows of one stream against their column specs and the time-index contract.

    Returns:
        The number of rows.

    Raises:
        ShapeMismatchError: Names the first column that is missing, unknown, of another shape or
            dtype, or breaks the contract.
    """
    if set(rows) != set(columns):
        raise ShapeMismatchError("columns of a row", sorted(columns), sorted(rows))
    length = len(rows["is_first"])
    for name, spec in columns.items():
        array = rows[name]
        if array.shape != (length, *spec.shape) or array.dtype != spec.dtype:
            raise ShapeMismatchError(
                f"column {name!r}",
                ((length, *spec.shape), spec.dtype),
                (array.shape, str(array.dtype)),
            )
    first = rows["is_first"]
    last = rows["terminated"] | rows["truncated"]
    if np.any(first & last):
        raise ShapeMismatchError(
            "a row with is_first", "neither terminated nor truncated", "both set"
        )
    if np.any(rows["reward"][first] != 0):
        raise ShapeMismatchError(
            "reward of a row with is_first", 0.0, rows["reward"][first].tolist()
        )
    if length > 1 and np.any(last[:-1] & ~first[1:]):
        raise ShapeMismatchError(
            "the row after a last row", "is_first", "a row of the same episode"
        )
    return length


@dataclass(frozen=True)
class SequenceBatch:
    """A batch of windows as ``Agent.train_step`` reads it; arrays are numpy or torch, all ``[B, T,
    ...]``.

    Attributes:
        obs, action: Mappings from key to array.
        reward, is_first, terminated, truncated: ``[B, T]``; flags are boolean.
        extras: The agent's own columns (for example stored latents), keyed by column name.
        row_ids: Where the rows live in replay (``[B, T]`` int64, opaque), for write-back; None when
            nothing is written back.
        windows: What a learner made the batch of, on the host; None in the batch that an agent
            gets.
        arrived: While the arrays are on their way to the device: the event after which they may be
            read.
    """

    obs: Mapping[str, Any]
    action: Mapping[str, Any]
    reward: Any
    is_first: Any
    terminated: Any
    truncated: Any
    extras: Mapping[str, Any] = field(default_factory=dict)
    row_ids: Any = None
    windows: Any = None
    arrived: Any = None

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any], row_ids: Any = None) -> SequenceBatch:
        """Group flat columns; everything that is not obs, action, reward or a flag is an extra."""
        obs = group_keys(columns, OBS)
        action = group_keys(columns, ACTION)
        known = {
            "reward",
            *FLAGS,
            *(column_name(OBS, k) for k in obs),
            *(column_name(ACTION, k) for k in action),
        }
        extras = {name: value for name, value in columns.items() if name not in known}
        first, terminated, truncated = (columns[flag] for flag in FLAGS)
        return cls(obs, action, columns["reward"], first, terminated, truncated, extras, row_ids)

    def map(self, function: Callable[[Any], Any]) -> SequenceBatch:
        """Apply ``function`` (for example numpy to device tensor) to every array; ``row_ids`` stay
        on the host.
        """

        def mapped(group: Mapping[str, Any]) -> dict[str, Any]:
            """``function`` of every array of a group."""
            return {key: function(value) for key, value in group.items()}

        plain = {name: function(getattr(self, name)) for name in ("reward", *FLAGS)}
        return replace(
            self,
            obs=mapped(self.obs),
            action=mapped(self.action),
            extras=mapped(self.extras),
            **plain,
        )

    def arrays(self) -> list[Any]:
        """All arrays but ``row_ids``, in an order that depends on the names only."""
        groups = (self.obs, self.action, self.extras)
        named = [group[key] for group in groups for key in sorted(group)]
        return [*named, self.reward, self.is_first, self.terminated, self.truncated]

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.reward.shape[0], self.reward.shape[1]


def transitions(
    batch: SequenceBatch,
) -> tuple[Mapping[str, Any], Mapping[str, Any], Any, Any]:
    """Windows of H+1 rows inside one episode as H transitions: (obs[t], action[t], reward[t+1],
    terminated[t+1]).

    Returns:
        Obs ``[B, H+1, ...]`` per key; action ``[B, H, ...]`` per key; reward and terminated
        ``[B, H]``.
    """
    action = {key: value[:, :-1] for key, value in batch.action.items()}
    return batch.obs, action, batch.reward[:, 1:], batch.terminated[:, 1:]


def rows_from_gym(
    obs: Mapping[str, np.ndarray],
    action: Mapping[str, np.ndarray],
    reward: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
) -> Rows:
    """One episode as a Gymnasium user has it, as rows.

    Args:
        obs: Per key ``[n+1, ...]``, the final observation included.
        action, reward, terminated, truncated: ``[n, ...]``; entry t belongs to the decision taken
            in ``obs[t]``.

    Returns:
        n + 1 rows; the action of the last one is zero and ignored.
    """
    steps = len(reward)

    def arrival(values: np.ndarray, dtype: str) -> np.ndarray:
        """Values on the rows on which they arrive: nothing arrives on the first."""
        return np.concatenate([np.zeros(1, dtype), np.asarray(values, dtype).reshape(steps)])

    first = np.zeros(steps + 1, bool)
    first[0] = True
    rows = {column_name(OBS, key): np.asarray(value) for key, value in obs.items()}
    for key, value in action.items():
        rows[column_name(ACTION, key)] = np.concatenate([value, np.zeros_like(value[:1])])
    return rows | {
        "reward": arrival(reward, "float32"),
        "is_first": first,
        "terminated": arrival(terminated, "bool"),
        "truncated": arrival(truncated, "bool"),
    }


def rows_to_gym(rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Inverse of :func:`rows_from_gym` for the rows of one whole episode: keys obs, action, reward,
    terminated, truncated.
    """
    return {
        "obs": group_keys(rows, OBS),
        "action": {key: value[:-1] for key, value in group_keys(rows, ACTION).items()},
        "reward": rows["reward"][1:],
        "terminated": rows["terminated"][1:],
        "truncated": rows["truncated"][1:],
    }
