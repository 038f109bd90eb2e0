"""Speed of the replay inside one process, on one core: codec, journal, sampling, and how the cost
grows with the rows stored.

    python benchmarks/replay.py  # all parts, about two minutes; writes
    benchmarks/results/replay.json python benchmarks/replay.py sampling insert  # some parts

Times are CPU time of this process (wall time where a disk is involved), the best of several
repetitions, because other work on the machine only ever slows one down. The figures to compare are
ratios of two things measured in turn within one run. What is not measured here: anything through
Ray, and anything with more than one process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import gymnasium
import numpy as np
import zstandard
from context import context

from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, Chunk, Rows, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import decode_rows, encode_rows, make_chunk
from worldloom.data.rate_limiter import RateLimits
from worldloom.data.selectors import Uniform
from worldloom.data.sequence_buffer import SequenceBuffer
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.coordinator import ReplayCoordinator
from worldloom_dist.replay.direct import DirectReplay
from worldloom_dist.replay.shard import Durability, ReplayShard
from worldloom_dist.runtime.allocator import keep_freed_memory

CHUNK_ROWS = 64
SEEDS = 20
DREAMER = SamplingSpec(batch_size=16, length=64, context=1, cross_episodes=True)
DURABILITIES: tuple[Durability, ...] = get_args(Durability)
TDMPC = SamplingSpec(batch_size=256, length=3, bootstrap=1)


def image_columns() -> dict[str, ArraySpec]:
    """Rows of an Atari game at 64x64x3."""
    action = ArraySpec((), "int64", (6,))
    return EnvSpec(
        name="x", obs={"obs": ArraySpec((64, 64, 3), "uint8")}, action={"action": action}
    ).columns()


def vector_columns() -> dict[str, ArraySpec]:
    """Rows of a control task with 24 observations and 6 actions."""
    return EnvSpec(
        name="x", obs={"obs": ArraySpec((24,))}, action={"action": ArraySpec((6,))}
    ).columns()


def best_s(*works: Callable[[], object], repetitions: int = 40, calls: int = 1) -> list[float]:
    """CPU seconds per call of each work, best of several repetitions, taken in turn so that all see
    the same machine.
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repetitions):
        for work, found in zip(works, times, strict=True):
            begin = time.process_time()
            for _ in range(calls):
                work()
            found.append((time.process_time() - begin) / calls)
    return [min(found) for found in times]


def frames_of(kind: str, rows: int, game: str = "pong") -> np.ndarray:
    """64x64x3 frames: ``noise``, or ``atari`` (Pong, random actions, every 4th frame, nearest-pixel
    shrink).
    """
    if kind == "noise":
        return np.random.default_rng(0).integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8)
    import ale_py
    from ale_py import roms

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.loadROM(roms.get_rom_path(game))
    actions = ale.getMinimalActionSet()
    rng = np.random.default_rng(0)
    y = np.arange(64) * 210 // 64
    x = np.arange(64) * 160 // 64
    frames = np.empty((rows, 64, 64, 3), np.uint8)
    for row in range(rows):
        if ale.game_over():
            ale.reset_game()
        action = actions[rng.integers(len(actions))]
        for _ in range(4):
            ale.act(action)
        frames[row] = ale.getScreenRGB()[y][:, x]
    return frames


def empty_rows(columns: Mapping[str, ArraySpec], rows: int) -> Rows:
    """Rows of zeros."""
    return {name: spec.zeros(rows) for name, spec in columns.items()}


def image_rows(frames: np.ndarray) -> Rows:
    """Rows around given frames."""
    return empty_rows(image_columns(), len(frames)) | {"obs": frames}


def pendulum_rows() -> tuple[Rows, dict[str, ArraySpec]]:
    """A chunk of Pendulum-v1 with random actions, and its columns."""
    columns = EnvSpec(
        name="x", obs={"obs": ArraySpec((3,))}, action={"action": ArraySpec((1,))}
    ).columns()
    rows = empty_rows(columns, CHUNK_ROWS)
    env = gymnasium.make("Pendulum-v1")
    env.action_space.seed(0)
    rows["obs"][0] = env.reset(seed=0)[0]
    for row in range(1, CHUNK_ROWS):
        rows["obs"][row] = env.step(env.action_space.sample())[0]
    env.close()
    return rows, columns


