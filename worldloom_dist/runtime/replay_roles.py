"""The ledger and the replay shards as Ray actors: thin asynchronous shells around ``worldloom_dist.replay``.

    worker --append(chunk)--> ShardRole --admit_inserts--> LedgerRole     waits until the train ratio allows it
    feed   --admit_samples-------------------------------> LedgerRole     waits likewise, answers windows per shard

Every grant wakes those who wait for the other side. A ledger that is started again knows nothing: shards report to it about once a
second, and the driver tells it what was trained, so it is whole again within a second or two, and admits nothing until then.
A request names the life of the process that asks: when its successor shows up, what the dead one still waits for is void.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from worldloom.core.exceptions import StateError, WorldLoomError
from worldloom.core.sequence import NO_POLICY, Chunk
from worldloom_dist.assembly import build_shard
from worldloom_dist.plan import Plan
from worldloom_dist.ports import RowBooks, SampledWindows, SampleRequest
from worldloom_dist.replay.imports import ImportList, load_share, split_sources
from worldloom_dist.replay.ledger import Ledger
from worldloom_dist.replay.meter import ShardMeter
from worldloom_dist.replay.packed_windows import PackedWindows
from worldloom_dist.runtime.admission import Admission
from worldloom_dist.runtime.allocator import keep_freed_memory
from worldloom_dist.runtime.async_line import AsyncLine
from worldloom_dist.runtime.line import Address, Door
from worldloom_dist.runtime.loop_shard import LoopShard
from worldloom_dist.runtime.pace import Pace, Spaced
from worldloom_dist.runtime.remote import Remote
from worldloom_dist.runtime.reporting import FLUSH_EVERY_S, Reporter
from worldloom_dist.runtime.weight_roles import RemoteWeights

__all__ = ["LedgerRole", "ShardRole"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

REPORT_EVERY_S, REPORT_AT_MOST_EVERY_S = 1.0, 0.1
WEIGHTS_EVERY_S = 30.0
"""How old the priorities may be with which a shard comes back."""


class LedgerRole:
    """Admits inserts and samples over all shards.

    Args:
        plan: Of the run.
        positions: Trained positions so far (a resumed run, or a ledger that died).
        known: The books of shards, by index and field, as the driver knows them: what they must have, or declare lost.
    """

    def __init__(self, plan: Plan, positions: int, known: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self._plan, self._positions = plan, positions
        self._known = {int(shard): RowBooks(**books) for shard, books in (known or {}).items()}
        self._ledger = Ledger(plan.limits, window_positions=plan.spec.sampling.length)
        self._books: dict[int, RowBooks] = {}
        self._live: dict[int, int] = {}
        self._lives: dict[str, str] = {}
        self._answered: dict[int, tuple[str, int, int]] = {}  # life, number and grant of every shard's last question
        self._storing: Counter[int] = Counter()  # admitted chunks that are not stored yet, per shard; in lock-step only
        self._is_whole = self._is_draining = False
        self._changed = asyncio.Condition()
        self._door = Door(self.admit, is_private=plan.config.address is None)

    async def join(self, shard: int, books: RowBooks, live_windows: int) -> None:
        """A shard started; its books replace what was counted for it."""
        self._storing[shard] = 0
        self._books[shard], self._live[shard] = books, live_windows
        if self._is_whole:
            self._ledger.join(shard, books, live_windows)
        elif len(self._books) == self._plan.config.replay.shards:
            found = {index: (books, self._live[index]) for index, books in sorted(self._books.items())}
            self._ledger.rebuild(found, self._positions)
            self._is_whole = True
        await self._notify()

    async def last_books(self, shard: int) -> RowBooks | None:
        """What a shard said last, or its predecessor: what it must have, or declare lost."""
        return self._books.get(shard, self._known.get(shard))

    async def report(self, shard: int, books: RowBooks, live_windows: int) -> None:
        """A shard's regular report."""
        if shard not in self._books or shard not in self._ledger.live_shards:
            await self.join(shard, books, live_windows)
            return
        self._books[shard] = books
        if live_windows != self._live[shard]:
            self._live[shard] = live_windows
            self._ledger.report(shard, live_windows)
            await self._notify()

    async def rebase_positions(self, positions: int) -> None:
        """A learner begins with so many trained positions; what its predecessor did beyond them is owed within the band."""
        self._positions = positions
        if self._is_whole:
            self._ledger.limiter.rebase(self._ledger.limiter.agent_steps, positions)
            await self._notify()

    async def shard_down(self, shard: int) -> None:
        """A shard died: sample from the others until it reports again."""
        if self._is_whole and shard in self._ledger.live_shards:
            self._ledger.leave(shard)
            await self._notify()

    async def admit_inserts(self, shard: int, life: str, number: int, chunks: Sequence[int]) -> int:
        """Return how many chunks, given by their agent steps, may be inserted, from the first; waits until that is one.

        A shard numbers its questions, from 1; one that it asks again, because no answer came, is granted once. 0 when a successor
        of the shard has shown up.
        """
        return await self._wait(f"shard-{shard}", life, lambda: self._answer(shard, life, number, chunks)) or 0

    async def admit(self, asked: tuple[int, str, int, list[int]]) -> int:
        """:meth:`admit_inserts` with its arguments in one, for a line."""
        return await self.admit_inserts(*asked)

    async def address(self) -> Address:
        """Where shards ask without Ray."""
        return await self._door.address()

    async def stored(self, shard: int) -> None:
        """A chunk that was admitted is stored, or never will be. In lock-step samples wait for it: what they draw depends on it."""
        self._storing[shard] = max(0, self._storing[shard] - 1)
        await self._notify()

    async def give_back(self, shard: int, agent_steps: int) -> None:
        """Steps that were admitted and not inserted."""
        self._ledger.give_back(shard, agent_steps)
        await self._notify()

    async def admit_samples(
        self, asker: str, life: str, windows: int, seeds: Sequence[tuple[int, ...]]
    ) -> list[dict[int, SampleRequest]] | None:
        """Return requests per shard for the first batch, when it may be sampled, and for later ones that may be sampled then too.

        A batch is so many windows with one of the seeds. Only the windows of all ranks together make a joint batch, so several
        ranks share one train ratio. None when a successor of the asker (a learner rank) has shown up.
        """
        requests = [SampleRequest(windows, seed) for seed in seeds]
        return await self._wait(asker, life, lambda: (self._ledger.try_samples(requests) if self._may_sample() else []) or None)

    async def dismiss(self, asker: str, life: str) -> None:
        """A learner rank ends: what this life of it waits for is void."""
        if self._lives.get(asker) == life:
            del self._lives[asker]
            await self._notify()

    async def split(self, windows: int, seed: tuple[int, ...]) -> dict[int, SampleRequest]:
        """Requests for windows of an admitted batch that a shard could not give."""
        async with self._changed:
            while not (live := {index: self._live[index] for index in self._ledger.live_shards if self._live[index]}):
                await self._changed.wait()
        weights = np.array(list(live.values()), float)
        counts = np.random.default_rng(list(seed)).multinomial(windows, weights / weights.sum())
        return {index: SampleRequest(int(count), (*seed, index + 1)) for index, count in zip(live, counts, strict=True) if count}

    async def updates_due(self) -> int:
        """Updates that should have been made by now (lock-step)."""
        limiter = self._ledger.limiter
        return limiter.updates_due(limiter.agent_steps)

    async def counts(self) -> dict[str, Any]:
        """Counters for the driver and for checkpoints; plain values."""
        limiter = self._ledger.limiter
        return {
            "books": asdict(sum(self._books.values(), RowBooks())),
            "shards": {str(index): asdict(books) for index, books in self._books.items()},
            "agent_steps": limiter.agent_steps,
            "positions": limiter.positions if self._is_whole else self._positions,
            "debt": float(limiter.debt),
            "blocked_s": {"insert": self._ledger.insert_blocked_s, "sample": self._ledger.sample_blocked_s},
            "is_whole": self._is_whole,
        }

    async def drain(self) -> None:
        """The run ends: let through what workers still hold."""
        self._is_draining = True
        await self._notify()

    async def ping(self) -> dict[str, Any]:
        """Alive."""
        return {"pid": os.getpid()}

    async def lifeline(self) -> None:
        """Lasts as long as the process."""
        await Reporter("ledger").emit_for_ever()

    def _may_sample(self) -> bool:
        return self._is_whole and not any(self._storing.values())

    def _answer(self, shard: int, life: str, number: int, chunks: Sequence[int]) -> int | None:
        """The grant of a question, the same if it was asked before; None when it has to wait, 0 when nobody waits for it."""
        known_life, last, granted = self._answered.get(shard, ("", 0, 0))
        if life == known_life and number <= last:
            return granted if number == last else 0
        granted = self._try_inserts(shard, chunks)
        if granted:
            self._answered[shard] = life, number, granted
        return granted or None

    def _try_inserts(self, shard: int, chunks: Sequence[int]) -> int:
        return next((number for number, steps in enumerate(chunks) if not self._try_insert(shard, steps)), len(chunks))

    def _try_insert(self, shard: int, agent_steps: int) -> bool:
        """When the run drains, what workers still hold goes in beyond the band; before that, nothing beyond the run's target."""
        if not self._is_whole:
            return False
        is_open = self._ledger.limiter.agent_steps < self._plan.target_agent_steps
        if self._is_draining:
            self._ledger.force_insert(shard, agent_steps)
        elif not is_open or not self._ledger.try_insert(shard, agent_steps):
            return False
        self._storing[shard] += self._plan.is_lockstep
        return True

    async def _wait(self, asker: str, life: str, attempt: Callable[[], T | None]) -> T | None:
        """Try again at every change until it succeeds, or until another life of the asker has shown up."""
        async with self._changed:
            if self._lives.get(asker) != life:
                self._lives[asker] = life
                self._changed.notify_all()
            while self._lives.get(asker) == life:
                granted = attempt()
                if granted is not None:
                    self._changed.notify_all()
                    return granted
                await self._changed.wait()
        return None

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class ShardRole:
    """One shard.

    Args:
        plan: Of the run.
        index: Which shard.
        folder: The run's replay folder; what is found there is served again.
    """

    def __init__(self, plan: Plan, index: int, folder: Path) -> None:
        keep_freed_memory()
        self._index = index
        self._shard, self._num_shards = build_shard(plan, index, folder), plan.config.replay.shards
        self._loop_shard = LoopShard(self._shard)
        self._imports = ImportList(folder.parent, split_sources(plan.config.replay.load))
        self._ledger = Remote("ledger-0")
        self._life, self._joined, self._is_lockstep = uuid.uuid4().hex, asyncio.Event(), plan.is_lockstep
        self._weights, self._newest = RemoteWeights(), NO_POLICY
        self._reporter, self._meter = Reporter("replay", index), ShardMeter(plan.spec.sampling.length, folder / f"shard-{index}")
        self._arriving: dict[tuple[Any, int], asyncio.Future[bool]] = {}
        self._storing, self._is_idle, self._is_settled = 0, asyncio.Event(), False
        self._ledger_line = AsyncLine(self._ledger, "admit")
        self._admission = Admission(lambda *question: self._ledger_line.call((self._index, self._life, *question)))
        self._door = Door(self._answer, is_private=plan.config.address is None)
        self._reports = Spaced(self._report, 0.0 if plan.is_lockstep else REPORT_AT_MOST_EVERY_S)

    async def address(self) -> Address:
        """Where workers send chunks, and learners their questions, without Ray."""
        return await self._door.address()

    async def append(self, chunk: Chunk) -> bool:
        """Acknowledge a chunk once it is admitted and stored; False when it had been stored before.

        A chunk that is sent again while its first copy still waits shares that copy's fate.
        """
        name = (chunk.stream, chunk.seq)
        if name in self._arriving:
            return await asyncio.shield(self._arriving[name])
        future = self._arriving[name] = asyncio.ensure_future(self._append(chunk))
        try:
            return await asyncio.shield(future)
        finally:
            self._arriving.pop(name, None)

    async def sample(self, requests: Sequence[SampleRequest]) -> SampledWindows | PackedWindows | None:
        """The windows of all requests, whole or for the reader to unpack; None if there is too little to draw from."""
        started = time.monotonic()
        windows = await self._loop_shard.sample(requests)
        if windows is not None:
            self._meter.took("sample", time.monotonic() - started)
            self._meter.sampled(sum(request.windows for request in requests), windows.nbytes)
        return windows

    async def write_back(self, row_ids: np.ndarray, refreshed: Mapping[str, np.ndarray]) -> None:
        """Refresh extras of rows that are still there."""
        with self._meter.timed("update_latents"):
            self._meter.refreshed(await asyncio.to_thread(self._shard.write_back, row_ids, refreshed))

    async def update_priorities(self, start_ids: np.ndarray, priorities: np.ndarray) -> None:
        """New priorities of windows that are still there."""
        self._meter.prioritised(await asyncio.to_thread(self._shard.update_priorities, start_ids, priorities))

    async def books(self) -> RowBooks:
        """Where every row went."""
        return self._shard.books()

    async def settle(self) -> None:
        """The run ends: store what is being stored, refuse what comes later, and tell the ledger the last word."""
        self._is_settled = True
        if self._storing:
            await self._is_idle.wait()
        await self._ledger.acall("report", self._index, self._shard.books(), self._shard.live_windows())

    async def ping(self) -> dict[str, Any]:
        """Alive; ``stuck`` says why it needs to be started anew."""
        return {"pid": os.getpid(), "stored": self._shard.books().stored, "stuck": self._shard.failure}

    async def lifeline(self) -> None:
        """Own up to what the disk lost, then report to the ledger for as long as the process lives."""
        known = await self._ledger.acall("last_books", self._index, patience_s=120.0)
        if known is not None:  # before files are stored again, or their rows would stand for those that are lost
            await asyncio.to_thread(self._shard.declare_lost, known)
        await self._import_new()
        await self._ledger.acall("join", self._index, self._shard.books(), self._shard.live_windows(), patience_s=120.0)
        self._joined.set()
        flush, save = Pace(FLUSH_EVERY_S), Pace(WEIGHTS_EVERY_S)
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            await self._import_new()
            if save.is_due():
                await self._save_weights()
            self._report()
            if flush.is_due():
                self._reporter.emit(await asyncio.to_thread(self._meter.drain, self._shard.memory_bytes(), len(self._arriving)))
            self._newest = await self._weights.aversion(self._newest)

    async def _import_new(self) -> None:
        """Store this shard's share of files that the run was told of, at its start or later; a bad file costs only itself."""
        try:
            sources = self._imports.take_new()
        except WorldLoomError as error:
            logger.error("no file was imported: %s", error)
            return
        for source in sources:
            try:
                await asyncio.to_thread(load_share, self._shard, source, self._num_shards)
            except (StateError, OSError) as error:
                self._imports.put_back(source)
                logger.error("shard %d: %s is not stored yet, and is tried again: %s", self._index, source, error)
            except WorldLoomError as error:
                logger.error("shard %d: %s was not imported: %s", self._index, source, error)

    async def _save_weights(self) -> None:
        try:
            await asyncio.to_thread(self._shard.save_weights)
        except OSError as error:
            logger.warning("shard %d: the priorities were not written (%s); free space", self._index, error)

    async def _append(self, chunk: Chunk) -> bool:
        await self._joined.wait()
        if not await self._admission.admit(chunk.num_agent_steps):
            raise StateError(f"shard {self._index} has a successor; chunk {chunk.stream}/{chunk.seq} goes there")
        if self._is_settled:
            raise StateError(f"shard {self._index} takes no more: the run has ended; chunk {chunk.stream}/{chunk.seq} is lost")
        is_new = False
        self._storing += 1
        self._is_idle.clear()
        try:
            with self._meter.timed("insert"):
                is_new = await self._loop_shard.append(chunk)
        finally:
            self._storing -= 1
            if not self._storing:
                self._is_idle.set()
            if not is_new:
                self._ledger.tell("give_back", self._index, chunk.num_agent_steps)
            self._reports()
            if self._is_lockstep:
                self._ledger.tell("stored", self._index)
        self._meter.arrived(len(chunk.payload))
        if is_new and chunk.version != NO_POLICY:
            self._meter.lagged(max(0, self._newest.update - chunk.version.update))
        return is_new

    async def _answer(self, content: Chunk | list[SampleRequest]) -> bool | SampledWindows | PackedWindows | None:
        """What came over a line."""
        return await (self.append(content) if isinstance(content, Chunk) else self.sample(content))

    def _report(self) -> None:
        self._ledger.tell("report", self._index, self._shard.books(), self._shard.live_windows())
