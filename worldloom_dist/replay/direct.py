"""The replay of a run in one process: shards and coordinator behind the same protocols that the
distributed one has.

A call that the coordinator refuses waits for the other side, at most ``wait_s``. In lock-step there
is one thread and no one to wait for: inserts are only counted, and the schedule makes every update
that is due after each round of inserts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from worldloom.core.exceptions import BufferError, StateError
from worldloom.core.sequence import Chunk
from worldloom.data.windows import EncodedWindows, SampledWindows
from worldloom_dist.ports import RowCounters, SampleRequest, WriteBack
from worldloom_dist.replay.coordinator import ReplayCoordinator, shard_of
from worldloom_dist.replay.imports import ImportReport, load_share
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.replay.snapshots import ShardSnapshot

__all__ = ["DirectReplay"]

T = TypeVar("T")


class DirectReplay:
    """Shards in this process: implements ``ports.ReplayWriter``, and answers a learner. Safe for
    several threads.

    Args:
        shards: All shards of the run, by index; they join the coordinator here, with what they
            found on disk. After a resume, load or rebase ``coordinator.limiter`` next, or
            everything found is owed to training at once.
        coordinator: Keeps the train ratio.
        wait_s: How long a refused call waits for the other side before it fails.
        is_lockstep: Count inserts and never refuse them; the caller keeps the ratio by its
            schedule.
    """

    def __init__(
        self,
        shards: Sequence[ReplayShard],
        coordinator: ReplayCoordinator,
        *,
        wait_s: float = 0.0,
        is_lockstep: bool = False,
    ) -> None:
        self.shards = list(shards)
        self.coordinator = coordinator
        self._wait_s = wait_s
        self._is_lockstep = is_lockstep
        self._changed = threading.Condition()
        self._written_back = self._drained = WriteBack()
        self._prioritised = WriteBack()
        self._join_all()

    @property
    def has_windows(self) -> bool:
        """True when something can be sampled."""
        return any(shard.live_windows() for shard in self.shards)

    @property
    def written_back(self) -> WriteBack:
        """Rows refreshed so far, and refreshed rows that had been evicted meanwhile."""
        return self._written_back

    def drain_written_back(self) -> WriteBack:
        """What was added to :attr:`written_back` since the last call."""
        fresh = WriteBack(
            *(now - before for now, before in zip(self._written_back, self._drained, strict=True))
        )
        self._drained = self._written_back
        return fresh

    def append(self, chunk: Chunk) -> None:
        """See ``ports.ReplayWriter``.

        Raises:
            StateError: If the train ratio blocks the insert for longer than ``wait_s``; nothing is
                stored then.
        """
        index = shard_of(chunk.stream, len(self.shards))
        shard = self.shards[index]
        count = chunk.num_agent_steps
        if self._is_lockstep:
            self.coordinator.force_insert(index, count)
        else:
            self._wait(
                lambda: self.coordinator.try_insert(index, count) or None,
                "insert",
                lambda: self._insert_problem(count),
            )
        is_new = False
        try:
            is_new = shard.append(chunk)
        finally:
            with self._changed:
                if not is_new:
                    self.coordinator.give_back(index, count)
                self.coordinator.report(index, *shard.window_counts())
                self._changed.notify_all()

    def sample(self, request: SampleRequest) -> SampledWindows:
        """Draw windows over all live shards.

        Raises:
            BufferError: If no window is complete in any shard.
            StateError: If the train ratio blocks the sample for longer than ``wait_s``.
        """
        if not self._wait_s and not self.has_windows:
            rows = sum(shard.row_counters().stored for shard in self.shards)
            raise BufferError(
                f"replay holds {rows} rows but no complete window; insert more before sampling"
            )
        parts = self._wait(
            lambda: self.coordinator.try_sample(request),
            "sample",
            lambda: self._sample_problem(request.windows),
        )
        with self._changed:
            self._changed.notify_all()
        drawn = [self.shards[index].draw([part]) for index, part in parts.items()]
        return EncodedWindows.concatenate(drawn).decode()

    def write_back(self, windows: SampledWindows, refreshed: Mapping[str, np.ndarray]) -> None:
        """Overwrite extras of sampled rows, per column ``[n, T, ...]`` for the last T rows of each
        window; rows evicted meanwhile are counted in :attr:`written_back`.
        """
        length = next(iter(refreshed.values())).shape[1]
        for index in np.unique(windows.shard).tolist():
            mine = windows.shard == index
            ids = windows.row_ids[mine, windows.row_ids.shape[1] - length :]
            done = self.shards[index].write_back(
                ids, {name: value[mine] for name, value in refreshed.items()}
            )
            self._written_back = self._written_back.plus(done)

    def update_priorities(self, windows: SampledWindows, priorities: np.ndarray) -> None:
        """Give sampled windows new priorities ``[n]`` > 0; windows evicted meanwhile are counted,
        see :meth:`drain_prioritised`.
        """
        for index in np.unique(windows.shard).tolist():
            mine = windows.shard == index
            outcome = self.shards[index].update_priorities(
                windows.row_ids[mine, 0], priorities[mine]
            )
            self._prioritised = self._prioritised.plus(outcome)

    def drain_prioritised(self) -> WriteBack:
        """Windows that got a new priority since the last call, and those that had been evicted
        meanwhile.
        """
        fresh = self._prioritised
        self._prioritised = WriteBack()
        return fresh

    def drain_drawn(self) -> tuple[int, int]:
        """Windows drawn since the last call from the run and from files, where they are kept
        apart.
        """
        found = [shard.take_drawn() for shard in self.shards]
        return sum(run for run, _ in found), sum(files for _, files in found)

    def load(self, source: str) -> ImportReport:
        """Store the episodes of a file; they pass the train ratio by, and those that are known
        already are skipped.

        Raises:
            CheckpointError: If the file is missing or damaged, or its rows are not those of the
                run.
        """
        parts = [load_share(shard, source, len(self.shards)) for shard in self.shards]
        with self._changed:
            self._join_all()
            self._changed.notify_all()
        return ImportReport.joined(parts)

    def row_counters(self) -> RowCounters:
        """The counters summed over all shards."""
        return sum((shard.row_counters() for shard in self.shards), RowCounters())

    def snapshot(self) -> list[ShardSnapshot]:
        """A cut through every shard; one cut through the run if no one inserts meanwhile."""
        return [shard.snapshot() for shard in self.shards]

    def rollback(self, snapshots: Sequence[ShardSnapshot]) -> None:
        """Return every shard to its snapshot. Load the limiter's own state afterwards."""
        for shard, snapshot in zip(self.shards, snapshots, strict=True):
            shard.rollback(snapshot)
        self._join_all()

    def close(self) -> None:
        """Let go of the shards' directories."""
        for shard in self.shards:
            shard.close()

    def _join_all(self) -> None:
        for index, shard in enumerate(self.shards):
            self.coordinator.join(index, shard.row_counters(), shard.live_windows())
            self.coordinator.report(index, *shard.window_counts())

    def _wait(self, attempt: Callable[[], T | None], side: str, problem: Callable[[], str]) -> T:
        """Try until permitted; each change on the other side wakes us."""
        permitted: list[T] = []

        def is_permitted() -> bool:
            """Try once more, and keep what was permitted."""
            result = attempt()
            permitted.extend([] if result is None else [result])
            return bool(permitted)

        with self._changed:
            if not self._changed.wait_for(is_permitted, self._wait_s):
                raise StateError(
                    f"replay: the train ratio blocks this {side}: {problem()} (waited "
                    f"{self._wait_s:g} s)"
                )
        return permitted[0]

    def _insert_problem(self, agent_steps: int) -> str:
        limiter = self.coordinator.limiter
        missing = limiter.insert_waits_for(agent_steps)
        most = limiter.limits.max_insert_steps
        return (
            f"{missing} positions must be trained before {agent_steps} agent steps fit into the "
            f"band (max_insert_steps {most})"
        )

    def _sample_problem(self, windows: int) -> str:
        positions = windows * self.coordinator.window_positions
        return (
            f"{self.coordinator.limiter.sample_waits_for(positions)} agent steps must be "
            f"inserted before {windows} windows are due"
        )
