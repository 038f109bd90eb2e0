"""The learner's prefetcher: asks the coordinator for permits and the shards for windows, a few
batches ahead of the training step.

    prefetcher thread: coordinator permits -> sample requests to all shards at once -> concatenated
    batches, staged -> bounded queue -> learner

A fast learner gets several batches for one round of questions: asking costs every shard a
millisecond or so, and this process's one Python interpreter, which training needs too. As many as
it trains in ``ROUND_S``, so that no window is drawn much earlier than before.

The thread waits for permits (which inserts unblock) or for room in the queue (which training
unblocks). When a shard dies or has too little, its windows are drawn from the others; nothing waits
for its return. Staging (the copy to a GPU, or out of the object store) and the decoding of what
came encoded are done by this thread too. Each of several learner ranks has a prefetcher of its own,
with draws of its own.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from worldloom.core.metrics import Last, MetricMap
from worldloom.data.windows import EncodedWindows, SampledWindows
from worldloom_dist.interfaces import Coordinator, Shard, coordinator_client, shard_client
from worldloom_dist.ports import SampleRequest
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.rpc.connection import LOOK_EVERY_S
from worldloom_dist.run.plan import Plan, role_seed
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.shard_client import ShardClient, ask_all

__all__ = ["BatchPrefetcher"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

ROUND_S = 0.15
MOST_AT_ONCE = 8
ROUND_BYTES = 64 * 2**20
"""A round asks for as many batches as the learner trains in this many seconds; at least 1, and at
most this many per shard, but no more than that in all when they come in more than this many bytes.
"""


class BatchPrefetcher(Generic[T]):
    """Batches of windows over all shards, in the background.

    Args:
        plan: Of the run.
        first_batch: Number of the first joint batch; the draws are a function of it, and of the
            rank.
        stage: From windows to what :meth:`get` returns.
        rank: Which share of each joint batch this prefetcher draws.
        began_at: Trained positions with which the learner begins.
    """

    def __init__(
        self,
        plan: Plan,
        first_batch: int,
        stage: Callable[[SampledWindows], T],
        *,
        rank: int = 0,
        began_at: int = 0,
    ) -> None:
        self._ranks = plan.config.learners
        self.num_windows = plan.spec.sampling.batch_size // self._ranks
        self._seed = role_seed(plan, "sampling")
        # ranks that ran ahead of others would take their permits
        self._asks_ahead = self._ranks == 1 and not plan.is_lockstep
        self._batch = first_batch * self._ranks + rank
        self._positions = self.num_windows * plan.spec.sampling.length  # of its share of a batch
        self._began_at = began_at
        self._taken = 0
        self._session_id = uuid.uuid4().hex
        self._asker = f"learner-{rank}"
        self._stage = stage
        self._coordinator = coordinator_client()
        self._shards = [shard_client(index) for index in range(plan.config.replay.shards)]
        self._readers = [  # of the thread alone
            ShardClient(shard_client(index), partial(self._is_away, index))
            for index in range(plan.config.replay.shards)
        ]
        self._prefetch = plan.config.learner.prefetch
        self._ready: queue.Queue[T | Exception] = queue.Queue(maxsize=self._prefetch)
        self._stopping = threading.Event()
        self._most = 1
        self._thread = threading.Thread(target=self._run, name="prefetcher", daemon=True)
        self._thread.start()

    def get(self, timeout_s: float) -> T | None:
        """The next batch, or None when none was ready in time.

        Raises:
            RoleGoneError: If the coordinator or every shard stayed away.
        """
        try:
            item = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def gauges(self) -> MetricMap:
        """How full the queue of batches is: empty when the learner waits for data."""
        waiting = Last(float(self._ready.qsize()))
        room = Last(float(self._ready.maxsize))
        return {"queue_items{queue=batches}": waiting, "queue_capacity_items{queue=batches}": room}

    def write_back(self, windows: SampledWindows, refreshed: Mapping[str, np.ndarray]) -> None:
        """Send refreshed extras to the shards their rows live in; no one waits for it."""
        length = next(iter(refreshed.values())).shape[1]
        for index in np.unique(windows.shard):
            mine = windows.shard == index
            columns = {name: value[mine] for name, value in refreshed.items()}
            self._shards[index].notify(
                Shard.write_back, windows.row_ids[mine][:, -length:], columns
            )

    def update_priorities(self, windows: SampledWindows, priorities: np.ndarray) -> None:
        """Send new priorities to the shards of their windows; no one waits for it."""
        for index in np.unique(windows.shard):
            mine = windows.shard == index
            self._shards[index].notify(
                Shard.update_priorities, windows.row_ids[mine, 0], priorities[mine]
            )

    def stop(self) -> None:
        """End the thread, which may be waiting for a permit that will not come."""
        self._stopping.set()
        self._coordinator.notify(Coordinator.dismiss, self._asker, self._session_id)
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        at_once = 1
        try:
            while not self._stopping.is_set():
                batches = [self._batch + ahead * self._ranks for ahead in range(at_once)]
                permits = self._coordinator.within(
                    timeout_s=None, patience_s=DEADLINES.coordinator_patience_s
                ).call(Coordinator.admit_samples, *self._question(batches))
                if permits is None:
                    return
                self._taken += len(permits) * self._positions
                started = time.monotonic()
                # work for the time that the next round takes to arrive
                waiting = min(len(permits), MOST_AT_ONCE)
                self._ready.maxsize = max(self._prefetch, waiting)
                for windows in self.collect(batches, permits):
                    self._put(self._stage(windows))
                    self._batch += self._ranks
                at_once = (
                    _next_round(len(permits), time.monotonic() - started, self._most)
                    if self._asks_ahead
                    else 1
                )
        except Exception as error:  # the edge of the thread: hand it to the learner
            self._put(error)

    def _most_after(self, permits: Sequence[Mapping[int, SampleRequest]]) -> int:
        """Batches that the next round may ask for, by the size of those of a round that came this
        moment.
        """
        asked = set().union(*permits)
        batch_bytes = sum(self._readers[index].answered_bytes for index in asked) / len(permits)
        return int(
            min(MOST_AT_ONCE * len(asked), max(MOST_AT_ONCE, ROUND_BYTES / max(batch_bytes, 1.0)))
        )

    def _question(
        self, batches: Sequence[int]
    ) -> tuple[str, str, int, list[tuple[int, int, int]], int, int]:
        return (
            self._asker,
            self._session_id,
            self.num_windows,
            [(self._seed, batch, 0) for batch in batches],
            self._began_at,
            self._taken,
        )

    def _put(self, item: T | Exception) -> None:
        while not self._stopping.is_set():
            try:
                self._ready.put(item, timeout=0.5)
            except queue.Full:
                continue
            return

    def collect(
        self, batches: Sequence[int], permits: Sequence[Mapping[int, SampleRequest]]
    ) -> Iterator[SampledWindows]:
        """Draw what was permitted, one batch after the other, and from other shards what some could
        not give.
        """
        found = deque(zip(batches, self._ask(permits), strict=False))
        self._most = self._most_after(permits)
        while found:  # nothing of a batch is kept here once it was handed on
            batch, (parts, missing) = found.popleft()
            drawn = EncodedWindows.concatenate(
                self._make_up(batch, parts, missing) if missing else parts
            )
            del parts
            windows = drawn.decode()
            del drawn
            yield windows
            del windows

    def _make_up(
        self, batch: int, parts: list[EncodedWindows], missing: int
    ) -> list[EncodedWindows]:
        give_up = time.monotonic() + DEADLINES.any_shard_s
        attempt = 0
        while missing:
            if time.monotonic() > give_up:
                raise RoleGoneError(f"no shard could be sampled for {DEADLINES.any_shard_s:.0f} s")
            attempt += 1
            time.sleep(0.0 if attempt < 3 else 0.2)
            requests = self._coordinator.call(
                Coordinator.split, missing, (self._seed, batch, attempt)
            )
            ((more, missing),) = self._ask([requests])
            parts = parts + more
        return parts

    def _ask(
        self, permits: Sequence[Mapping[int, SampleRequest]]
    ) -> list[tuple[list[EncodedWindows], int]]:
        """Ask all shards at once; returns what they give for each batch, and how many of its
        windows are missing.
        """
        return [
            (
                list(given.values()),
                sum(request.windows for index, request in permit.items() if index not in given),
            )
            for permit, given in zip(
                permits, ask_all(self._readers, permits, self._without)(), strict=True
            )
        ]

    def _is_away(self, index: int) -> bool:
        """Whether the coordinator, which hears from all shards, has given up on one that does not
        answer.
        """
        try:
            coordinator = self._coordinator.within(timeout_s=LOOK_EVERY_S, patience_s=0.0)
            return not coordinator.call(Coordinator.is_live, index)
        except RoleGoneError:
            return False

    def _without(self, index: int) -> None:
        logger.warning("shard-%d is away; its windows come from the others", index)
        self._shards[index].forget()
        self._coordinator.call(Coordinator.shard_down, index)


def _next_round(batches: int, seconds: float, most: int) -> int:
    """Batches to ask for, when it took so long until the learner had room for the last ones; at
    most twice as many as those.
    """
    return max(1, min(2 * batches, most, int(ROUND_S * batches / max(seconds, 1e-6))))
