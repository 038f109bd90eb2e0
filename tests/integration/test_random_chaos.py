"""Two minutes of random kills, and a dead driver: the counters balance, no stored row is wrong, and
the run goes on and learns.

What each kill cost is printed; the README's table comes from there.
"""

import contextlib
import json
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.integration.running import (
    PATIENCE,
    Launched,
    check_counting,
    launched,
    read_journals,
    rows_of,
)
from worldloom.core.sequence import Rows
from worldloom.core.specs import EnvSpec
from worldloom.training.checkpoints import CheckpointStore

SECONDS = 120.0
VICTIMS = (
    "Learner",
    "Learner",
    "Shard",
    "Worker",
    "Inference",
    "Hub",
    "Coordinator",
    "WeightStore",
)
PLACES = ("checkpoint", "publish", "sample")
"""Where a learner of the run that learns is killed, besides; see ``deadly/sitecustomize.py``."""
DEADLY = Path(__file__).parent / "deadly"
LEARNING = "--agent.num-samples 64 --agent.num-elites 8 --agent.batch-size 64 --train-ratio 48"
ENOUGH_STEPS = 2400
TARGET = 24.0
"""``toy:point`` gives a random policy 8, and the shortest way 32; without kills a run has 31 after
1200 env steps.
"""
LAST_WRITE_S = 0.3
"""Rows that were on their way when a process died are stored by then."""

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.long,
    pytest.mark.timeout(900 * PATIENCE),
]


