"""One coordinator over all shards: it keeps the train ratio exact and says from which shard to
sample.

    worker --try_make(question)-> coordinator    steps: make them. 0: wait for training
    shard  --try_insert(steps)--> coordinator    True: insert them. False: wait for training
    reader --try_sample(n)------> coordinator    windows per shard. None: wait for inserts

Every call returns at once. A caller that is refused waits until the other side has proceeded and
asks again; the band guarantees that one of the sides may (``worldloom.data.rate_limiter``). Who
waits and how (a condition variable, an asyncio event) is the wrapper's choice; this class holds no
lock.

What a worker makes is permitted before it is made, and its chunks are admitted as they come; who
makes rows outside of the run (a client of a gateway) asks when they are there. Steps count as
inserted when their chunk is admitted. A shard asks for all chunks that wait at once, so that a busy
one asks less often, and gives back what it did not use. When a shard dies its open permits are
void; when it returns, its counters say what was really inserted. So nothing here needs to survive:
a new coordinator is rebuilt from the shards' counters, the learner's count and the workers'
questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldloom.core.sequence import StreamId
from worldloom.data.offline_share import OfflineShare
from worldloom.data.rate_limiter import RateLimiter, RateLimits
from worldloom_dist.ports import RowCounters, SampleRequest, StepQuestion
from worldloom_dist.replay.step_permits import StepPermits

__all__ = ["ReplayCoordinator", "shard_of"]


@dataclass(slots=True)
class _Account:
    """What the coordinator knows of one shard: steps counted for it, windows it can serve now and
    those of them that are of files, and whether it is there.
    """

    agent_steps: int = 0
    windows: int = 0
    files: int = 0
    is_live: bool = True


@dataclass(slots=True)
class _Blocked:
    """Seconds that one side was refused: from a refusal to the next permit."""

    seconds: float = 0.0
    since: float | None = None

    def refused(self, now: float) -> None:
        """The side has to wait from now on, if it does not wait already."""
        self.since = now if self.since is None else self.since

    def permitted(self, now: float) -> None:
        """The side proceeds."""
        self.seconds = self.until(now)
        self.since = None

    def until(self, now: float) -> float:
        """Seconds so far, a wait that goes on included."""
        return self.seconds + (0.0 if self.since is None else now - self.since)


class ReplayCoordinator:
    """Counts both sides over all shards; see the module.

    Args:
        limits: The train ratio, its band and the prefill.
        window_positions: Trained positions of one window (``SamplingSpec.length``).
        share: Which part of every batch begins at rows from files; None leaves that to chance.
        clock: Seconds, monotonic; only for the blocked times.
    """

    def __init__(
        self,
        limits: RateLimits,
        *,
        window_positions: int,
        share: OfflineShare | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limiter = RateLimiter(limits)
        self.permits = StepPermits(self.limiter)
        self.window_positions = window_positions
        self._share = share
        self._clock = clock
        self._shards: dict[int, _Account] = {}
        self._insert_blocked = _Blocked()
        self._sample_blocked = _Blocked()

    @property
    def live_shards(self) -> list[int]:
        """Shards that are there."""
        return sorted(index for index, account in self._shards.items() if account.is_live)

    @property
    def insert_blocked_s(self) -> float:
        """Seconds for which inserts were refused so far."""
        return self._insert_blocked.until(self._clock())

    @property
    def sample_blocked_s(self) -> float:
        """Seconds for which samples were refused so far."""
        return self._sample_blocked.until(self._clock())

    def join(self, shard: int, counters: RowCounters, live_windows: int) -> None:
        """A shard is there, for the first time or again: its counters replace everything that was
        counted or permitted for it.

        A shard that lost its disk must admit it first (``ReplayShard.mark_lost``), or its steps
        would be asked for again.
        """
        account = self._shards.setdefault(shard, _Account())
        self.limiter.inserted(counters.agent_steps - account.agent_steps)
        self._shards[shard] = _Account(counters.agent_steps, live_windows)
        self.permits.doubt(lambda slot: slot % len(self._shards) == shard)

    def leave(self, shard: int) -> None:
        """A shard is gone: nothing is sampled from it until it joins or reports again. Its steps
        stay counted.
        """
        self._shards[shard].is_live = False

    def report(self, shard: int, live_windows: int, file_windows: int = 0) -> None:
        """A shard says what it can serve, and what of that is of files. One that had been left out
        too early is back, with what was permitted to it.
        """
        account = self._shards[shard]
        account.windows = live_windows
        account.files = file_windows
        account.is_live = True

    def rebuild(self, shards: Mapping[int, tuple[RowCounters, int]], positions: int) -> None:
        """Start over from the shards (counters and live windows) and the learner's count."""
        self._shards = {}
        self.limiter.rebase(0, positions)
        for shard, (counters, live_windows) in shards.items():
            self.join(shard, counters, live_windows)

    def try_make(self, question: StepQuestion, target: int) -> int:
        """Agent steps that a worker may make next, 0 when it has to wait; see
        :meth:`StepPermits.ask`. The train ratio does not bind while nothing can be sampled; before
        the offline updates are made no step is permitted.
        """
        if self.limiter.is_offline:
            return 0
        is_bound = self._live_windows() > 0
        steps = self.permits.ask(question, target=target, is_bound=is_bound)
        if steps:
            self._insert_blocked.permitted(self._clock())
        elif self.limiter.steps_made < target:
            self._insert_blocked.refused(self._clock())
        return steps

    def may_make(self, agent_steps: int, *, in_hand: int) -> bool:
        """True when the train ratio allows a decision that makes this number of steps, besides
        those that are made and not stored (lock-step in one process).
        """
        self.limiter.steps_in_hand = in_hand
        if self.limiter.is_offline:
            return False
        at_most = min(agent_steps, self.limiter.limits.max_insert_steps)
        return not (in_hand and self._live_windows()) or self.limiter.may_insert(at_most)

    def arrived(self, shard: int, slot: int, incarnation: int, agent_steps: int) -> None:
        """A chunk of a worker comes in: its steps were permitted before they were made."""
        self.permits.arrived(slot, incarnation, agent_steps)
        self._count(shard, agent_steps)

    def try_insert(self, shard: int, agent_steps: int) -> bool:
        """Grant a shard ``agent_steps`` steps, or refuse.

        Granted without a look at the ratio: a chunk without steps (reset rows only), and everything
        while no window is complete in any live shard, for then nothing can be sampled and both
        sides would wait for ever; what is owed by then is trained later. Steps never come before
        the offline updates.
        """
        is_bound = self._live_windows() > 0 or self.limiter.is_offline
        if agent_steps and is_bound and not self.limiter.may_insert(agent_steps):
            self._insert_blocked.refused(self._clock())
            return False
        self._insert_blocked.permitted(self._clock())
        self._count(shard, agent_steps)
        return True

    def force_insert(self, shard: int, agent_steps: int) -> None:
        """Grant steps beyond the band (lock-step, and what is on its way when a run ends); counted
        like everything else.
        """
        self._insert_blocked.permitted(self._clock())
        self._count(shard, agent_steps)

    def give_back(self, shard: int, agent_steps: int, maker: tuple[int, int] | None = None) -> None:
        """Return permitted steps that were not inserted (a duplicate, a failure): they did not
        arrive from the worker (slot, incarnation) that made them either.
        """
        if maker is not None:
            self.permits.arrived(*maker, -agent_steps)
        self._count(shard, -agent_steps)

    def try_sample(self, request: SampleRequest) -> dict[int, SampleRequest] | None:
        """Grant a batch of windows and split it over the live shards, or refuse.

        Each window is drawn from a shard with probability proportional to the shard's live windows,
        so that over all shards every window is equally likely. The split and the shards' own draws
        depend on the request's seed only.

        Returns:
            A request per shard that has to serve some; None when sampling is blocked by the ratio
            or because nothing is stored.
        """
        positions = request.windows * self.window_positions
        if not self._live_windows() or not self.limiter.may_sample(positions):
            self._sample_blocked.refused(self._clock())
            return None
        self._sample_blocked.permitted(self._clock())
        self.limiter.sampled(positions)
        return self.split(request)

    def split(self, request: SampleRequest) -> dict[int, SampleRequest]:
        """Split windows that were admitted over the live shards, which have some; see
        :meth:`try_sample`.
        """
        rng = np.random.default_rng(list(request.seed))
        if self._share is not None:
            return self._split_by_share(request, self._share, rng)
        weights = {index: self._shards[index].windows for index in self.live_shards}
        counts = _dealt(request.windows, np.array(list(weights.values()), float), rng)
        # A seed is padded with zeros, so (..., 0) would repeat the stream that made the split:
        # shards count from 1 here.
        return {
            index: SampleRequest(int(count), (*request.seed, index + 1))
            for index, count in zip(weights, counts, strict=True)
            if count
        }

    def _split_by_share(
        self, request: SampleRequest, share: OfflineShare, rng: np.random.Generator
    ) -> dict[int, SampleRequest]:
        """As :meth:`split`, for the windows of files and for those of the run by themselves;
        where there are none of one kind, the other gives all.
        """
        live = self.live_shards
        files = np.array([self._shards[index].files for index in live], float)
        every = np.array([self._shards[index].windows for index in live], float)
        own = np.maximum(every - files, 0)
        wanted = share.windows(request.windows, self.limiter.agent_steps, rng)
        if not own.sum():
            wanted = request.windows
        if not files.sum():
            wanted = 0
        of_files = _dealt(wanted, files, rng)
        of_run = _dealt(request.windows - wanted, own, rng)
        return {
            index: SampleRequest(int(run + file), (*request.seed, index + 1), int(file))
            for index, run, file in zip(live, of_run, of_files, strict=True)
            if run + file
        }

    def try_samples(self, requests: Sequence[SampleRequest]) -> list[dict[int, SampleRequest]]:
        """Grant as many of the batches, from the first, as the ratio allows now; none means that
        sampling is blocked.
        """
        permitted: list[dict[int, SampleRequest]] = []
        for request in requests:
            if permitted and not self.limiter.may_sample(request.windows * self.window_positions):
                break  # the caller has work now, so it is not blocked
            one = self.try_sample(request)
            if one is None:
                break
            permitted.append(one)
        return permitted

    def _live_windows(self) -> int:
        return sum(account.windows for account in self._shards.values() if account.is_live)

    def _count(self, shard: int, agent_steps: int) -> None:
        self._shards[shard].agent_steps += agent_steps
        self.limiter.inserted(agent_steps)


def _dealt(
    windows: int, weights: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Windows per shard, each drawn in proportion to the shards' weights."""
    if not windows:
        return np.zeros(len(weights), np.int64)
    return rng.multinomial(windows, weights / weights.sum())


def shard_of(stream: StreamId, num_shards: int) -> int:
    """The shard that owns a stream: all streams of a worker slot go to one shard, and slots are
    dealt out evenly.
    """
    return stream.slot % num_shards
