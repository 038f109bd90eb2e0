"""A replay shard as a Ray actor: a thin asynchronous shell around ``worldloom_dist.replay``.

    worker --append(chunk)--> ShardRole     acknowledged once it is admitted and journaled
    prefetcher   --sample---------> ShardRole

Frequent callers use sockets of our own (``worldloom_dist.rpc.connection``), all others
over Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from worldloom.core.exceptions import BufferError, StateError, WorldLoomError
from worldloom.core.sequence import NO_POLICY, Chunk
from worldloom.data.windows import EncodedWindows
from worldloom_dist.interfaces import Coordinator, InsertQuestion, coordinator_client
from worldloom_dist.ports import FIRST_GATEWAY_SLOT, RowCounters, SampleRequest
from worldloom_dist.replay.imports import ImportList, is_gone, load_share, split_sources
from worldloom_dist.replay.journal import JournalHeldError
from worldloom_dist.replay.meter import ShardMeter
from worldloom_dist.replay.recovery import RecoveryProgress
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.rpc.async_client import AsyncRpcClient
from worldloom_dist.rpc.connection import Endpoint, RpcServer
from worldloom_dist.run.builders import build_shard
from worldloom_dist.run.intervals import Interval, Throttle
from worldloom_dist.run.plan import Plan
from worldloom_dist.runtime.admission import Admission
from worldloom_dist.runtime.allocator import keep_freed_memory
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.log_forwarder import LogForwarder
from worldloom_dist.runtime.reporting import FLUSH_EVERY_S, Reporter
from worldloom_dist.runtime.weight_roles import RemoteWeights

__all__ = ["InlineShard", "ShardRole"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

REPORT_EVERY_S = 1.0
REPORT_AT_MOST_EVERY_S = 0.1
REPORT_WITHIN_S = 5.0
SAY_READING_EVERY_S = 10.0
WEIGHTS_EVERY_S = 30.0
"""How old the priorities may be with which a shard comes back."""
SMALL_CHUNK = 256 * 2**10
SMALL_DRAW = 4 * 2**20
"""Bytes that are copied in less time than a thread takes to begin, or little more."""


class InlineShard:
    """Appends and samples of one shard, for callers on an event loop: what is quick is done at
    once, and what may take long in a thread.

    Storing a chunk of Atari frames or drawing a batch takes some hundred microseconds. Handing that
    to a thread and back takes about as long again, on a core whose caches know nothing of it. A
    disk that must sync or be read, large copies, and decoding are left to threads, and so is
    waiting for a thread that is inside the shard already (a snapshot that copies). What the loop
    does wait for is a journal that is written without ``fsync``, and a thread that enters the shard
    at the very moment.

    Args:
        shard: Also used by others, in threads.
    """

    def __init__(self, shard: ReplayShard) -> None:
        self.shard = shard
        self._window_bytes = shard.plain_row_bytes * shard.sampling.window_rows

    async def append(self, chunk: Chunk) -> bool:
        """As :meth:`ReplayShard.append`."""
        is_quick = self.shard.durability != "fsync" and len(chunk.payload) <= SMALL_CHUNK
        return await self._do(is_quick, self.shard.append, chunk)

    async def sample(self, requests: Sequence[SampleRequest]) -> EncodedWindows | None:
        """The windows of all requests, for the reader to decode; None if there is too little to
        draw from.
        """
        windows = sum(request.windows for request in requests)
        is_quick = not self.shard.is_mapped and windows * self._window_bytes <= SMALL_DRAW
        try:
            drawn = await self._do(is_quick, self.shard.draw, requests)
        except BufferError:
            return None
        return drawn.ready() or await asyncio.to_thread(drawn.prepared)

    async def _do(self, is_quick: bool, work: Callable[..., T], *arguments: Any) -> T:
        if is_quick and not self.shard.is_busy:
            return work(*arguments)
        return await asyncio.to_thread(work, *arguments)


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
        self._log_forwarder = LogForwarder("worldloom_dist.replay", __name__).listen()
        self._progress = RecoveryProgress()
        self._read_bytes = -1
        self._read_at = time.monotonic()
        # in a thread of its own: a journal of many gigabytes takes minutes, and pings are answered
        self.opening = ThreadPoolExecutor(1, "journal").submit(
            _open_shard, plan, index, folder, self._progress
        )
        self._num_shards = plan.config.replay.shards
        self.imports = ImportList(folder.parent, split_sources(plan.config.replay.load))
        self._coordinator = coordinator_client()
        self._session_id = uuid.uuid4().hex
        self.joined = asyncio.Event()
        self._is_lockstep = plan.is_lockstep
        self._weights = RemoteWeights()
        self._newest = NO_POLICY
        self._reporter = Reporter("replay", index)
        self._meter = ShardMeter(plan.spec.sampling.length, folder / f"shard-{index}")
        self._arriving: dict[tuple[Any, int], asyncio.Future[bool]] = {}
        self._flushing = asyncio.Lock()
        self._storing = 0
        self._is_idle = asyncio.Event()
        self.is_finalized = False
        self.left_out: dict[str, str] = {}
        self._coordinator_client = AsyncRpcClient(self._coordinator, Coordinator.admit)
        self._admission = Admission(self._ask_to_insert)
        self._admission_of_workers = Admission(self._announce)
        self._server = RpcServer(self._answer, is_private=plan.config.address is None)
        self._reports = Throttle(self._report, 0.0 if plan.is_lockstep else REPORT_AT_MOST_EVERY_S)

    @property
    def shard(self) -> ReplayShard:
        """The shard, once it is open."""
        return self.opening.result()

    @cached_property
    def inline_shard(self) -> InlineShard:
        """The shard, with each call made where it stands."""
        return InlineShard(self.shard)

    async def address(self) -> Endpoint:
        """Where workers send chunks, and learners their questions, without Ray."""
        return await self._server.address()

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

    async def sample(self, requests: Sequence[SampleRequest]) -> EncodedWindows | None:
        """The windows of all requests, for the reader to decode; None if there is too little to
        draw from.
        """
        if not self.opening.done():
            return None
        started = time.monotonic()
        windows = await self.inline_shard.sample(requests)
        if windows is not None:
            self._meter.took("sample", time.monotonic() - started)
            self._meter.sampled(sum(request.windows for request in requests), windows.nbytes)
        return windows

    async def write_back(self, row_ids: np.ndarray, refreshed: Mapping[str, np.ndarray]) -> None:
        """Refresh extras of rows that are still there."""
        if not self.opening.done():
            return
        with self._meter.timed("update_latents"):
            self._meter.refreshed(
                await asyncio.to_thread(self.shard.write_back, row_ids, refreshed)
            )

    async def update_priorities(self, start_ids: np.ndarray, priorities: np.ndarray) -> None:
        """New priorities of windows that are still there."""
        if not self.opening.done():
            return
        self._meter.prioritised(
            await asyncio.to_thread(self.shard.update_priorities, start_ids, priorities)
        )

    async def fence(self, slot: int, incarnation: int) -> dict[int, int]:
        """Let no one write the streams of a gateway's session any more, not even what waits for a
        permit now; see :meth:`ReplayShard.fence`.
        """
        shard = await asyncio.wrap_future(self.opening)
        return await asyncio.to_thread(shard.fence, slot, incarnation)

    async def finalize(self) -> RowCounters:
        """The run ends: store what is being stored, refuse what comes later, and tell the
        coordinator and the caller the final counters.
        """
        await self.joined.wait()
        self.is_finalized = True
        while self._storing:
            await self._is_idle.wait()
        counters = self.shard.row_counters()
        windows, files = self.shard.window_counts()
        with contextlib.suppress(RoleGoneError):
            coordinator = self._coordinator.within(
                timeout_s=DEADLINES.final_report_s, patience_s=0.0
            )
            await coordinator.acall(Coordinator.report, self._index, counters, windows, files)
        await self._flush()
        return counters

    async def ping(self) -> dict[str, Any]:
        """Alive; ``stuck`` says why it needs to be started again, ``reading`` how far it has come
        with its journal before it serves.
        """
        status = {
            "pid": os.getpid(),
            "left_out": dict(self.left_out),
            "said": self._log_forwarder.drain(),
        }
        if not self.opening.done():
            return {**status, "reading": str(self._progress), "stuck": self._stuck_reading()}
        if self.opening.exception() is not None:
            return status  # run_forever says so, with the reason
        stored = self.shard.row_counters().stored
        return {**status, "stored": stored, "stuck": self.shard.failure}

    async def run_forever(self) -> None:
        """Read the journal, count what the disk lost, then report to the coordinator for as long as
        the process lives.
        """
        opening = asyncio.wrap_future(self.opening)
        while not (await asyncio.wait([opening], timeout=SAY_READING_EVERY_S))[0]:
            logger.info("shard-%d reads its journal: %s", self._index, self._progress)
        opening.result()
        coordinator = self._coordinator.within(patience_s=DEADLINES.coordinator_patience_s)
        known = await coordinator.acall(Coordinator.last_counters, self._index)
        # before files are stored again, or their rows would stand for those that are lost
        if known is not None:
            await asyncio.to_thread(self.shard.mark_lost, known)
        await import_new(self)
        counters = self.shard.row_counters()
        windows, files = self.shard.window_counts()
        await coordinator.acall(
            Coordinator.join, self._index, counters, windows, self._session_id, files
        )
        self.joined.set()
        await asyncio.gather(report_for_ever(self), self._tend_for_ever())

    def _stuck_reading(self) -> str:
        """Progress counts as life, however long all of it takes."""
        now = time.monotonic()
        if self._progress.read_bytes != self._read_bytes:
            self._read_bytes = self._progress.read_bytes
            self._read_at = now
        if now - self._read_at <= DEADLINES.read_s:
            return ""
        return f"it has read nothing of its journal for {DEADLINES.read_s:.0f} s"

    async def _tend_for_ever(self) -> None:
        flush = Interval(FLUSH_EVERY_S)
        save = Interval(WEIGHTS_EVERY_S)
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            await import_new(self)
            if save.is_due():
                await self._save_weights()
            if flush.is_due():
                await self._flush()
            self._newest = await self._weights.aversion(self._newest)

    async def _flush(self) -> None:
        async with self._flushing:
            values = await asyncio.to_thread(
                self._meter.drain,
                self.shard.memory_bytes(),
                len(self._arriving),
                self.shard.take_drawn(),
            )
            self._reporter.emit(values)

    async def _save_weights(self) -> None:
        try:
            await asyncio.to_thread(self.shard.save_weights)
        except OSError as error:
            logger.warning("the priorities were not written (%s); free space", error)

    async def _append(self, chunk: Chunk) -> bool:
        await self.joined.wait()
        if not await self._admit(chunk):
            raise StateError(
                f"shard {self._index} has a successor; chunk {chunk.stream}/{chunk.seq} goes there"
            )
        is_new = False
        try:
            if self.is_finalized:
                raise StateError(
                    f"shard {self._index} takes no more: the run has ended; "
                    f"{chunk.stream}/{chunk.seq} is lost"
                )
            with self._at_work(), self._meter.timed("insert"):
                is_new = await self.inline_shard.append(chunk)
        finally:
            if not is_new:
                maker = None if _is_of_gateway(chunk) else chunk.stream[:2]
                self._coordinator.notify(
                    Coordinator.give_back, self._index, chunk.num_agent_steps, maker
                )
            self._reports()
            if self._is_lockstep:
                self._coordinator.notify(Coordinator.stored, self._index)
        self._meter.arrived(len(chunk.payload))
        if is_new and chunk.version != NO_POLICY:
            self._meter.lagged(max(0, self._newest.update - chunk.version.update))
        return is_new

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """While rows are being stored, which :meth:`finalize` waits for."""
        self._storing += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._storing -= 1
            if not self._storing:
                self._is_idle.set()

    async def _answer(self, content: Chunk | list[SampleRequest]) -> bool | EncodedWindows | None:
        """What came over a connection."""
        return await (self.append(content) if isinstance(content, Chunk) else self.sample(content))

    async def _admit(self, chunk: Chunk) -> bool:
        """False when a successor of this shard has shown up. What a worker made was permitted
        before, so it waits behind nothing that has to be.
        """
        if _is_of_gateway(chunk):
            return await self._admission.admit(chunk.num_agent_steps)
        slot, incarnation, _ = chunk.stream
        made = (chunk.num_agent_steps, (slot, incarnation))
        return await self._admission_of_workers.admit(made)

    async def _ask_to_insert(self, number: int, chunks: Sequence[int]) -> int:
        question = InsertQuestion(self._index, self._session_id, number, chunks)
        return await self._coordinator_client.call(question)

    async def _announce(self, number: int, made: Sequence[tuple[int, tuple[int, int]]]) -> int:
        chunks = [steps for steps, _ in made]
        makers = [maker for _, maker in made]
        question = InsertQuestion(self._index, self._session_id, number, chunks, makers)
        return await self._coordinator_client.call(question)

    def _report(self) -> None:
        self._coordinator.notify(
            Coordinator.report,
            self._index,
            self.shard.row_counters(),
            *self.shard.window_counts(),
        )


def _open_shard(plan: Plan, index: int, folder: Path, progress: RecoveryProgress) -> ReplayShard:
    """The shard, once the process that had it before is gone."""
    give_up = time.monotonic() + DEADLINES.predecessor_s
    while True:
        try:
            return build_shard(plan, index, folder, progress)
        except JournalHeldError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


async def report_for_ever(role: ShardRole) -> None:
    """Apart from everything that may wait for a disk or for another role: a silent role counts
    as hanging.

    The coordinator answers: a shard to which no chunk comes has no other question by which it
    would learn that there is a new one, and that one waits for it.
    """
    coordinator = role._coordinator.within(timeout_s=REPORT_WITHIN_S, patience_s=0.0)
    while True:
        await asyncio.sleep(REPORT_EVERY_S)
        counters = role.shard.row_counters()
        windows, files = role.shard.window_counts()
        with contextlib.suppress(RoleGoneError):
            await coordinator.acall(Coordinator.report, role._index, counters, windows, files)


async def import_new(role: ShardRole) -> None:
    """Store this shard's share of files that the run was told of, at its start or later; a bad
    file costs only itrole.
    """
    if role.is_finalized:
        return
    try:
        sources = role.imports.take_new()
    except WorldLoomError as error:
        logger.error("no file was imported: %s", error)
        return
    for source in sources:
        if role.is_finalized:
            role.imports.put_back(source)
            continue
        try:
            with role._at_work():
                report = await asyncio.to_thread(load_share, role.shard, source, role._num_shards)
            logger.info("shard-%d: %s: %s", role._index, source, report.of_share(role._index))
            role.left_out.pop(source, None)
        except (StateError, OSError) as error:
            role.imports.put_back(source)
            logger.error("%s is not stored yet, and is tried again: %s", source, error)
        except WorldLoomError as error:
            kept = "; what was stored of it before is kept" if is_gone(source) else ""
            role.left_out[source] = f"{error}{kept}"
            logger.error("%s was not imported: %s%s", source, error, kept)


def _is_of_gateway(chunk: Chunk) -> bool:
    """True for rows from outside of the run: their steps are not permitted before they are made."""
    return chunk.stream.slot >= FIRST_GATEWAY_SLOT