def size_of(folder: Path) -> int:
    """Bytes of the journals in a folder; a segment may go meanwhile."""
    size = 0
    for path in folder.glob("**/segment-*.wal"):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def journal_of(pid: int) -> Path | None:
    """The folder of the journal that a shard writes; None if it has opened none yet, or is gone."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        paths = [
            file.path for file in psutil.Process(pid).open_files() if "/replay/shard-" in file.path
        ]
        return Path(paths[0]).parent if paths else None
    return None


def strike(run: Launched, kind: str, rng: random.Random) -> tuple[Path, dict, float] | None:
    """Kill -9 a process of a role.

    Returns:
        The folder whose journals show that someone does its work again, the summary before, and
        the moment (monotonic seconds); None if there was no such process, or it ended by itself.
    """
    pids = run.pids(f"ray::{kind}Role")
    pid = rng.choice(pids) if pids else None
    journals = journal_of(pid) if pid and kind == "Shard" else run.folder / "replay"
    if pid is None or journals is None:
        return None
    before = run.summary()
    began = time.monotonic()
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return journals, before, began


def kill_one(run: Launched, kind: str, rng: random.Random) -> float:
    """Kill -9 a process of a role; returns the seconds until its successor does the same work,
    where that is seen from outside.
    """
    journals, before, began = run.wait_until(lambda: strike(run, kind, rng), 90)
    if kind in ("Shard", "Inference"):
        time.sleep(LAST_WRITE_S)
        size = size_of(journals)
        run.wait_until(lambda: size_of(journals) > size, 60)
    elif kind in ("Learner", "Hub", "Coordinator"):
        counter = "train_steps" if kind == "Learner" else "env_steps"
        run.wait_until(
            lambda: (
                run.summary()["restarts"].get(kind.lower(), 0)
                > before["restarts"].get(kind.lower(), 0)
            ),
            60,
        )
        before = run.summary()  # as far as the one that died was last seen to be
        run.wait_until(lambda: run.summary()[counter] > before[counter], 120)
    return time.monotonic() - began


def kill_learner_at(run: Launched, place: str, orders: Path) -> float:
    """Have a learner die at a place; returns the seconds until its successor is beyond where it
    was.
    """
    restarts = run.summary()["restarts"]["learner"]
    (orders / place).touch()
    run.wait_until(lambda: run.summary()["restarts"]["learner"] > restarts, 120)
    began = time.monotonic()
    before = run.summary()["train_steps"]
    assert not (orders / place).exists(), f"it died in a {place}"
    run.wait_until(lambda: run.summary()["train_steps"] > before, 120)
    return time.monotonic() - began


def replacements(folder: Path, killed: list[float]) -> list[float]:
    """Seconds from each kill of a worker to the first chunk of the next process in its slot that
    stored one.
    """
    first_seen: dict[tuple[int, int], float] = {}
    for stream, chunks in read_journals(folder).items():
        incarnation = (stream.slot, stream.incarnation)
        first_seen[incarnation] = min(
            first_seen.get(incarnation, float("inf")), chunks[0].inserted_s
        )
    later = [
        stamp
        for (slot, incarnation), stamp in first_seen.items()
        if any(s == slot and o < incarnation for s, o in first_seen)
    ]
    return [min(stamp - at for stamp in later if stamp > at) for at in killed]


def decisions_in(rows: Rows) -> int:
    """Rows that a decision led to."""
    return int(np.count_nonzero(~rows["is_first"]))


def check_books(folder: Path, summary: dict, check: Callable[[Rows], int]) -> None:
    """Every acknowledged row is there, once, in its place, as far as ``check`` can see that in the
    rows of a stream.
    """
    env = EnvSpec.from_dict(json.loads((folder / "config.json").read_text())["env"])
    decisions = [check(rows_of(chunks, env)) for chunks in read_journals(folder).values()]
    rows = summary["rows"]
    assert sum(decisions) == summary["agent_steps"]
    assert rows["inserted"] == rows["stored"] + rows["evicted"] + rows["lost_acked"]
    assert rows["lost_acked"] == 0


def endure(
    folder: Path, words: str, rng: random.Random, orders: Path | None, took: dict[str, list[float]]
) -> tuple[dict, list[float]]:
    """Start a run, kill its roles at random for two minutes and its driver in the end.

    Returns:
        Its last summary, and when workers were killed; what the others took is in ``took``.
    """
    killed = []
    env = {}
    if orders is not None:
        path = os.pathsep.join([str(DEADLY), os.environ.get("PYTHONPATH", str(Path.cwd()))])
        env = {"PYTHONPATH": path, "WORLDLOOM_KILL_AT": str(orders)}
    base = (
        "--preset debug --workers 2 --replay.shards 2 --inference central "
        "--eval-episodes 0 --env-steps 100000000 --metrics-port 0"
    )
    base += f" --learner.checkpoint-every-s 1 --actors.max-restarts 1000 --run-dir {folder}"
    with launched(folder, *base.split(), *words.split(), env=env) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 150, 180)
        run.wait_until(lambda: CheckpointStore(folder / "checkpoints").folders(), 60)
        end = time.monotonic() + SECONDS
        due = [*sorted({*VICTIMS}), *(PLACES if orders is not None else ())]
        rng.shuffle(due)  # each once, then at random
        while time.monotonic() < end or due:
            kind = due.pop() if due else rng.choice(VICTIMS)
            if kind == "Worker":
                killed.append(time.time())
            took[kind].append(
                kill_learner_at(run, kind, orders) if kind in PLACES else kill_one(run, kind, rng)
            )
            time.sleep(rng.uniform(0.5, 5.0))
        run.process.send_signal(signal.SIGKILL)  # the driver
        run.process.wait(30)
        before = run.summary()
    return before, killed


def go_on(
    folder: Path,
    before: dict,
    killed: list[float],
    env_steps: int,
    took: dict[str, list[float]],
    *words: str,
) -> dict:
    """Resume the run, let it reach this many env steps; returns its summary, whose counters were
    checked but for the rows' contents.
    """
    began = time.monotonic()
    with launched(
        folder,
        "--resume",
        str(folder),
        "--env-steps",
        str(env_steps),
        "--metrics-port",
        "0",
        *words,
    ) as run:
        run.wait_until(lambda: run.summary()["train_steps"] > before["train_steps"], 120)
        took["driver"] = [time.monotonic() - began]
        assert run.finish(600) == 0, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
    took["Worker"] = replacements(folder, killed)
    print(f"seconds until it works again, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(
        json.dumps(
            {kind: [round(seconds, 1) for seconds in values] for kind, values in took.items()}
        )
    )
    print(json.dumps({"rows": summary["rows"], "restarts": summary["restarts"]}))
    assert summary["status"] == "completed"
    assert summary["env_steps"] >= env_steps
    versions = [tuple(map(int, one["policy_version"].split("."))) for one in (before, summary)]
    assert versions[0] < versions[1]
    return summary


@pytest.mark.parametrize("learners", [1, 2])
def test_two_minutes_of_random_kills_and_a_dead_driver(tmp_path, learners):
    folder = tmp_path / "run"
    took: defaultdict[str, list[float]] = defaultdict(list)
    words = f"--env toy:counting --learners {learners}"
    before, killed = endure(folder, words, random.Random(learners), None, took)
    check_books(
        folder, go_on(folder, before, killed, before["env_steps"] + 400, took), check_counting
    )


def test_run_that_is_killed_everywhere_reaches_its_return_target(tmp_path):
    folder = tmp_path / "run"
    orders = tmp_path / "kill-at"
    orders.mkdir()
    took: defaultdict[str, list[float]] = defaultdict(list)
    before, killed = endure(folder, f"--env toy:point {LEARNING}", random.Random(3), orders, took)
    steps = max(before["env_steps"] + 400, ENOUGH_STEPS)
    summary = go_on(folder, before, killed, steps, took, "--eval-episodes", "20")
    check_books(folder, summary, decisions_in)
    print(
        json.dumps(
            {
                "eval": summary["eval"],
                "env_steps": summary["env_steps"],
                "train_steps": summary["train_steps"],
            }
        )
    )
    assert before["restarts"]["learner"] >= len(PLACES)
    assert summary["eval"]["env_steps"] >= steps, "the last weights were evaluated"
    assert summary["eval"]["return_mean"] >= TARGET
