"""The coordinator as a Ray actor: a thin asynchronous shell around
``worldloom_dist.replay.coordinator``, which knows who waits.

    worker --permit_steps------------------------> CoordinatorRole  waits for the ratio
    worker --append(chunk)--> ShardRole --admit--> CoordinatorRole  at once; a gateway's waits
    prefetcher --admit_samples-------------------> CoordinatorRole  waits for the ratio

Every permit wakes those who wait for the other side. A learner that waits for rows which workers
have in open chunks gets them: workers that wait are told to send what they have. A coordinator that
is started again knows nothing: shards report to it about once a second, and every question of a
worker or of the learner says what was permitted to it, so it is whole again within a second or two,
and permits nothing until then. A request names the session of the process that asks: when its
successor shows up, what the dead one still waits for is void. A shard that says nothing for a while
hangs, or its machine does: no request is sent there until it is heard again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any, TypeVar

from worldloom_dist.interfaces import InsertQuestion
from worldloom_dist.ports import RowCounters, SampleRequest, StepPermit, StepQuestion
from worldloom_dist.replay.coordinator import ReplayCoordinator
from worldloom_dist.rpc.connection import Endpoint, RpcServer
from worldloom_dist.run.plan import Plan
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.log_forwarder import LogForwarder
from worldloom_dist.runtime.reporting import Reporter
from worldloom_dist.runtime.step_queue import StepQueue

__all__ = ["CoordinatorRole"]

logger = logging.getLogger(__name__)
T = TypeVar("T")


class CoordinatorRole:
    """Admits inserts and samples over all shards.

    Args:
        plan: Of the run.
        positions: Trained positions so far (a resumed run, or a coordinator that died).
        known: The counters of shards, by index and field, as the driver knows them: what they must
            have, or declare lost.
        forgiven: Positions that are not owed any more, as :meth:`counts` says them; None where the
            run was begun with other settings of the train ratio: what lies outside the band when
            the learner begins is forgiven then.
        updates_lost: Updates that died with learners before.
        ended: The newest incarnation of every worker slot that has ended, by slot.
    """

    def __init__(
        self,
        plan: Plan,
        positions: int,
        known: Mapping[str, Mapping[str, int]] | None = None,
        forgiven: str | None = "0",
        updates_lost: int = 0,
        ended: Mapping[int, int] | None = None,
    ) -> None:
        self._plan = plan
        self._positions = positions
        self._log_forwarder = LogForwarder().listen()
        self._known = {
            int(shard): RowCounters(**counters) for shard, counters in (known or {}).items()
        }
        self.coordinator = ReplayCoordinator(
            plan.limits, window_positions=plan.spec.sampling.length, share=plan.offline_share
        )
        for slot, incarnation in (ended or {}).items():
            self.coordinator.permits.gone(slot, incarnation)
        self._counters: dict[int, RowCounters] = {}
        self._live: dict[int, int] = {}
        self._live_files: dict[int, int] = {}
        self._sessions: dict[str, str] = {}
        self._heard: dict[int, float] = {}
        # session, number and permit of every shard's last question
        self._answered: dict[tuple[int, bool], tuple[str, int, int]] = {}
        self._is_clamped = forgiven is not None
        self.coordinator.limiter.forgiven = Fraction(forgiven or 0)
        self._updates_lost = updates_lost
        # trained positions that the learner began with, and those permitted to each rank since
        self._began_at: int | None = None
        self._learner: int | None = None
        self._taken: dict[str, int] = {}
        self._steps = StepQueue(self.coordinator, plan.target_agent_steps)
        # admitted chunks that are not stored yet, per shard; in lock-step only
        self._storing: Counter[int] = Counter()
        self._is_whole = self._is_draining = False
        self._changed = asyncio.Condition()
        self._server = RpcServer(self._answer_line, is_private=plan.config.address is None)

    async def join(
        self,
        shard: int,
        counters: RowCounters,
        live_windows: int,
        session_id: str | None = None,
        file_windows: int = 0,
    ) -> None:
        """A shard started (with a session, if it is a new one); its counters replace what was
        counted for it.
        """
        if session_id is not None:
            # what its predecessor still waits for would be permitted to a process that is gone
            self._sessions[f"shard-{shard}"] = session_id
        self._storing[shard] = 0
        self._heard[shard] = time.monotonic()
        self._counters[shard] = counters
        self._live[shard] = live_windows
        self._live_files[shard] = file_windows
        if self._is_whole:
            self.coordinator.join(shard, counters, live_windows)
            self.coordinator.report(shard, live_windows, file_windows)
        elif len(self._counters) == self._plan.config.replay.shards:
            found = {
                index: (counters, self._live[index])
                for index, counters in sorted(self._counters.items())
            }
            began_at = self._positions if self._began_at is None else self._began_at
            self.coordinator.rebuild(found, began_at + sum(self._taken.values()))
            for index, files in self._live_files.items():
                self.coordinator.report(index, self._live[index], files)
            self._is_whole = True
            self._clamp_once()
        await self._notify()

    async def last_counters(self, shard: int) -> RowCounters | None:
        """What a shard said last, or its predecessor: what it must have, or declare lost."""
        return self._counters.get(shard, self._known.get(shard))

    async def report(
        self, shard: int, counters: RowCounters, live_windows: int, file_windows: int = 0
    ) -> None:
        """A shard's regular report."""
        await self._leave_silent()
        self._heard[shard] = time.monotonic()
        if shard not in self._counters or not self._is_whole:
            await self.join(shard, counters, live_windows, file_windows=file_windows)
            return
        self._counters[shard] = counters
        known = (self._live[shard], self._live_files[shard])
        if known != (live_windows, file_windows) or shard not in self.coordinator.live_shards:
            self._live[shard] = live_windows
            self._live_files[shard] = file_windows
            self.coordinator.report(shard, live_windows, file_windows)
            await self._notify()

    async def rebase_positions(
        self, positions: int, trained: int | None = None, incarnation: int | None = None
    ) -> None:
        """A learner begins with this number of trained positions; what its predecessor did beyond
        them (``trained`` in all, or what was permitted to it) is counted as lost, and owed.

        What its predecessor, or the ranks of that, still wait for is void. A learner that says it
        again, because the answer did not come, changes nothing.
        """
        if incarnation is not None and incarnation == self._learner:
            return
        self._learner = incarnation
        limiter = self.coordinator.limiter
        known = limiter.positions if self._is_whole else self._positions
        known = known if trained is None else max(positions, trained)
        lost = (known - positions) // self._plan.limits.batch_positions
        if lost > 0:
            self._updates_lost += lost
            logger.warning(
                "%d updates were lost with the learner that made them; they are made again, and "
                "workers wait while they are owed",
                lost,
            )
        self._positions = positions
        self._began_at = positions
        self._taken = {}
        for rank in range(self._plan.config.learners):
            self._sessions[f"learner-{rank}"] = ""
        if self._is_whole:
            limiter.rebase(limiter.agent_steps, positions)
            self._clamp_once()
            await self._notify()

    async def shard_down(self, shard: int) -> None:
        """A shard died: sample from the others until it reports again."""
        if self._is_whole and shard in self.coordinator.live_shards:
            self.coordinator.leave(shard)
            await self._notify()

    async def is_live(self, shard: int) -> bool:
        """False while no request is sent to a shard, because it is dead or silent."""
        return not self._is_whole or shard in self.coordinator.live_shards

    async def admit(self, question: InsertQuestion) -> int:
        """Return how many of the chunks, from the first, may be stored; waits until that is one.
        0 when a successor of the shard has shown up.
        """
        asker = f"shard-{question.shard}"
        return await self._wait(asker, question.session_id, lambda: self._answer(question)) or 0

    async def address(self) -> Endpoint:
        """Where shards ask without Ray."""
        return await self._server.address()

    async def permit_steps(self, question: StepQuestion) -> StepPermit:
        """Say how many agent steps a worker may make next; waits a moment until there are some."""
        return await self._steps.ask(question)

    async def worker_down(self, slot: int, incarnation: int) -> None:
        """A worker has ended: what it had in hand will not come."""
        self.coordinator.permits.gone(slot, incarnation)
        self._steps.gone(slot, incarnation)
        await self._notify()

    async def stored(self, shard: int) -> None:
        """A chunk that was admitted is stored, or never will be. In lock-step samples wait for it:
        what they draw depends on it.
        """
        self._storing[shard] = max(0, self._storing[shard] - 1)
        await self._notify()

    async def give_back(
        self, shard: int, agent_steps: int, maker: tuple[int, int] | None = None
    ) -> None:
        """Steps that were admitted and not inserted; of a worker, whose slot and incarnation."""
        self.coordinator.give_back(shard, agent_steps, maker)
        await self._notify()

    async def admit_samples(
        self,
        asker: str,
        session_id: str,
        windows: int,
        seeds: Sequence[tuple[int, ...]],
        began_at: int | None = None,
        taken: int = 0,
    ) -> list[dict[int, SampleRequest]] | None:
        """Return requests per shard for the first batch, when it may be sampled, and for later ones
        that may be sampled then too. None when a successor of the asker has shown up.

        Only the windows of all ranks together make a joint batch, so several ranks share one train
        ratio.

        Args:
            asker, session_id: Which learner rank, and which process of it.
            windows: Of a batch.
            seeds: One for each batch that is wanted.
            began_at: Trained positions with which the learner began.
            taken: Positions that this rank was permitted since then: a coordinator that was started
                again, or whose answer was lost, counts on from there.
        """
        requests = [SampleRequest(windows, seed) for seed in seeds]
        if began_at is not None and not self._learn(asker, began_at, taken):
            return None
        try:
            return await self._wait(asker, session_id, lambda: self._try_samples(asker, requests))
        finally:
            self._steps.fed(asker)

    async def dismiss(self, asker: str, session_id: str) -> None:
        """A learner rank ends: what this session of it waits for is void."""
        if self._sessions.get(asker) == session_id:
            del self._sessions[asker]
            await self._notify()

    async def split(self, windows: int, seed: tuple[int, ...]) -> dict[int, SampleRequest]:
        """Requests for windows of an admitted batch that a shard could not give, mixed of files and
        of the run as the batch was to be.
        """
        async with self._changed:
            while not any(self._live[index] for index in self.coordinator.live_shards):
                await self._changed.wait()
            return self.coordinator.split(SampleRequest(windows, seed))

    async def updates_due(self) -> int:
        """Updates that should have been made by now (lock-step)."""
        limiter = self.coordinator.limiter
        return limiter.updates_due(limiter.agent_steps)

    async def counts(self) -> dict[str, Any]:
        """Counters for the driver and for checkpoints; plain values."""
        limiter = self.coordinator.limiter
        return {
            "counters": asdict(sum(self._counters.values(), RowCounters())),
            "shards": {str(index): asdict(counters) for index, counters in self._counters.items()},
            "agent_steps": limiter.agent_steps,
            "positions": limiter.positions if self._is_whole else self._positions,
            "debt": float(limiter.debt),
            "steps_in_hand": limiter.steps_in_hand,
            "forgiven": str(limiter.forgiven) if self._is_clamped else None,
            "updates_lost": self._updates_lost,
            "blocked_s": {
                "insert": self.coordinator.insert_blocked_s,
                "sample": self.coordinator.sample_blocked_s,
            },
            "is_whole": self._is_whole,
            "windows": sum(self._live.values()),
        }

    async def drain(self) -> None:
        """The run ends: let through what workers still hold."""
        self._is_draining = True
        self._steps.close()
        await self._notify()

    async def ping(self) -> dict[str, Any]:
        """Alive."""
        return {"pid": os.getpid(), "said": self._log_forwarder.drain()}

    async def run_forever(self) -> None:
        """Lasts as long as the process."""
        await Reporter("coordinator").emit_for_ever()

    async def _leave_silent(self) -> None:
        """Leave out shards that have not reported for a while; none when it was this process that
        stood still.
        """
        now = time.monotonic()
        if now - max(self._heard.values(), default=now) > DEADLINES.deaf_s:
            self._heard = dict.fromkeys(self._heard, now)
        if not self._is_whole or self._plan.is_lockstep:  # where time must decide nothing
            return
        late = [
            shard
            for shard in self.coordinator.live_shards
            if now - self._heard[shard] > DEADLINES.shard_silent_s
        ]
        for shard in late:
            logger.warning(
                "shard-%d has said nothing for %.0f s; it is left out until it does",
                shard,
                DEADLINES.shard_silent_s,
            )
            self.coordinator.leave(shard)
        if late:
            await self._notify()

    async def _answer_line(self, question: InsertQuestion | StepQuestion) -> int | StepPermit:
        """What came over a connection."""
        if isinstance(question, StepQuestion):
            return await self.permit_steps(question)
        return await self.admit(question)

    def _may_sample(self) -> bool:
        return self._is_whole and not any(self._storing.values())

    def _learn(self, asker: str, began_at: int, taken: int) -> bool:
        """Take a learner's word for what was permitted to it, which changes nothing where this
        process has permitted all of it. False for a learner that has a successor.
        """
        if self._began_at is None:
            self._began_at = began_at
        if self._began_at != began_at:
            return False
        self._taken[asker] = taken
        if self._is_whole:
            limiter = self.coordinator.limiter
            limiter.rebase(limiter.agent_steps, began_at + sum(self._taken.values()))
            self._clamp_once()
        return True

    def _try_samples(
        self, asker: str, requests: Sequence[SampleRequest]
    ) -> list[dict[int, SampleRequest]] | None:
        """Requests for as many batches as may be sampled; None when there is none."""
        if not self._may_sample():
            return None
        permitted = self.coordinator.try_samples(requests)
        if not permitted:
            self._steps.hungry(asker)
            return None
        positions = len(permitted) * requests[0].windows * self.coordinator.window_positions
        self._taken[asker] = self._taken.get(asker, 0) + positions
        return permitted

    def _clamp_once(self) -> None:
        """A run that goes on with another train ratio owes what that asks for from now on."""
        if not self._is_clamped and self._began_at is not None:
            self.coordinator.limiter.clamp_debt()
            self._is_clamped = True

    def _answer(self, question: InsertQuestion) -> int | None:
        """The permit of a question, the same if it was asked before; None when it has to wait, 0
        when no one waits for it.
        """
        shard, session_id, number, chunks, makers = question
        kind = (shard, bool(makers))
        known_session, last, permitted = self._answered.get(kind, ("", 0, 0))
        if session_id == known_session and number <= last:
            return permitted if number == last else 0
        if makers:
            permitted = self._take_in(shard, chunks, makers)
        else:
            permitted = self._try_inserts(shard, chunks)
        if permitted:
            self._answered[kind] = session_id, number, permitted
        return permitted or None

    def _take_in(self, shard: int, chunks: Sequence[int], makers: Sequence[tuple[int, int]]) -> int:
        """Count chunks of workers, all of them: their steps were permitted."""
        if not self._is_whole:
            return 0
        for steps, maker in zip(chunks, makers, strict=True):
            self.coordinator.arrived(shard, *maker, steps)
        self._storing[shard] += len(chunks) * self._plan.is_lockstep
        return len(chunks)

    def _try_inserts(self, shard: int, chunks: Sequence[int]) -> int:
        return next(
            (number for number, steps in enumerate(chunks) if not self._try_insert(shard, steps)),
            len(chunks),
        )

    def _try_insert(self, shard: int, agent_steps: int) -> bool:
        """When the run drains, what workers still hold goes in beyond the band; before that,
        nothing beyond the run's target.
        """
        if not self._is_whole:
            return False
        is_open = self.coordinator.limiter.steps_made < self._plan.target_agent_steps
        if self._is_draining:
            self.coordinator.force_insert(shard, agent_steps)
        elif not is_open or not self.coordinator.try_insert(shard, agent_steps):
            return False
        self._storing[shard] += self._plan.is_lockstep
        return True

    async def _wait(self, asker: str, session_id: str, attempt: Callable[[], T | None]) -> T | None:
        """Try again at every change until it succeeds, or until another session of the asker has
        shown up.
        """
        async with self._changed:
            if self._sessions.get(asker) != session_id:
                self._sessions[asker] = session_id
                self._changed.notify_all()
            while self._sessions.get(asker) == session_id:
                permitted = attempt()
                if permitted is not None:
                    self._steps.serve(is_open=self._is_whole)
                    self._changed.notify_all()
                    return permitted
                await self._changed.wait()
        return None

    async def _notify(self) -> None:
        self._steps.serve(is_open=self._is_whole)
        async with self._changed:
            self._changed.notify_all()
