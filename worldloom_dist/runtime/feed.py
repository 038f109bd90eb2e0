"""The learner's feed: asks the ledger for credit and the shards for windows, a few batches ahead of the training step.

    feed thread: ledger credit -> sample requests to all shards at once -> one glued batch, staged -> bounded queue -> learner

The thread waits for credit (which inserts unblock) or for room in the queue (which training unblocks). When a shard dies or has
too little, its windows are drawn from the others; nothing waits for its return. Staging (the copy to a GPU, or out of the
object store) and the decoding of what came packed are done by this thread too. Each of several learner ranks has a feed of its
own, with draws of its own.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import numpy as np
import ray

from worldloom.core.exceptions import BufferError
from worldloom.core.metrics import Last, MetricMap
from worldloom_dist.plan import Plan, role_seed
from worldloom_dist.ports import SampledWindows, SampleRequest
from worldloom_dist.replay.packed_windows import PackedWindows
from worldloom_dist.runtime.remote import GONE, Remote, RoleGoneError

__all__ = ["Feed"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

SAMPLE_TIMEOUT_S = 30.0


class Feed(Generic[T]):
    """Batches of windows over all shards, in the background.

    Args:
        plan: Of the run.
        first_batch: Number of the first joint batch; the draws are a function of it, and of the rank.
        stage: From windows to what :meth:`get` returns.
        rank: Which share of each joint batch this feed draws.
    """

    def __init__(self, plan: Plan, first_batch: int, stage: Callable[[SampledWindows], T], *, rank: int = 0) -> None:
        self._ranks = plan.config.learners
        self._windows = plan.spec.sampling.batch_size // self._ranks
        self._seed = role_seed(plan, "sampling")
        self._batch, self._life = first_batch * self._ranks + rank, uuid.uuid4().hex
        self._asker, self._stage = f"learner-{rank}", stage
        self._ledger = Remote("ledger-0")
        self._shards = [Remote(f"shard-{index}") for index in range(plan.config.replay.shards)]
        self._ready: queue.Queue[T | Exception] = queue.Queue(maxsize=plan.config.learner.prefetch)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def get(self, timeout_s: float) -> T | None:
        """The next batch, or None when none was ready in time.

        Raises:
            RoleGoneError: If the ledger or every shard stayed away.
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
        waiting, room = Last(float(self._ready.qsize())), Last(float(self._ready.maxsize))
        return {"queue_items{queue=batches}": waiting, "queue_capacity_items{queue=batches}": room}

    def write_back(self, windows: SampledWindows, refreshed: Mapping[str, np.ndarray]) -> None:
        """Send refreshed extras to the shards their rows live in; nobody waits for it."""
        length = next(iter(refreshed.values())).shape[1]
        for index in np.unique(windows.shard):
            mine = windows.shard == index
            columns = {name: value[mine] for name, value in refreshed.items()}
            self._shards[index].tell("write_back", windows.row_ids[mine][:, -length:], columns)

    def update_priorities(self, windows: SampledWindows, priorities: np.ndarray) -> None:
        """Send new priorities to the shards of their windows; nobody waits for it."""
        for index in np.unique(windows.shard):
            mine = windows.shard == index
            self._shards[index].tell("update_priorities", windows.row_ids[mine, 0], priorities[mine])

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                requests = self._ledger.call("admit_sample", *self._request(), timeout_s=None, patience_s=120.0)
                if requests is None:
                    return
                self._put(self._stage(self._collect(requests)))
                self._batch += self._ranks
        except Exception as error:  # the edge of the thread: hand it to the learner
            self._put(error)

    def _request(self) -> tuple[str, str, int, tuple[int, int, int]]:
        return self._asker, self._life, self._windows, self._seed_of(0)

    def _seed_of(self, attempt: int) -> tuple[int, int, int]:
        return self._seed, self._batch, attempt

    def _put(self, item: T | Exception) -> None:
        while not self._stopping.is_set():
            try:
                self._ready.put(item, timeout=0.5)
            except queue.Full:
                continue
            return

    def _collect(self, requests: Mapping[int, SampleRequest]) -> SampledWindows:
        """Draw what was granted, and from other shards what some could not give."""
        parts: list[SampledWindows] = []
        give_up, attempt = time.monotonic() + 120.0, 0
        while True:
            missing = self._ask(requests, parts)
            if not missing:
                return SampledWindows.concatenate(parts)
            if time.monotonic() > give_up:
                raise RoleGoneError("no shard could be sampled for 120 s")
            attempt += 1
            time.sleep(0.0 if attempt < 3 else 0.2)
            requests = self._ledger.call("split", missing, self._seed_of(attempt))

    def _ask(self, requests: Mapping[int, SampleRequest], parts: list[SampledWindows]) -> int:
        """Ask all shards at once; append what they give and return how many windows are missing."""
        missing, pending = 0, []
        for index, request in requests.items():
            try:
                pending.append((index, request, self._shards[index].handle.sample.remote(request)))
            except ValueError:
                missing += self._lost(index, request.windows)
        for index, request, reference in pending:
            try:
                given = ray.get(reference, timeout=SAMPLE_TIMEOUT_S)
                parts.append(given.unpack() if isinstance(given, PackedWindows) else given)
            except GONE:
                missing += self._lost(index, request.windows)
            except BufferError:
                missing += request.windows
        return missing

    def _lost(self, index: int, windows: int) -> int:
        logger.warning("shard-%d is away; its %d windows come from the others", index, windows)
        self._shards[index].forget()
        self._ledger.call("shard_down", index)
        return windows
