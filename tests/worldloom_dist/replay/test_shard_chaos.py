"""Two shards in processes of their own, eight writers that retry, two readers, and kill -9 at
random: exactly once all the same.
"""

import signal
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing.connection import Client
from pathlib import Path

import numpy as np
import pytest

from worldloom.core.exceptions import BufferError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import NO_POLICY, StreamId
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom.data.codec import make_chunk
from worldloom_dist.ports import SampleRequest
from worldloom_dist.replay.coordinator import shard_of
from worldloom_dist.replay.shard import ReplayShard

COLUMNS = EnvSpec(
    name="counting", obs={"obs": ArraySpec((2,), "int64")}, action={"action": ArraySpec((1,))}
).columns()
SAMPLING = SamplingSpec(batch_size=4, length=5, cross_episodes=True)
CHUNK_ROWS = 6
WRITERS = 8
READERS = 2
SHARDS = 2
BROKEN = (EOFError, OSError)
"""What a call raises when the shard dies; in the middle of an answer that is a bare OSError."""
QUICK = pytest.mark.timeout(120)
LONG = (pytest.mark.long, pytest.mark.timeout(1800))

SERVER = """
    import importlib.util, sys, threading
    from multiprocessing.connection import Listener
    from pathlib import Path
    spec = importlib.util.spec_from_file_location("chaos", sys.argv[1])
    chaos = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chaos)
    shard = chaos.open_shard(Path(sys.argv[2]), int(sys.argv[3]))
    address = Path(sys.argv[2]) / "socket"
    address.unlink(missing_ok=True)

    def serve(connection):
        try:
            while True:
                method, arguments = connection.recv()
                try:
                    connection.send(getattr(shard, method)(*arguments))
                except chaos.BufferError as error:
                    connection.send(error)
        except (EOFError, ConnectionError):
            connection.close()

    with Listener(str(address), backlog=32) as listener:
        while True:
            threading.Thread(target=serve, args=(listener.accept(),), daemon=True).start()
"""


def open_shard(folder, index):
    return ReplayShard(
        index,
        COLUMNS,
        SAMPLING,
        capacity_rows=4000,
        directory=folder / "journal",
        segment_bytes=20_000,
    )


def counting_chunk(slot, seq):
    rows = {name: spec.zeros(CHUNK_ROWS) for name, spec in COLUMNS.items()}
    rows["obs"] = np.stack(
        [np.full(CHUNK_ROWS, slot), np.arange(seq * CHUNK_ROWS, (seq + 1) * CHUNK_ROWS)], axis=1
    )
    rows["is_first"][0] = seq == 0
    return make_chunk(StreamId(slot, 0, 0), seq, NO_POLICY, rows)


class Shard:
    """A shard's process, and calls to it that are repeated until they are answered."""

    def __init__(self, folder, index):
        self.folder = folder
        self.index = index
        folder.mkdir()
        self.start()

    def start(self):
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(SERVER),
            str(Path(__file__)),
            str(self.folder),
            str(self.index),
        ]
        self.process = subprocess.Popen(command)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def call(self, connections, method, *arguments, until_s=40.0):
        deadline = time.monotonic() + until_s
        while True:
            try:
                if self.index not in connections:
                    connections[self.index] = Client(str(self.folder / "socket"))
                connections[self.index].send((method, arguments))
                return connections[self.index].recv()
            except BROKEN:
                connections.pop(self.index, None)
                assert time.monotonic() < deadline, f"shard {self.index} does not answer"
                time.sleep(0.02)


@pytest.mark.chaos
@pytest.mark.parametrize("rounds", [pytest.param(3, marks=QUICK), pytest.param(100, marks=LONG)])
def test_no_row_is_lost_or_doubled_while_shards_are_killed(tmp_path, rounds):
    shards = [Shard(tmp_path / str(index), index) for index in range(SHARDS)]
    acknowledged = [0] * WRITERS
    drawn = [0] * READERS
    wrong = []
    stop = threading.Event()

    def write(slot):
        connections = {}
        owner = shards[shard_of(StreamId(slot, 0, 0), SHARDS)]
        while not stop.is_set():
            owner.call(connections, "append", counting_chunk(slot, acknowledged[slot]))
            acknowledged[slot] += 1

    def read(seed):
        connections = {}
        number = 0
        while not stop.is_set():
            number += 1
            windows = shards[number % SHARDS].call(
                connections, "sample", SampleRequest(8, (seed, number))
            )
            if not isinstance(windows, BufferError):
                obs = windows.columns["obs"]
                wrong.extend(obs[(np.diff(obs, axis=1) != [0, 1]).any(axis=(1, 2))].tolist())
                drawn[seed] += 1

    threads = [threading.Thread(target=write, args=(slot,)) for slot in range(WRITERS)]
    threads += [threading.Thread(target=read, args=(seed,)) for seed in range(READERS)]
    for thread in threads:
        thread.start()
    rng = np.random.default_rng(0)
    try:
        for number in range(rounds):
            wait_for_progress(acknowledged, 20)
            wait_for_progress(drawn, 1)
            time.sleep(float(rng.random()) * 0.05)
            victims = shards if number % 5 == 2 else [shards[rng.integers(SHARDS)]]
            for shard in victims:
                shard.kill()
            for shard in victims:
                shard.start()
        wait_for_progress(acknowledged, 20)
        wait_for_progress(drawn, 1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for shard in shards:
            shard.kill()
    assert not wrong
    check_shards(tmp_path, acknowledged)


def wait_for_progress(counts, more):
    """Until every writer (or reader) got this many more chunks acknowledged (or batches)."""
    goal = [count + more for count in counts]
    deadline = time.monotonic() + 60
    while any(count < wanted for count, wanted in zip(counts, goal, strict=True)):
        assert time.monotonic() < deadline, f"someone makes no progress: {counts}, wanted {goal}"
        time.sleep(0.02)


def check_shards(folder, acknowledged):
    for index in range(SHARDS):
        shard = open_shard(folder / str(index), index)
        counters = shard.row_counters()
        mine = [slot for slot in range(WRITERS) if shard_of(StreamId(slot, 0, 0), SHARDS) == index]
        assert counters.inserted == CHUNK_ROWS * sum(acknowledged[slot] for slot in mine)
        assert counters.is_balanced
        assert counters.lost_acked == 0
        assert not any(shard.append(counting_chunk(slot, acknowledged[slot] - 1)) for slot in mine)
        assert shard.append(counting_chunk(mine[0], acknowledged[mine[0]]))
        shard.close()
