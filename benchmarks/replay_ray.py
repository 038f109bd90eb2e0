"""Speed of replay through Ray: a sample beside a bare transfer of its bytes, writers and samplers
at the same time, and dm-reverb.

    python benchmarks/replay_ray.py  # all parts, nine minutes; writes
    benchmarks/results/replay_ray.json
    python benchmarks/replay_ray.py transfer --seconds 2    # one part, shorter
    python benchmarks/replay_ray.py --reverb PYTHON  # with dm-reverb in turn; see
    peers/reverb_peer.py

Every process is a Ray actor on this machine. A row has a frame of 64x64x3 uint8 (of Pong, or noise)
and the other columns of an Atari env; 512 rows are made before the clock starts and written again
and again. Writers go the way of a run: row by row into chunks of 64, encoded (zstd level 1 where
that saves a tenth: frames of Pong, not noise), eight in flight per writer, as a worker with eight
envs has. The shard checks and journals each chunk before it acknowledges. A batch is 16 windows of
64 rows, divided over the shards by the coordinator's own rule, which the sampler puts together from
what is stored (compressed chunks of Pong, raw rows of noise); samplers ask as the prefetcher of a
fast learner does, for eight batches per shard at once, and have two questions open. Rates are wall
time and count logical image bytes, that is, before compression. Nothing limits either side unless
it is said. Both sides run for 1.5 s before they are measured, and shards are full.

Reverb gets the same rows in its own processes, case by case in turn with ours; it compresses as it
does by default, sends compressed chunks that its samplers decode, and keeps them in memory only,
without a journal. Both sides draw from the same windows: in ``never_overlapping`` one begins at
every 64th row and is a whole chunk (ours: ``--replay.stride 64``), in ``any_start`` at every row
(an item per row for Reverb; ours does so by default). ``ours`` journals to the folder for temporary
files (noise then needs a disk as fast as the rate), ``ours_in_memory`` keeps rows in memory only,
as Reverb does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from context import context
from replay import CHUNK_ROWS, frames_of, image_columns, image_rows

from worldloom.core.exceptions import StateError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, Chunk, StreamId
from worldloom.data.rate_limiter import RateLimits
from worldloom.data.windows import EncodedWindows
from worldloom_dist.actors.stream_writer import StreamWriter
from worldloom_dist.ports import RowCounters, SampleRequest
from worldloom_dist.replay.coordinator import ReplayCoordinator
from worldloom_dist.replay.shard import Durability, ReplayShard
from worldloom_dist.rpc.actor_client import ActorClient
from worldloom_dist.rpc.connection import Endpoint, RpcClient, RpcServer
from worldloom_dist.runtime.allocator import keep_freed_memory
from worldloom_dist.runtime.prefetcher import MOST_AT_ONCE
from worldloom_dist.runtime.shard_client import ShardClient, ask_all
from worldloom_dist.runtime.shard_role import InlineShard

WINDOWS = 16
LENGTH = 64
FRAME_BYTES = 64 * 64 * 3
KINDS = ("atari", "noise")
CAPACITY = 20_000
PREPARED = 8
FILL_CHUNKS = 320
CHUNKS_IN_FLIGHT = 8
QUESTIONS_IN_FLIGHT = 2
WARM_S = 1.5
SHARD_TURNS = 8
SHARD_SECONDS = 2.5
SHARD_ROWS_PER_S = 20_000
CASES = ((1, 0), (0, 1), (1, 1), (8, 2))
"""Writers and samplers."""
PEER = Path(__file__).parent / "peers" / "reverb_peer.py"


class Bare:
    """Sends an array and does nothing else."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        keep_freed_memory()
        self._array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def get(self) -> np.ndarray:
        """A fresh copy, as a shard must make one."""
        return self._array.copy()