def fill(buffer: SequenceBuffer, rows: int, chunk_rows: int) -> None:
    """Append one stream of zeros with episodes of 500 rows."""
    block = empty_rows(buffer.columns, chunk_rows)
    block["is_first"][::500] = True
    for seq in range(rows // chunk_rows):
        buffer.append(StreamId(0, 0, 0), seq, block)


def bench_codec() -> dict[str, Any]:
    """Encoding and decoding of one 64-row chunk."""
    vectors = empty_rows(vector_columns(), CHUNK_ROWS)
    vectors["obs"] = np.random.default_rng(0).normal(size=(CHUNK_ROWS, 24)).astype(np.float32)
    results = {}
    for name, rows, columns in (
        ("atari", image_rows(frames_of("atari", CHUNK_ROWS)), image_columns()),
        ("noise", image_rows(frames_of("noise", CHUNK_ROWS)), image_columns()),
        ("vector24", vectors, vector_columns()),
        ("pendulum", *pendulum_rows()),
    ):
        payload = encode_rows(rows)
        encode_s, decode_s = best_s(
            partial(encode_rows, rows), partial(decode_rows, payload, columns), calls=10
        )
        raw = sum(array.nbytes for array in rows.values())
        results[name] = {
            "raw_bytes": raw,
            "encoded_bytes": len(payload),
            "obs_bytes_after_zstd1": len(
                zstandard.ZstdCompressor(level=1).compress(rows["obs"].tobytes())
            ),
            "encode_ms": 1e3 * encode_s,
            "decode_ms": 1e3 * decode_s,
        }
    return results


def bench_compressors() -> dict[str, Any]:
    """Compress 64 rows of every sort of column by zstd and by lz4, which comes along with
    ray[rllib].
    """
    import lz4.block

    keep_freed_memory()  # as the roles do; without it page faults are measured
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(CHUNK_ROWS, 24)).astype(np.float32)
    columns = {
        **{
            f"image {game}": frames_of("atari", 3 * CHUNK_ROWS, game)[-CHUNK_ROWS:]
            for game in ("pong", "ms_pacman", "seaquest")
        },
        "image noise": frames_of("noise", CHUNK_ROWS),
        "latent uint8 [32] of 16 classes": rng.integers(0, 16, (CHUNK_ROWS, 32)).astype(np.uint8),
        "latent bfloat16 [1024]": (
            rng.normal(size=(CHUNK_ROWS, 1024)).astype(np.float32).view(np.uint32) >> 16
        ).astype(np.uint16),
        "vector float32 [24]": normal,
        "vector float32 [24] of two decimals": normal.round(2),
        "vector float32 [18] one-hot": np.eye(18, dtype=np.float32)[
            rng.integers(0, 18, CHUNK_ROWS)
        ],
        "vector float32 [3] of Pendulum": pendulum_rows()[0]["obs"],
    }
    reader = zstandard.ZstdDecompressor()
    codecs: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
        "zstd 1": (zstandard.ZstdCompressor(level=1).compress, reader.decompress),
        "zstd -5": (zstandard.ZstdCompressor(level=-5).compress, reader.decompress),
        "lz4": (lz4.block.compress, lz4.block.decompress),
    }
    results: dict[str, Any] = {}
    for name, column in columns.items():
        raw = column.tobytes()
        packed = {codec: compress(raw) for codec, (compress, _) in codecs.items()}
        works = [
            partial(work, blob)
            for codec, pair in codecs.items()
            for work, blob in zip(pair, (raw, packed[codec]), strict=True)
        ]
        seconds = iter(best_s(*works, repetitions=20, calls=20))
        results[name] = {
            codec: {
                "ratio": len(raw) / len(blob),
                "encode_ms": 1e3 * next(seconds),
                "decode_ms": 1e3 * next(seconds),
            }
            for codec, blob in packed.items()
        }
    return results


