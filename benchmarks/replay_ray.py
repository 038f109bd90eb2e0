"""Speed of replay through Ray: what a sample costs beside a bare transfer of its bytes, and writers and samplers at the same time.

    python benchmarks/replay_ray.py                       # all parts, three minutes; writes benchmarks/results/replay_ray.json
    python benchmarks/replay_ray.py transfer --seconds 2  # one part, shorter

Every process is a Ray actor on this machine. A chunk has 64 rows of 64x64x3 uint8 (real frames of Pong, or noise), made ready in
memory before the clock starts; a batch is 16 windows of 64 rows. Rates are wall time and count logical image bytes, that is,
before compression. The shard journals before it acknowledges; writers have two chunks in flight. No ledger takes part: nothing
limits either side.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from context import context
from replay import CHUNK_ROWS, frames_of, image_columns, image_rows

from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, Chunk, StreamId
from worldloom.data.codec import make_chunk
from worldloom_dist.ports import SampledWindows, SampleRequest
from worldloom_dist.replay.shard import ReplayShard

WINDOWS, LENGTH = 16, 64
FRAME_BYTES = 64 * 64 * 3
CAPACITY, PREPARED = 20_000, 8


class Bare:
    """Sends an array and does nothing else."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def get(self) -> np.ndarray:
        """A fresh copy, as a shard must make one."""
        return self._array.copy()


class Shard:
    """A replay shard without its ledger; several calls at a time."""

    def __init__(self, folder: str, index: int, packed: tuple[str, ...] | None) -> None:
        sampling = SamplingSpec(batch_size=WINDOWS, length=LENGTH, cross_episodes=True)
        directory = Path(folder) / f"shard-{index}"
        self._shard = ReplayShard(index, image_columns(), sampling, capacity_steps=CAPACITY, directory=directory, packed=packed)

    def append(self, chunk: Chunk) -> bool:
        """Journal and store a chunk."""
        return self._shard.append(chunk)

    def sample(self, request: SampleRequest) -> SampledWindows:
        """Draw windows."""
        return self._shard.sample(request)


class Writer:
    """Appends ready chunks as fast as they are acknowledged."""

    def __init__(self, slot: int, kind: str) -> None:
        frames = frames_of(kind, PREPARED * CHUNK_ROWS)
        self._payloads = [make_chunk(StreamId(slot, 0, 0), n, NO_POLICY, image_rows(part)) for n, part in
                          enumerate(np.split(frames, PREPARED))]  # fmt: skip
        self._slot = slot

    def write(self, shards: list[Any], first_seq: int, seconds: float, most: int) -> int:
        """Write for so long, or so many chunks; returns how many."""
        shard, pending, seq = shards[self._slot % len(shards)], [], first_seq
        end = time.monotonic() + seconds
        while time.monotonic() < end and seq - first_seq < most:
            chunk = self._payloads[seq % PREPARED]
            pending.append(shard.append.remote(Chunk(chunk.stream, seq, *_rest(chunk))))
            seq += 1
            if len(pending) > 1:
                ray.get(pending.pop(0))
        ray.get(pending)
        return seq - first_seq


class Sampler:
    """Asks for batches, two at a time."""

    def sample(self, shards: list[Any], seed: int, seconds: float) -> int:
        """Sample for so long; returns how many batches."""
        end, batches, pending = time.monotonic() + seconds, 0, []
        while time.monotonic() < end:
            shard = shards[batches % len(shards)]
            pending.append(shard.sample.remote(SampleRequest(WINDOWS, (seed, batches))))
            batches += 1
            if len(pending) > 1:
                touch(ray.get(pending.pop(0)))
        ray.get(pending)
        return batches


def touch(windows: SampledWindows) -> int:
    """Read one byte of every page, or a transfer by reference would cost nothing."""
    return int(windows.columns["obs"].reshape(-1)[::4096].sum())


def _rest(chunk: Chunk) -> tuple[Any, ...]:
    return chunk.version, chunk.num_rows, chunk.num_agent_steps, chunk.payload


def actor(kind: type, *arguments: Any, threads: int = 1) -> Any:
    """A Ray actor without resources of its own."""
    return ray.remote(kind).options(num_cpus=0, max_concurrency=threads).remote(*arguments)