class Shard:
    """A replay shard without its coordinator; several calls at a time. Chunks come and windows
    leave as in a run.
    """

    def __init__(
        self,
        folder: str,
        index: int,
        capacity: int,
        packed: tuple[str, ...] | None,
        durability: Durability,
        stride: int,
    ) -> None:
        keep_freed_memory()
        sampling = SamplingSpec(
            batch_size=WINDOWS, length=LENGTH, cross_episodes=True, stride=stride
        )
        directory = Path(folder) / f"shard-{index}"
        shard = ReplayShard(
            index,
            image_columns(),
            sampling,
            capacity_rows=capacity,
            directory=directory,
            encoded=packed,
            durability=durability,
        )
        self._shard = InlineShard(shard)
        self._door = RpcServer(self._answer, is_private=True)

    async def address(self) -> Endpoint:
        """Where chunks and questions go, as in a run."""
        return await self._door.address()

    async def append(self, chunk: Chunk) -> bool:
        """Journal and store a chunk."""
        return await self._shard.append(chunk)

    async def sample(self, requests: list[SampleRequest]) -> EncodedWindows | None:
        """Draw windows."""
        return await self._shard.sample(requests)

    async def _answer(self, content: Chunk | list[SampleRequest]) -> bool | EncodedWindows | None:
        return await (self.append(content) if isinstance(content, Chunk) else self.sample(content))


class InFlight:
    """A ``ReplayWriter`` that waits for the oldest chunk when too many are on their way."""

    def __init__(self, shard: str) -> None:
        self._line = RpcClient(ActorClient[Shard](shard), Shard.append, None, 10.0)
        self._pending = []

    def append(self, chunk: Chunk) -> None:
        """Send; acknowledged is what was sent some chunks before."""
        self._pending.append(self._line.submit(chunk))
        if len(self._pending) > CHUNKS_IN_FLIGHT - 1:
            self._pending.pop(0)()

    def drain(self) -> None:
        """Wait for all."""
        for wait in self._pending:
            wait()
        self._line.close()


class Writer:
    """Writes rows as fast as they are acknowledged; lives through many cases."""

    def __init__(self, slot: int, folder: str) -> None:
        keep_freed_memory()
        self._slot = slot
        self._env = 0
        self._rows = {kind: load_rows(folder, kind) for kind in KINDS}

    def write(
        self, shard: str, kind: str, seconds: float, most: int = 1 << 40, chunks_per_s: float = 0.0
    ) -> tuple[int, float]:
        """Write for so long, or this many chunks; returns how many, and the seconds until the last
        was acknowledged.
        """
        rows = self._rows[kind]
        out = InFlight(shard)
        chunks = 0
        self._env += 1
        writer = StreamWriter(
            StreamId(self._slot, 0, self._env),
            image_columns(),
            out,
            chunk_rows=CHUNK_ROWS,
            max_age_s=1e9,
        )
        begin = time.monotonic()
        while time.monotonic() - begin < seconds and chunks < most:
            first = chunks % PREPARED * CHUNK_ROWS
            for row in range(first, first + CHUNK_ROWS):
                writer.add(rows, row, NO_POLICY, is_first=False, is_last=False)
            chunks += 1
            if chunks_per_s:
                time.sleep(max(0.0, begin + chunks / chunks_per_s - time.monotonic()))
        out.drain()
        return chunks, time.monotonic() - begin


class Sampler:
    """Asks, with two questions open (a prefetcher has one); lives through many cases."""

    def __init__(self) -> None:
        keep_freed_memory()

    def sample(self, names: list[str], seed: int, seconds: float) -> tuple[int, float]:
        """Sample for so long; returns how many batches, and the seconds until the last was
        there.
        """
        shards = [ShardClient(ActorClient(name)) for name in names]
        coordinator = open_coordinator(len(names))
        number = itertools.count()
        begin = time.monotonic()
        batches = 0
        pending = []
        while time.monotonic() - begin < seconds:
            requests = [
                SampleRequest(WINDOWS, (seed, next(number)))
                for _ in range(MOST_AT_ONCE * len(shards))
            ]
            pending.append(ask_all(shards, coordinator.try_samples(requests), give_up))
            batches += len(requests)
            if len(pending) > QUESTIONS_IN_FLIGHT - 1:
                touch(pending.pop(0)())
        for wait in pending:
            touch(wait())
        for shard in shards:
            shard.close()
        return batches, time.monotonic() - begin