def bench_sampling() -> dict[str, Any]:
    """One DreamerV3 batch, 16 windows of 65 frames, against a plain gather of the same bytes."""
    rows = 100 * CHUNK_ROWS
    results = {}
    for kind in ("noise", "atari"):
        frames = frames_of(kind, rows)
        shards = {
            name: ReplayShard(
                0, image_columns(), DREAMER, capacity_rows=rows, durability="none", encoded=packed
            )
            for name, packed in (("plain", ()), ("packed", ("obs",)))
        }
        for seq, part in enumerate(np.split(frames, 100)):
            for shard in shards.values():
                shard.append(make_chunk(StreamId(0, 0, 0), seq, NO_POLICY, image_rows(part)))
        starts = np.random.default_rng(0).integers(0, rows - 65, 16)[:, None] + np.arange(65)
        samplers = [partial(shard.sample, SampleRequest(16, (1,))) for shard in shards.values()]
        gather_s, *sample_s = best_s(partial(frames.__getitem__, starts), *samplers)
        results[kind] = {"gather_ms": 1e3 * gather_s, "batch_bytes": frames[starts].nbytes}
        for (name, shard), seconds in zip(shards.items(), sample_s, strict=True):
            results[kind][name] = {
                "sample_ms": 1e3 * seconds,
                "batches_per_s": 1 / seconds,
                "share_of_gather_speed": gather_s / seconds,
                "bytes_per_row": shard.row_counters().payload_bytes / rows,
            }
    return results


def bench_insert() -> dict[str, Any]:
    """Rows per wall second that one process appends as ready 64-row Atari chunks (the writer's
    encoding is under codec).
    """
    parts = [image_rows(part) for part in np.split(frames_of("atari", 50 * CHUNK_ROWS), 50)]
    chunks = [make_chunk(StreamId(0, 0, 0), seq, NO_POLICY, parts[seq % 50]) for seq in range(250)]
    return {
        durability: {"rows_per_s": max(insert_speed(chunks, durability) for _ in range(7))}
        for durability in DURABILITIES
    }


def insert_speed(chunks: list[Chunk], durability: Durability) -> float:
    """Rows per second of one pass over the chunks into an empty shard."""
    with tempfile.TemporaryDirectory() as folder:
        shard = ReplayShard(
            0,
            image_columns(),
            DREAMER,
            capacity_rows=10_000,
            directory=Path(folder),
            durability=durability,
        )
        begin = time.perf_counter()
        for chunk in chunks:
            shard.append(chunk)
        seconds = time.perf_counter() - begin
        shard.close()
    return len(chunks) * CHUNK_ROWS / seconds


def bench_growth() -> dict[str, Any]:
    """How index selection and a whole sample grow with the rows stored."""
    sizes = (10_000, 1_000_000, 10_000_000)
    buffers = [
        SequenceBuffer(vector_columns(), TDMPC, capacity_rows=rows, selector=Uniform(rows))
        for rows in sizes
    ]
    for buffer, rows in zip(buffers, sizes, strict=True):
        fill(buffer, rows, 1000)
    selectors = [Uniform(rows) for rows in sizes]
    for selector, rows in zip(selectors, sizes, strict=True):
        selector.add(np.arange(rows))
    rng = np.random.default_rng(0)
    results = {}
    for name, works in (
        ("select_16", [partial(selector.sample, [(16, rng)], 0) for selector in selectors]),
        ("select_256", [partial(selector.sample, [(256, rng)], 0) for selector in selectors]),
        ("sample_256x4", [partial(buffer.sample, 256, rng) for buffer in buffers]),
    ):
        seconds = best_s(*works, calls=20)
        results[name] = {f"{rows}_rows_us": 1e6 * s for rows, s in zip(sizes, seconds, strict=True)}
        results[name] |= {
            "10M_over_10k": seconds[2] / seconds[0],
            "10M_over_1M": seconds[2] / seconds[1],
        }
    return results


