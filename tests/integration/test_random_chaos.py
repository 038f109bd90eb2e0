"""Two minutes of random kills: the books balance, no stored row is wrong, and the run goes on, also after its driver died.

What each kill cost is printed; the README's table comes from there.
"""

import json
import os
import random
import signal
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest

from tests.integration.running import PATIENCE, Launched, check_counting, launched, read_journals, rows_of
from worldloom.core.specs import EnvSpec
from worldloom.training.checkpoints import CheckpointStore

SECONDS = 120.0
VICTIMS = ("Learner", "Learner", "Shard", "Worker", "Inference", "Hub", "Ledger", "WeightStore")
LAST_WRITE_S = 0.3
"""Rows that were on their way when a process died are stored by then."""

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.long, pytest.mark.timeout(900 * PATIENCE)]


def size_of(folder: Path) -> int:
    """Bytes of the journals in a folder."""
    return sum(path.stat().st_size for path in folder.glob("**/segment-*.wal"))


def journal_of(pid: int) -> Path:
    """The folder of the journal that a shard writes."""
    return next(Path(file.path).parent for file in psutil.Process(pid).open_files() if "/replay/shard-" in file.path)


def kill_one(run: Launched, kind: str, rng: random.Random) -> float:
    """Kill -9 a process of a role; returns the seconds until its successor does the same work, where that is seen from outside."""
    pid = rng.choice(run.wait_until(lambda: run.pids(f"ray::{kind}Role"), 90))
    journals = journal_of(pid) if kind == "Shard" else run.folder / "replay"
    before, began = run.summary(), time.monotonic()
    os.kill(pid, signal.SIGKILL)
    if kind in ("Shard", "Inference"):
        time.sleep(LAST_WRITE_S)
        size = size_of(journals)
        run.wait_until(lambda: size_of(journals) > size, 60)
    elif kind in ("Learner", "Hub", "Ledger"):
        counter = "train_steps" if kind == "Learner" else "env_steps"
        run.wait_until(lambda: run.summary()["restarts"].get(kind.lower(), 0) > before["restarts"].get(kind.lower(), 0), 60)
        before = run.summary()  # as far as the one that died was last seen to be
        run.wait_until(lambda: run.summary()[counter] > before[counter], 120)
    return time.monotonic() - began


def replacements(folder: Path, killed: list[float]) -> list[float]:
    """Seconds from each kill of a worker to the first chunk of the next process in its slot that stored one."""
    lives: dict[tuple[int, int], float] = {}
    for stream, chunks in read_journals(folder).items():
        life = (stream.slot, stream.incarnation)
        lives[life] = min(lives.get(life, float("inf")), chunks[0].inserted_s)
    later = [stamp for (slot, life), stamp in lives.items() if any(s == slot and o < life for s, o in lives)]
    return [min(stamp - at for stamp in later if stamp > at) for at in killed]


def check_books(folder: Path, summary: dict) -> None:
    """Every acknowledged row is there, once, in its place."""
    env = EnvSpec.from_dict(json.loads((folder / "config.json").read_text())["env"])
    decisions = [check_counting(rows_of(chunks, env)) for chunks in read_journals(folder).values()]
    rows = summary["rows"]
    assert sum(decisions) == summary["agent_steps"]
    assert rows["inserted"] == rows["stored"] + rows["evicted"] + rows["lost_acked"]
    assert rows["lost_acked"] == 0


@pytest.mark.parametrize("learners", [1, 2])
def test_two_minutes_of_random_kills_and_a_dead_driver(tmp_path, learners):
    folder, rng = tmp_path / "run", random.Random(learners)
    took: defaultdict[str, list[float]] = defaultdict(list)
    killed = []
    words = "--preset debug --env toy:counting --workers 2 --inference central --replay.shards 2 --replay.capacity-steps 1000000"
    words += f" --learners {learners} --eval-episodes 0 --env-steps 100000000 --learner.checkpoint-every-s 1 --metrics-port 0"
    with launched(folder, *words.split(), "--actors.max-restarts", "1000", "--run-dir", str(folder)) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 150, 180)
        run.wait_until(lambda: CheckpointStore(folder / "checkpoints").folders(), 60)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            kind = rng.choice(VICTIMS)
            if kind == "Worker":
                killed.append(time.time())
            took[kind].append(kill_one(run, kind, rng))  # of a learner mostly in a sample, a publish or a checkpoint
            time.sleep(rng.uniform(0.5, 5.0))
        run.process.send_signal(signal.SIGKILL)  # the driver
        run.process.wait(30)
        before = run.summary()
    began = time.monotonic()
    with launched(folder, "--resume", str(folder), "--env-steps", str(before["env_steps"] + 400), "--metrics-port", "0") as run:
        run.wait_until(lambda: run.summary()["train_steps"] > before["train_steps"], 120)
        took["driver"] = [time.monotonic() - began]
        assert run.finish(240) == 0, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
    took["Worker"] = replacements(folder, killed)
    print(f"seconds until it works again, {learners} learner(s), load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(json.dumps({kind: [round(seconds, 1) for seconds in values] for kind, values in took.items()}))
    print(json.dumps({"rows": summary["rows"], "restarts": summary["restarts"]}))
    assert summary["status"] == "completed"
    assert summary["env_steps"] >= before["env_steps"] + 400
    versions = [tuple(map(int, one["policy_version"].split("."))) for one in (before, summary)]
    assert versions[0] < versions[1]
    check_books(folder, summary)