def open_coordinator(shards: int) -> ReplayCoordinator:
    """A coordinator over equally full shards that never refuses: it divides batches between them as
    in a run.
    """
    limits = RateLimits(train_ratio=1e9, prefill_agent_steps=0, batch_positions=WINDOWS * LENGTH)
    coordinator = ReplayCoordinator(limits, window_positions=LENGTH)
    for index in range(shards):
        coordinator.join(
            index, RowCounters(inserted=CAPACITY, stored=CAPACITY, agent_steps=CAPACITY), CAPACITY
        )
    return coordinator


def give_up(index: int) -> None:
    """A shard is gone: the measurement is void."""
    raise StateError(f"shard {index} is gone")


def touch(given: Sequence[Mapping[int, EncodedWindows]]) -> int:
    """Concatenate and decode batches, and read one byte of every page, or a transfer by reference
    would cost nothing.
    """
    whole = (EncodedWindows.concatenate(list(batch.values())).decode() for batch in given)
    return sum(int(windows.columns["obs"].reshape(-1)[::4096].sum()) for windows in whole)


def load_rows(folder: str, kind: str) -> dict[str, np.ndarray]:
    """The rows that every writer writes."""
    with np.load(rows_file(folder, kind)) as file:
        return {name: file[name] for name in file.files}


def rows_file(folder: str, kind: str) -> Path:
    """Where they lie."""
    return Path(folder) / f"{kind}.npz"


def actor(kind: type, *arguments: Any, name: str | None = None) -> Any:
    """A Ray actor without resources of its own."""
    return ray.remote(kind).options(num_cpus=0, name=name).remote(*arguments)


@dataclass(frozen=True)
class Bench:
    """What all parts share.

    Attributes:
        folder: Holds the rows, and the journals while they are used.
        seconds: Length of a measurement.
        writers, samplers: Processes that live through all cases, because each takes a second to
            start.
        turns: How often what stands beside Reverb is measured.
        kinds: Which frames stand beside Reverb.
        reverb: An interpreter that has dm-reverb, or nothing.
    """

    folder: str
    seconds: float
    writers: list[Any]
    samplers: list[Any]
    turns: int = 1
    kinds: tuple[str, ...] = KINDS
    reverb: str = ""

    @classmethod
    def start(
        cls, folder: str, seconds: float, turns: int, kinds: tuple[str, ...], reverb: str
    ) -> Bench:
        """Make the rows and start the processes."""
        for kind in KINDS:
            np.savez(rows_file(folder, kind), **image_rows(frames_of(kind, PREPARED * CHUNK_ROWS)))
        writers, samplers = (max(case[side] for case in CASES) for side in (0, 1))
        sources = [actor(Writer, i, folder) for i in range(writers)]
        readers = [actor(Sampler) for _ in range(samplers)]
        return cls(folder, seconds, sources, readers, turns, kinds, reverb)

    @contextlib.contextmanager
    def shards(
        self,
        count: int = 1,
        packed: tuple[str, ...] | None = None,
        durability: Durability = "journal",
        stride: int = 1,
    ) -> Iterator[list[str]]:
        """New shards; gives their names."""
        with tempfile.TemporaryDirectory(dir=self.folder) as journal:
            names = [f"shard-{uuid.uuid4().hex}" for _ in range(count)]
            actors = [
                actor(
                    Shard, journal, index, CAPACITY // count, packed, durability, stride, name=name
                )
                for index, name in enumerate(names)
            ]
            try:
                yield names
            finally:
                for shard in actors:
                    ray.kill(shard)

    def fill(self, shards: Sequence[str], kind: str = "atari") -> None:
        """Store some chunks, as many in every shard."""
        chunks = FILL_CHUNKS // len(shards)
        ray.get(
            [
                w.write.remote(s, kind, 60.0, chunks)
                for w, s in zip(self.writers, shards, strict=False)
            ]
        )


def bench_transfer(bench: Bench) -> dict[str, Any]:
    """One batch from a filled shard against a bare object of the same bytes, in turn."""
    results: dict[str, Any] = {}
    bare = actor(Bare, (WINDOWS, LENGTH, 64, 64, 3))
    for kind in KINDS:
        for name, packed in (("plain", ()), ("packed", None)):
            with bench.shards(encoded=packed) as (shard,):
                bench.fill([shard], kind)
                results[f"{kind}_{name}"] = compare_transfer(
                    bare, ShardClient(ActorClient(shard)), bench.seconds
                )
    ray.kill(bare)
    return results


