"""The inference server: one policy for the envs of many workers, batched. Takes numpy and torch
carries, imports no torch.

Carries live here, one array per carry key with a row for every env that has been seen, named by
(slot, incarnation, env). Row 0 belongs to no env: padding reads and writes it. After a restart the
table is empty; an env that is in the middle of an episode then begins with an initial carry and its
reply says ``carry_reset``, while ``is_first`` stays honest. Who asked counts that, and marks the
row.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError, ShapeMismatchError
from worldloom.core.metrics import MetricMap, merge_into
from worldloom.core.protocol import Carry, Policy, RemembersActions
from worldloom.core.sequence import PolicyVersion
from worldloom.core.weights import WeightsSnapshot
from worldloom_dist.actors.acting import ActMeter, ActReply, ActRequest, WeightPuller
from worldloom_dist.ports import WeightSource

__all__ = ["CarryTable", "InferenceServer"]

EnvName = tuple[int, int, int]


class CarryTable:
    """Carries by env name.

    Args:
        policy: Makes initial carries; they decide dtype and device.
        capacity: Rows to begin with; the table doubles when it is full.
    """

    def __init__(self, policy: Policy, capacity: int = 64) -> None:
        self._policy = policy
        self._blank = policy.initial_carry(1)
        self._carry: Carry = self._table(capacity)
        self._rows: dict[EnvName, int] = {}
        self._free = list(range(capacity - 1, 0, -1))
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self._rows)

    def rows_of(self, request: ActRequest) -> tuple[np.ndarray, np.ndarray]:
        """Table rows of the envs of a request, and which of them are new (``[n]`` each)."""
        names = [(request.slot, request.incarnation, env) for env in request.envs.tolist()]
        is_new = np.array([name not in self._rows for name in names], bool)
        if is_new.any():
            self._forget_earlier(request.slot, request.incarnation)
        return np.array([self._row_of(name) for name in names], np.int64), is_new

    def gather(self, rows: np.ndarray) -> Carry:
        """Copies of the carries of ``rows``."""
        return {key: value[rows] for key, value in self._carry.items()}

    def scatter(self, rows: np.ndarray, carry: Carry) -> None:
        """Store the carries of ``rows``."""
        for key, value in self._carry.items():
            value[rows] = carry[key]

    def _forget_earlier(self, slot: int, incarnation: int) -> None:
        """Drop the carries of the processes that a worker had before."""
        for name in [name for name in self._rows if name[0] == slot and name[1] != incarnation]:
            self._free.append(self._rows.pop(name))

    def _row_of(self, name: EnvName) -> int:
        if name not in self._rows:
            if not self._free:
                self._grow()
            row = self._rows[name] = self._free.pop()
            for key, value in self._carry.items():
                value[row] = self._blank[key][0]
        return self._rows[name]

    def _grow(self) -> None:
        bigger = self._table(2 * self._capacity)
        for key, value in self._carry.items():
            bigger[key][: self._capacity] = value
        self._free.extend(range(2 * self._capacity - 1, self._capacity - 1, -1))
        self._carry = bigger
        self._capacity = 2 * self._capacity

    def _table(self, capacity: int) -> Carry:
        """Initial carries, copied by indexing: writable whatever the policy made them of (even
        torch inference tensors).
        """
        return {
            key: value[np.arange(capacity)]
            for key, value in self._policy.initial_carry(capacity).items()
        }


class InferenceServer:
    """Decides for many workers in one call of the policy; used by one thread.

    Args:
        policy: Decides.
        source: Where weights are found; None when they never change.
        batch_sizes: Static sizes that batches are padded to (a batch larger than the last is not
            padded); empty for none.
        explore: False for evaluation, whatever a request says.
        clock: Monotonic seconds.

    Raises:
        ConfigurationError: If the sizes do not rise.
    """

    def __init__(
        self,
        policy: Policy,
        source: WeightSource | None = None,
        *,
        batch_sizes: Sequence[int] = (),
        explore: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if list(batch_sizes) != sorted(set(batch_sizes)) or any(size < 1 for size in batch_sizes):
            raise ConfigurationError(
                f"inference batch_sizes must be positive and rising, got {tuple(batch_sizes)}"
            )
        self._policy = policy
        self._remembering = policy if isinstance(policy, RemembersActions) else None
        self._explore = explore
        self._sizes = list(batch_sizes)
        self._clock = clock
        self._table = CarryTable(policy)
        self._puller = WeightPuller(policy, source, 0.0, clock)
        self._meter = ActMeter()

    @property
    def version(self) -> PolicyVersion:
        """Weights that act now."""
        return self._puller.version

    def refresh(self) -> None:
        """Fetch newer weights if there are any, and decide with them from now on."""
        self._puller.pull()

    def look(self) -> WeightsSnapshot | None:
        """Newer weights for :meth:`load`, if there are any; another thread may fetch them while
        this server decides.
        """
        return self._puller.look()

    def load(self, newer: WeightsSnapshot) -> None:
        """Decide with these weights from now on."""
        self._puller.load(newer)

    def act_batch(self, requests: Sequence[ActRequest]) -> list[ActReply]:
        """Answer requests of different workers, in order, with one call of the policy (two when
        some want to explore and some do not).

        Raises:
            ShapeMismatchError: If one env appears twice, because its two decisions would share a
                carry.
        """
        if not any(request.num_rows for request in requests):
            return [ActReply({}, {}, self.version, np.zeros(0, bool)) for _ in requests]
        plain = [request for request in requests if not request.explore]
        if not plain or not self._explore:
            return self._decide(requests, explore=self._explore)
        replies = iter(self._decide(plain, explore=False))
        noisy = [request for request in requests if request.explore]
        others = iter(self._decide(noisy, explore=True) if noisy else ())
        return [next(others if request.explore else replies) for request in requests]

    def _decide(self, requests: Sequence[ActRequest], *, explore: bool) -> list[ActReply]:
        started = self._clock()
        found = [self._table.rows_of(request) for request in requests]
        rows, is_new = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if len(np.unique(rows)) != len(rows):
            raise ShapeMismatchError("envs of one inference batch", "each env once", "an env twice")
        is_first = np.concatenate([request.is_first for request in requests])
        obs = {
            key: np.concatenate([request.obs[key] for request in requests])
            for key in requests[0].obs
        }
        padded, rows_obs, first = self._pad(rows, obs, is_first)
        carry = self._table.gather(padded)
        self._note_executed(requests, carry, is_new)
        out = self._policy.act(rows_obs, carry, first, explore=explore)
        self._table.scatter(padded, out.carry)
        self._meter.add(len(rows), self._clock() - started)
        return self._split(requests, out.action, out.extras, is_new & ~is_first)

    def drain_metrics(self) -> MetricMap:
        """What happened since the last call."""
        values = self._meter.drain()
        merge_into(values, self._puller.drain_metrics())
        return values

    def _note_executed(
        self, requests: Sequence[ActRequest], carry: Carry, is_new: np.ndarray
    ) -> None:
        """Write to ``carry`` which actions ran in place of those that it remembers. A carry that
        was lost remembers none.
        """
        if self._remembering is None:
            return
        start = 0
        for request in requests:
            rows = start + request.executed_rows
            start += request.num_rows
            known = ~is_new[rows]
            if not known.any():
                continue
            rows = rows[known]
            ran = {key: value[known] for key, value in request.executed.items()}
            before = {key: value[rows] for key, value in carry.items()}
            for key, value in self._remembering.after_executed(before, ran).items():
                carry[key][rows] = value

    def _pad(
        self, rows: np.ndarray, obs: Mapping[str, np.ndarray], is_first: np.ndarray
    ) -> tuple[np.ndarray, Mapping[str, np.ndarray], np.ndarray]:
        place = bisect.bisect_left(self._sizes, len(rows))
        extra = self._sizes[place] - len(rows) if place < len(self._sizes) else 0
        if not extra:
            return rows, obs, is_first
        padded = {
            key: np.concatenate([value, np.zeros((extra, *value.shape[1:]), value.dtype)])
            for key, value in obs.items()
        }
        return (
            np.concatenate([rows, np.zeros(extra, np.int64)]),
            padded,
            np.concatenate([is_first, np.ones(extra, bool)]),
        )

    def _split(
        self,
        requests: Sequence[ActRequest],
        action: Mapping[str, np.ndarray],
        extras: Mapping[str, np.ndarray],
        carry_reset: np.ndarray,
    ) -> list[ActReply]:
        replies = []
        start = 0
        for request in requests:
            part = slice(start, start + request.num_rows)
            start = part.stop
            replies.append(
                ActReply(_cut(action, part), _cut(extras, part), self.version, carry_reset[part])
            )
        return replies


def _cut(values: Mapping[str, Any], part: slice) -> dict[str, np.ndarray]:
    return {key: value[part] for key, value in values.items()}
