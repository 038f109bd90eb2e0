"""The same rows through dm-reverb, in processes of their own: what ``benchmarks/replay_ray.py
--reverb PYTHON`` compares with.

    python -m venv DIR && DIR/bin/pip install dm-reverb==0.14.0 tensorflow-cpu==2.15.1 "numpy<2"
    "protobuf<5"
    DIR/bin/python benchmarks/peers/reverb_peer.py ROWS.npz --writers 8 --samplers 2  # prints one
    line of JSON

One server, every writer and every sampler is a process. A table holds as many rows as our shard,
first in, first out, drawn uniformly. An item is 64 rows: with ``--stride 64`` the next begins where
it ends, so that only every 64th row can begin a window and an item is one chunk; with ``--stride
1`` every row can, as in our replay. Writers append row by row with ``TrajectoryWriter`` (chunks of
64 rows, compressed as Reverb does it by default), at most 25 items (or the rows of 25) unconfirmed,
as its own default says. Samplers use the native sampler without TensorFlow's data sets, with 128
items in flight, as many as ours asks ahead. No rate limiter takes part. The server keeps everything
in memory only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import reverb

ITEM_ROWS = 64
IN_FLIGHT_ITEMS = 128
UNCONFIRMED = 25
TABLE = "rows"
FILL_ROWS = 3200
WARM_S = 1.5
FORK = multiprocessing.get_context("fork")
"""After the slow import and before gRPC starts, which no fork survives."""


def serve(items: int, port: Any, is_over: Any) -> None:
    """One server until it is over."""
    table = reverb.Table(
        TABLE,
        reverb.selectors.Uniform(),
        reverb.selectors.Fifo(),
        items,
        reverb.rate_limiters.MinSize(1),
    )
    server = reverb.Server([table])
    port.put(server.port)
    is_over.wait()
    server.stop()


def write(
    port: int, rows: Mapping[str, np.ndarray], stride: int, seconds: float, most: int = 1 << 40
) -> int:
    """Append the rows again and again, one by one, with an item every ``stride`` rows; returns how
    many rows were confirmed.
    """
    count = 0
    total = len(rows["is_first"])
    window = slice(-ITEM_ROWS, None)
    with reverb.Client(f"localhost:{port}").trajectory_writer(
        num_keep_alive_refs=2 * ITEM_ROWS
    ) as writer:
        for name in rows:
            writer.configure((name,), num_keep_alive_refs=2 * ITEM_ROWS, max_chunk_length=ITEM_ROWS)
        end = time.monotonic() + seconds
        while time.monotonic() < end and count < most:
            for row in range(count % total, count % total + ITEM_ROWS):
                writer.append({name: column[row] for name, column in rows.items()})
                count += 1
                if count >= ITEM_ROWS and count % stride == 0:
                    writer.create_item(
                        TABLE, 1.0, {name: writer.history[name][window] for name in rows}
                    )
                    writer.flush(block_until_num_items=UNCONFIRMED * ITEM_ROWS // stride)
        writer.flush()
    return count


def sample(port: int, names: list[str], seconds: float) -> int:
    """Sample items and touch every page of their frames; returns how many."""
    sampler = reverb.Client(f"localhost:{port}")._client.NewSampler(TABLE, 1 << 40, IN_FLIGHT_ITEMS)
    frames = 5 + sorted(names).index("obs")
    end = time.monotonic() + seconds
    items = 0
    while time.monotonic() < end:
        item = sampler.GetNextTrajectory()
        int(item[frames].reshape(-1)[::4096].sum())
        items += 1
    return items


def worker(work: Any, arguments: tuple[Any, ...], seconds: float, gate: Any, results: Any) -> None:
    """Do the work for a while, and again for as long as is measured, each time together with all
    others.
    """
    gate.wait()
    work(*arguments, WARM_S)
    gate.wait()
    begin = time.monotonic()
    done = work(*arguments, seconds)
    results.put((work.__name__, done, time.monotonic() - begin))


def measure(
    rows: Mapping[str, np.ndarray],
    writers: int,
    samplers: int,
    capacity_rows: int,
    stride: int,
    seconds: float,
) -> dict[str, float]:
    """Rates of this many writers and samplers at the same time."""
    ports = FORK.Queue()
    is_over = FORK.Event()
    results = FORK.Queue()
    gate = FORK.Barrier(writers + samplers)
    server = FORK.Process(target=serve, args=(capacity_rows // stride, ports, is_over))
    server.start()
    port = ports.get(timeout=60)
    fill = FORK.Process(target=write, args=(port, rows, stride, 60.0, FILL_ROWS))
    fill.start()
    fill.join()
    works = [(write, (port, rows, stride))] * writers + [(sample, (port, list(rows)))] * samplers
    processes = [
        FORK.Process(target=worker, args=(*work, seconds, gate, results)) for work in works
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=seconds + 120) for _ in processes]
    for process in processes:
        process.join()
    is_over.set()
    server.join()
    mb_per_row = rows["obs"][0].nbytes / 1e6
    rates = {
        name: sum(done / took for kind, done, took in found if kind == name)
        for name in ("write", "sample")
    }
    return {
        "insert_mb_per_s": rates["write"] * mb_per_row,
        "sample_mb_per_s": rates["sample"] * ITEM_ROWS * mb_per_row,
        "inserted_rows_per_s": rates["write"],
    }


def main() -> None:
    """Measure one case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", help=".npz with the columns of rows; obs are the frames")
    parser.add_argument("--writers", type=int, default=1)
    parser.add_argument("--samplers", type=int, default=1)
    parser.add_argument("--capacity-rows", type=int, default=20_000)
    parser.add_argument(
        "--stride",
        type=int,
        default=ITEM_ROWS,
        help="rows from one item to the next: 64 (none overlap) or 1",
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    with np.load(arguments.rows) as file:
        rows = {name: file[name] for name in file.files}
    found = measure(
        rows,
        arguments.writers,
        arguments.samplers,
        arguments.capacity_rows,
        arguments.stride,
        arguments.seconds,
    )
    print(json.dumps({**found, "version": metadata.version("dm-reverb")}))


if __name__ == "__main__":
    main()