def compare_transfer(bare: Any, shard: ShardClient, seconds: float) -> dict[str, float]:
    """Medians. A learner needs memory of its own, so the bare object counts twice: as it lies in
    the store, and copied out.
    """
    times: dict[str, list[float]] = {"bare": [], "bare_copied": [], "sample": []}
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end or number < 5:
        number += 1
        marks = [time.perf_counter()]
        ray.get(bare.get.remote()).reshape(-1)[::4096].sum()
        marks.append(time.perf_counter())
        ray.get(bare.get.remote()).copy().reshape(-1)[::4096].sum()
        marks.append(time.perf_counter())
        touch(ask_all([shard], [{0: SampleRequest(WINDOWS, (number,))}], give_up)())
        marks.append(time.perf_counter())
        for found, (begun, done) in zip(times.values(), itertools.pairwise(marks), strict=True):
            found.append(done - begun)
    middle_of = {side: float(np.median(found)) for side, found in times.items()}
    shares = {
        f"share_of_{side}_speed": middle_of[side] / middle_of["sample"]
        for side in ("bare", "bare_copied")
    }
    return {f"{side}_ms": 1e3 * seconds for side, seconds in middle_of.items()} | shares


def bench_mixed(bench: Bench) -> dict[str, Any]:
    """Writers alone, samplers alone, and both; with Reverb in turn if there is one."""
    results: dict[str, Any] = {}
    for kind, (writers, samplers) in itertools.product(bench.kinds, CASES):
        name = f"{kind}_{writers}_writers_{samplers}_samplers"
        results[name] = {"never_overlapping": beside_reverb(bench, kind, writers, samplers, LENGTH)}
        if writers and samplers:
            results[name]["any_start"] = beside_reverb(bench, kind, writers, samplers, 1)
        print(name, json.dumps(results[name]), flush=True)
    return results


def beside_reverb(
    bench: Bench, kind: str, writers: int, samplers: int, stride: int
) -> dict[str, Any]:
    """Medians of the turns, and ours over Reverb's."""
    sides: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: mixed(bench, kind, writers, samplers, stride=stride),
        "ours_in_memory": lambda: mixed(
            bench, kind, writers, samplers, stride=stride, durability="none"
        ),
    }
    if bench.reverb:
        sides["reverb"] = lambda: peer(bench, kind, writers, samplers, stride)
    turns = [{side: measure() for side, measure in sides.items()} for _ in range(bench.turns)]
    found: dict[str, Any] = {side: middle([turn[side] for turn in turns]) for side in sides}
    for side in ("ours", "ours_in_memory"):
        if bench.reverb:
            found[f"{side}_over_reverb"] = ratios(found[side], found["reverb"])
            found[f"{side}_over_reverb_in_turns"] = [
                ratios(turn[side], turn["reverb"])["both"] for turn in turns
            ]
    return found


