"""What a shard measures of itself: times, bytes, how old the weights were that made its rows. Used
by one event loop.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from worldloom.core.metrics import HistogramBuilder, Last, MetricMap, Sum
from worldloom_dist.metrics.names import BUCKETS_S, LAG_BUCKETS
from worldloom_dist.ports import WriteBack

__all__ = ["ShardMeter", "drawn_metrics", "priority_metrics"]

OPERATIONS = ("insert", "sample", "update_latents")


class ShardMeter:
    """Collects what happens at a shard until it is drained.

    Args:
        window_positions: Trained positions of one window.
        directory: Where the journal lies.
    """

    def __init__(self, window_positions: int, directory: Path) -> None:
        self._window_positions = window_positions
        self._directory = directory
        self._times = {operation: HistogramBuilder(BUCKETS_S) for operation in OPERATIONS}
        self._lags = HistogramBuilder(LAG_BUCKETS)
        self._positions = self._bytes_in = self._bytes_out = 0
        self._refreshed = WriteBack()
        self._prioritised = WriteBack()

    @contextlib.contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Time an operation, those that fail included."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._times[operation].add(time.monotonic() - started)

    def took(self, operation: str, seconds: float) -> None:
        """An operation that was timed elsewhere."""
        self._times[operation].add(seconds)

    def arrived(self, size_bytes: int) -> None:
        """A chunk came, new or not."""
        self._bytes_in += size_bytes

    def lagged(self, updates: int) -> None:
        """A new chunk was made by weights that were this many updates old."""
        self._lags.add(updates)

    def sampled(self, windows: int, size_bytes: int) -> None:
        """Windows were handed out in this many bytes of columns, encoded or not."""
        self._positions += windows * self._window_positions
        self._bytes_out += size_bytes

    def refreshed(self, done: WriteBack) -> None:
        """Training wrote extras again."""
        self._refreshed = self._refreshed.plus(done)

    def prioritised(self, done: WriteBack) -> None:
        """Training gave windows new priorities."""
        self._prioritised = self._prioritised.plus(done)

    def drain(self, memory_bytes: int, arriving: int, drawn: tuple[int, int] = (0, 0)) -> MetricMap:
        """What happened since the last call, and what is stored now.

        Args:
            memory_bytes: What the shard's rows take of memory; rows that are read from disk are
                none of it.
            arriving: Chunks that wait for admission.
            drawn: Windows drawn from the run and from files, see ``ReplayShard.take_drawn``.
        """
        values: MetricMap = {
            f"replay_op_seconds{{op={name}}}": tally.take() for name, tally in self._times.items()
        }
        values |= {
            "policy_lag_updates": self._lags.take(),
            "replay_sampled_steps_total": Sum(self._positions),
            "transfer_bytes_total{path=actor_replay}": Sum(self._bytes_in),
            "transfer_bytes_total{path=replay_learner}": Sum(self._bytes_out),
            "replay_bytes{storage=ram}": Last(memory_bytes),
            "replay_bytes{storage=disk}": Last(_size(self._directory)),
            "queue_items{queue=trajectories}": Last(arriving),
            **self._refreshed.to_metrics(),
            **priority_metrics(self._prioritised),
            **drawn_metrics(drawn),
        }
        self._positions = self._bytes_in = self._bytes_out = 0
        self._refreshed = WriteBack()
        self._prioritised = WriteBack()
        return values


def priority_metrics(done: WriteBack) -> MetricMap:
    """Priorities that were written, and those that came too late."""
    if not (done.applied or done.rejected):
        return {}
    name = "replay_priority_updates_total"
    return {
        f"{name}{{outcome=applied}}": Sum(done.applied),
        f"{name}{{outcome=evicted}}": Sum(done.rejected),
    }


def drawn_metrics(drawn: tuple[int, int]) -> MetricMap:
    """Windows that began at rows of the run, and at rows from files, with ``replay.offline_share``
    (see ``ReplayShard.take_drawn``).
    """
    if not any(drawn):
        return {}
    name = "replay_sampled_windows_total"
    return {f"{name}{{source=run}}": Sum(drawn[0]), f"{name}{{source=file}}": Sum(drawn[1])}


def _size(folder: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):  # a segment may be dropped meanwhile
        for path in folder.iterdir():
            total += path.stat().st_size
    return total