def bench_shards() -> dict[str, Any]:
    """Batches and inserts through the coordinator and 1, 2 or 4 shards of one process, which
    therefore work one after the other.

    Each further shard of a sample costs about 0.06 ms, whatever the batch: some fifty calls of
    numpy. That shows in a batch of vectors, which takes 0.2 ms, and not in one of images.
    """
    keep_freed_memory()  # as the roles do; without it page faults are measured
    results: dict[str, Any] = {}
    atari = image_rows(frames_of("atari", CHUNK_ROWS))
    for name, columns, sampling, block in (
        ("tdmpc2_vectors_256x4", vector_columns(), TDMPC, empty_rows(vector_columns(), CHUNK_ROWS)),
        ("dreamerv3_atari_16x65", image_columns(), DREAMER, atari),
    ):
        replays = {}
        inserts = dict.fromkeys((1, 2, 4), np.inf)
        for count in [1, 2, 4] * 5:  # in turn, and the best: the first pass pays for memory
            replay = replays[count] = direct_replay(columns, sampling, count)
            chunks = [
                make_chunk(StreamId(seq % count, 0, 0), seq // count, NO_POLICY, block)
                for seq in range(400)
            ]
            begin = time.process_time()
            for chunk in chunks:
                replay.append(chunk)
            inserts[count] = min(inserts[count], (time.process_time() - begin) / len(chunks))
        samplers = [
            partial(sample_seeds, replay, sampling.batch_size) for replay in replays.values()
        ]
        samples = {count: s / SEEDS for count, s in zip(replays, best_s(*samplers), strict=True)}
        results[name] = {
            what: {f"{count}_shards_us": 1e6 * s for count, s in seconds.items()}
            | {"4_over_1": seconds[4] / seconds[1]}
            for what, seconds in (("sample", samples), ("insert", inserts))
        }
    return results


def sample_seeds(replay: DirectReplay, windows: int) -> None:
    """Some batches that differ: how many chunks a batch touches is chance."""
    for seed in range(SEEDS):
        replay.sample(SampleRequest(windows, (seed,)))


def direct_replay(
    columns: Mapping[str, ArraySpec], sampling: SamplingSpec, count: int
) -> DirectReplay:
    """An empty replay of ``count`` shards that no train ratio blocks."""
    limits = RateLimits(
        train_ratio=1e9, prefill_agent_steps=0, batch_positions=sampling.trained_positions
    )
    shards = [
        ReplayShard(i, columns, sampling, capacity_rows=50_000, durability="none")
        for i in range(count)
    ]
    return DirectReplay(
        shards, ReplayCoordinator(limits, window_positions=sampling.length), is_lockstep=True
    )


def bench_restart() -> dict[str, Any]:
    """Wall seconds from constructing a shard on its journal to the first sample."""
    results = {}
    for name, columns, rows, chunks in (
        ("atari", image_columns(), image_rows(frames_of("atari", CHUNK_ROWS)), 1600),
        ("vector24", vector_columns(), empty_rows(vector_columns(), CHUNK_ROWS), 16_000),
    ):
        with tempfile.TemporaryDirectory() as folder:
            shard = ReplayShard(
                0, columns, TDMPC, capacity_rows=chunks * CHUNK_ROWS, directory=Path(folder)
            )
            for seq in range(chunks):
                shard.append(make_chunk(StreamId(0, 0, 0), seq, NO_POLICY, rows))
            shard.close()
            begin = time.perf_counter()
            again = ReplayShard(
                0, columns, TDMPC, capacity_rows=chunks * CHUNK_ROWS, directory=Path(folder)
            )
            again.sample(SampleRequest(1, (0,)))
            results[name] = {
                "rows": again.row_counters().stored,
                "restart_s": time.perf_counter() - begin,
            }
            again.close()
    return results


def bench_allocator() -> dict[str, Any]:
    """Encoding of a chunk of noise by two fresh processes that differ in whether they keep the
    memory they free.
    """
    results = {}
    for name, first in (("as_it_comes", ""), ("kept", "allocator.keep_freed_memory()")):
        done = subprocess.run(
            [sys.executable, "-c", ENCODE.format(first=first)],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
        )
        results[name] = dict(
            zip(("encode_ms", "page_faults"), map(float, done.stdout.split()), strict=True)
        )
    return results


ENCODE = """
import resource, time
from replay import *
from worldloom_dist.runtime import allocator
{first}
rows = image_rows(frames_of("noise", CHUNK_ROWS))
times = []
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    begin = time.process_time()
    chunk = make_chunk(StreamId(0, 0, 0), 0, NO_POLICY, rows)
    times.append(time.process_time() - begin)
print(1e3 * np.median(times), (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / 200)
"""

PARTS = {
    "allocator": bench_allocator,
    "codec": bench_codec,
    "compressors": bench_compressors,
    "sampling": bench_sampling,
    "insert": bench_insert,
    "growth": bench_growth,
    "shards": bench_shards,
    "restart": bench_restart,
}


def main() -> None:
    """Run the parts and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; default all")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "replay.json"
    )
    arguments = parser.parse_args()
    report = context()
    for name in arguments.parts or PARTS:
        report[name] = PARTS[name]()
        print(name, json.dumps(report[name], indent=2))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