def middle(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number."""
    return {
        name: value if isinstance(value, str) else statistics.median(t[name] for t in turns)
        for name, value in turns[0].items()
    }


def bench_shards(bench: Bench) -> dict[str, Any]:
    """The same over 1 and 4 shards, in turn: four writers, a sampler, and a sampler beside writers
    at the rate of a run's envs.

    The last case is without that rate. There both sides take what they get, and it is the scheduler
    that divides the cores between them, by the number of processes: of nine the sampler is one.
    """
    results: dict[str, Any] = {}
    for name, writers, samplers, rows_per_s in (
        ("4_writers", 4, 0, 0),
        ("1_sampler", 0, 1, 0),
        (f"1_sampler_beside_{SHARD_ROWS_PER_S}_rows_per_s", 4, 1, SHARD_ROWS_PER_S),
        ("4_writers_and_1_sampler_without_a_limit", 4, 1, 0),
    ):
        turns = [
            {
                n: mixed(
                    bench,
                    "atari",
                    writers,
                    samplers,
                    n,
                    rows_per_s=rows_per_s,
                    seconds=SHARD_SECONDS,
                )
                for n in (1, 4)
            }
            for _ in range(SHARD_TURNS)
        ]
        sides = [
            side
            for side, count in (("insert_mb_per_s", writers), ("sample_mb_per_s", samplers))
            if count
        ]
        over = {side: [turn[4][side] / turn[1][side] for turn in turns] for side in sides}
        results[name] = {
            **{str(n): middle([turn[n] for turn in turns]) for n in (1, 4)},
            "4_over_1": {side: statistics.median(found) for side, found in over.items()},
            "4_over_1_in_turns": over,
        }
    return results


def mixed(
    bench: Bench,
    kind: str,
    writers: int,
    samplers: int,
    num_shards: int = 1,
    durability: Durability = "journal",
    stride: int = 1,
    rows_per_s: float = 0.0,
    seconds: float = 0.0,
) -> dict[str, float]:
    """Rates of this many writers and samplers at the same time; with ``rows_per_s`` the writers
    together write no faster.
    """
    with bench.shards(num_shards, durability=durability, stride=stride) as shards:
        bench.fill(shards, kind)
        sources = bench.writers[:writers]
        readers = bench.samplers[:samplers]
        each = rows_per_s / CHUNK_ROWS / max(1, writers)
        # only what the second pass did is kept: the first maps memory
        for length in (WARM_S, seconds or bench.seconds):
            writes = [
                w.write.remote(shards[i % num_shards], kind, length, chunks_per_s=each)
                for i, w in enumerate(sources)
            ]
            reads = [
                reader.sample.remote(shards, 100 + seed, length)
                for seed, reader in enumerate(readers)
            ]
            chunks_per_s, batches_per_s = (
                sum(done / took for done, took in ray.get(work)) for work in (writes, reads)
            )
    return {
        "insert_mb_per_s": chunks_per_s * CHUNK_ROWS * FRAME_BYTES / 1e6,
        "sample_mb_per_s": batches_per_s * WINDOWS * LENGTH * FRAME_BYTES / 1e6,
        "inserted_rows_per_s": chunks_per_s * CHUNK_ROWS,
    }


def peer(bench: Bench, kind: str, writers: int, samplers: int, stride: int) -> dict[str, Any]:
    """The same through Reverb, with an item every ``stride`` rows."""
    numbers = {
        "writers": writers,
        "samplers": samplers,
        "stride": stride,
        "capacity-rows": CAPACITY,
        "seconds": bench.seconds,
    }
    options = [f"--{name}={value}" for name, value in numbers.items()]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [bench.reverb, str(PEER), str(rows_file(bench.folder, kind)), *options],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=300,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratios(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """Ours over theirs in logical MB/s: in, out, and both together."""
    sides = {
        side: (ours[f"{side}_mb_per_s"], theirs[f"{side}_mb_per_s"])
        for side in ("insert", "sample")
    }
    both = [sum(pair) for pair in zip(*sides.values(), strict=True)]
    return {
        "both": both[0] / both[1],
        **{side: mine / other for side, (mine, other) in sides.items() if other},
    }


PARTS = {"transfer": bench_transfer, "mixed": bench_mixed, "shards": bench_shards}


def main() -> None:
    """Run the parts and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; default all")
    parser.add_argument("--seconds", type=float, default=5.0, help="of every measurement")
    parser.add_argument(
        "--turns",
        type=int,
        default=1,
        help="how often what stands beside Reverb is measured, in turn with it",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=KINDS,
        help="frames to compare with Reverb on; default all",
    )
    parser.add_argument(
        "--reverb",
        default="",
        metavar="PYTHON",
        help="an interpreter that has dm-reverb, to compare with",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "replay_ray.json"
    )
    arguments = parser.parse_args()
    paths = [
        str(Path(__file__).parent),
        str(Path(__file__).parents[1]),
        os.environ.get("PYTHONPATH", ""),
    ]
    keep_freed_memory()
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={
            "env_vars": {
                "PYTHONPATH": os.pathsep.join(path for path in paths if path),
                "OMP_NUM_THREADS": "1",
            }
        },
    )
    report = context()
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench.start(
                folder, arguments.seconds, arguments.turns, tuple(arguments.kinds), arguments.reverb
            )
            for name in arguments.parts or PARTS:
                report[name] = PARTS[name](bench)
                print(name, json.dumps(report[name], indent=2), flush=True)
    finally:
        ray.shutdown()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