def bench_transfer(seconds: float) -> dict[str, Any]:
    """One batch from a filled shard against a bare object of the same bytes, in turn."""
    results: dict[str, Any] = {}
    bare = actor(Bare, (WINDOWS, LENGTH, 64, 64, 3))
    for kind in ("atari", "noise"):
        for name, packed in (("plain", ()), ("packed", None)):
            with tempfile.TemporaryDirectory() as folder:
                shard = actor(Shard, folder, 0, packed)
                ray.get(actor(Writer, 0, kind).write.remote([shard], 0, 60.0, 150))
                times: dict[str, list[float]] = {"bare": [], "shard": []}
                end, number = time.monotonic() + seconds, 0
                while time.monotonic() < end or number < 5:
                    number += 1
                    begin = time.perf_counter()
                    ray.get(bare.get.remote()).reshape(-1)[::4096].sum()
                    middle = time.perf_counter()
                    touch(ray.get(shard.sample.remote(SampleRequest(WINDOWS, (number,)))))
                    times["bare"].append(middle - begin)
                    times["shard"].append(time.perf_counter() - middle)
                best = {side: float(np.median(found)) for side, found in times.items()}
                results[f"{kind}_{name}"] = {
                    "bare_ms": 1e3 * best["bare"],
                    "sample_ms": 1e3 * best["shard"],
                    "share_of_bare_speed": best["bare"] / best["shard"],
                }
                ray.kill(shard)
    ray.kill(bare)
    return results


def bench_mixed(seconds: float) -> dict[str, Any]:
    """Writers alone, samplers alone, and both; logical image MB/s in and out."""
    results: dict[str, Any] = {}
    for kind in ("atari", "noise"):
        for writers, samplers in ((1, 0), (0, 1), (1, 1), (8, 2)):
            results[f"{kind}_{writers}_writers_{samplers}_samplers"] = mixed(kind, writers, samplers, 1, seconds)
    return results


def bench_shards(seconds: float) -> dict[str, Any]:
    """One sampler and one writer per shard over 1 and 4 shards."""
    results: dict[str, Any] = {str(count): mixed("atari", 4, 1, count, seconds) for count in (1, 4)}
    results["sample_4_over_1"] = results["4"]["sample_mb_per_s"] / results["1"]["sample_mb_per_s"]
    results["insert_4_over_1"] = results["4"]["insert_mb_per_s"] / results["1"]["insert_mb_per_s"]
    return results


def mixed(kind: str, writers: int, samplers: int, num_shards: int, seconds: float) -> dict[str, float]:
    """Rates of so many writers and samplers at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        shards = [actor(Shard, folder, index, None, threads=8) for index in range(num_shards)]
        sources = [actor(Writer, slot, kind) for slot in range(max(writers, num_shards))]
        filled = ray.get([source.write.remote(shards, 0, 60.0, 100) for source in sources])
        readers = [actor(Sampler) for _ in range(samplers)]
        ray.get([reader.sample.remote(shards, seed, 0.2) for seed, reader in enumerate(readers)])
        begin = time.monotonic()
        writes = [s.write.remote(shards, count, seconds, 1 << 40) for s, count in zip(sources[:writers], filled, strict=False)]
        reads = [reader.sample.remote(shards, 100 + seed, seconds) for seed, reader in enumerate(readers)]
        chunks, batches = sum(ray.get(writes)), sum(ray.get(reads))
        elapsed = time.monotonic() - begin
        for handle in (*shards, *sources, *readers):
            ray.kill(handle)
    return {
        "insert_mb_per_s": chunks * CHUNK_ROWS * FRAME_BYTES / 1e6 / elapsed,
        "sample_mb_per_s": batches * WINDOWS * LENGTH * FRAME_BYTES / 1e6 / elapsed,
        "inserted_rows_per_s": chunks * CHUNK_ROWS / elapsed,
    }


PARTS = {"transfer": bench_transfer, "mixed": bench_mixed, "shards": bench_shards}


def main() -> None:
    """Run the parts and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; default all")
    parser.add_argument("--seconds", type=float, default=8.0, help="of every measurement")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "replay_ray.json")
    arguments = parser.parse_args()
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "OMP_NUM_THREADS": "1"}},
    )
    report = context()
    try:
        for name in arguments.parts or PARTS:
            report[name] = PARTS[name](arguments.seconds)
            print(name, json.dumps(report[name], indent=2))
    finally:
        ray.shutdown()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
