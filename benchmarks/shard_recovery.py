"""What the death of a shard costs those who sample: how long they wait for a batch, and how soon
the shard's rows are drawn again.

    python benchmarks/shard_recovery.py  # two minutes; writes
    benchmarks/results/shard_recovery.json

ReplayCoordinator, two shards and their supervisor run on a private Ray as in a run; a prefetcher,
as a learner has, draws batches of both shards and rests 5 ms after each. One shard after the other
is killed (kill -9), ten times in all. The longest pause between two batches counts from the kill
on, and a shard is back when a batch has windows of it after one that had none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from context import context

from worldloom.core.sequence import NO_POLICY, StreamId
from worldloom.data.codec import make_chunk
from worldloom_dist.interfaces import Coordinator, Shard, coordinator_client, shard_client
from worldloom_dist.rpc.connection import RpcClient
from worldloom_dist.run.cli import parse
from worldloom_dist.run.plan import Plan, resolve
from worldloom_dist.runtime.cluster import ray_cluster
from worldloom_dist.runtime.coordinator_role import CoordinatorRole
from worldloom_dist.runtime.prefetcher import BatchPrefetcher
from worldloom_dist.runtime.shard_role import ShardRole
from worldloom_dist.runtime.supervisor import Role, Supervisor, start_actor

SHARDS = 2
KILLS = 10
ROWS = 100_000
CHUNK_ROWS = 64
REST_S = 0.005
GIVE_UP_S = 60.0
WORDS = (
    "--preset debug --env toy:counting --runtime ray --train-ratio 1000000 --env-steps 1000000000"
)
OPTIONS = {"num_cpus": 0.001}


class Reader(threading.Thread):
    """Draws batches and writes down when each came and which shards its windows are from."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(daemon=True)
        self.batches: list[tuple[float, frozenset[int]]] = []
        self._prefetcher = BatchPrefetcher(
            plan, 0, lambda windows: frozenset(windows.shard.tolist())
        )
        self._is_ended = threading.Event()

    def run(self) -> None:
        """Until it is told to end."""
        while not self._is_ended.is_set():
            shards = self._prefetcher.get(GIVE_UP_S)
            if shards is not None:
                self.batches.append((time.monotonic(), shards))
            time.sleep(REST_S)

    def end(self) -> None:
        """Tell it, and wait."""
        self._is_ended.set()
        self.join(GIVE_UP_S)
        self._prefetcher.stop()


def start_roles(plan: Plan, folder: Path) -> Supervisor:
    """ReplayCoordinator and shards, kept up as the driver does."""
    supervisor = Supervisor(max_restarts=1000, window_s=600.0)
    coordinator = coordinator_client()

    supervisor.add(
        Role(
            "coordinator",
            0,
            lambda _: start_actor(CoordinatorRole, "coordinator-0", plan, 0, options=OPTIONS),
            run_forever=Coordinator.run_forever,
        )
    )
    for index in range(SHARDS):
        make = partial(_start_shard, plan, index, folder)
        tell = partial(coordinator.notify, Coordinator.shard_down, index)
        supervisor.add(Role("shard", index, make, run_forever=Shard.run_forever, on_down=tell))
    return supervisor


def _start_shard(plan: Plan, index: int, folder: Path, _: int) -> Any:
    return start_actor(ShardRole, f"shard-{index}", plan, index, folder, options=OPTIONS)


def fill(plan: Plan) -> None:
    """Store rows in every shard, whatever the train ratio says."""
    coordinator_client().within(patience_s=GIVE_UP_S).call(Coordinator.drain)
    rows = {name: spec.zeros(CHUNK_ROWS) for name, spec in plan.columns.items()}
    for slot in range(SHARDS):
        line = RpcClient(shard_client(slot), Shard.append, None, GIVE_UP_S)
        for seq in range(ROWS // CHUNK_ROWS):
            rows["is_first"][0] = seq == 0
            line.call(make_chunk(StreamId(slot, 0, 0), seq, NO_POLICY, rows))
        line.close()


def kill_one(supervisor: Supervisor, reader: Reader, shard: int) -> dict[str, float]:
    """Kill a shard; returns the longest pause until it is back, and when that was, in seconds."""
    role = supervisor.roles[f"shard-{shard}"]
    while not (role.is_up and role.status.get("pid")):
        supervisor.poll(0.25)
    killed = time.monotonic()
    first = len(reader.batches)
    os.kill(role.status.pop("pid"), signal.SIGKILL)
    while time.monotonic() < killed + GIVE_UP_S:
        supervisor.poll(0.25)
        after = reader.batches[first:]
        without = next(
            (n for n, (_, shards) in enumerate(after) if shard not in shards), len(after)
        )
        back = next((at for at, shards in after[without:] if shard in shards), None)
        if back is not None:
            stamps = [killed, *(at for at, _ in after if at <= back)]
            return {
                "longest_pause_s": max(b - a for a, b in itertools.pairwise(stamps)),
                "back_after_s": back - killed,
            }
    raise TimeoutError(f"shard-{shard} was not back after {GIVE_UP_S} s")


def measure(folder: Path, kills: int = KILLS) -> dict[str, Any]:
    """All kills; medians and the longest."""
    capacity = str(2 * SHARDS * ROWS)
    plan = resolve(
        parse([*WORDS.split(), "--replay.shards", str(SHARDS), "--replay.capacity-steps", capacity])
    )
    with ray_cluster(None, "shard-recovery"):
        supervisor = start_roles(plan, folder)
        fill(plan)
        reader = Reader(plan)
        reader.start()
        while len(reader.batches) < 200:
            supervisor.poll(0.25)
        usual = [b - a for (a, _), (b, _) in itertools.pairwise(reader.batches)]
        found = [kill_one(supervisor, reader, number % SHARDS) for number in range(kills)]
        reader.end()
        counters = coordinator_client().call(Coordinator.counts)["counters"]
    spread = {
        name: {"median": statistics.median(values), "longest": max(values)}
        for name in ("longest_pause_s", "back_after_s")
        for values in [[one[name] for one in found]]
    }
    assert counters["lost_acked"] == 0
    return {
        "kills": kills,
        "rows_per_shard": ROWS,
        "usual_pause_s": statistics.median(usual),
        **spread,
        "counters": counters,
    }


def main() -> None:
    """Measure and write the report."""
    argparse.ArgumentParser(description=__doc__).parse_args()  # --help measures nothing
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as folder:
        report = context() | measure(Path(folder))
    path = Path(__file__).parent / "results" / "shard_recovery.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
