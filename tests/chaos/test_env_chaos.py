"""Envs that misbehave in every way, and processes killed at random: the run reaches its target, and
every stored row is right.
"""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import (
    PATIENCE,
    Launched,
    check_counting,
    launched,
    read_journals,
    rows_of,
)
from worldloom.core.sequence import StreamId
from worldloom.core.specs import EnvSpec
from worldloom_dist.replay.records import StoredChunk

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

DEADLINE_S = 2.0
VICTIMS = ("ray::WorkerRole", "ray::InferenceRole")


def pieces(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one stream, cut where an env was built again: its count begins at episode 0."""
    firsts = [
        t for t in range(len(rows["reward"])) if rows["is_first"][t] and rows["obs"][t, 0] == 0
    ]
    return [
        {name: value[a:b] for name, value in rows.items()}
        for a, b in zip(firsts, [*firsts[1:], None], strict=True)
    ]


def rebuilt_at(chunks: list[StoredChunk], env: EnvSpec) -> list[float]:
    """When the first chunk of every rebuilt env of a stream was acknowledged."""
    starts = [
        chunk
        for chunk in chunks
        if (rows := rows_of_one(chunk, env))["is_first"][0] and rows["obs"][0, 0] == 0
    ]
    return [chunk.inserted_s for chunk in starts[1:]]


def rows_of_one(chunk: StoredChunk, env: EnvSpec) -> dict[str, Any]:
    from worldloom.data.codec import decode_rows

    return decode_rows(chunk.chunk.payload, env.columns())


def kill_at_random(run: Launched, seconds: float, pause_s: float) -> list[float]:
    """Kill -9 workers and inference servers, as many of each, in random order, for so long or until
    the run ends.

    The first of each kind goes at once and the others after a pause, so that no run is too fast to
    be hit.

    Returns:
        When workers were killed.
    """
    dice = random.Random(0)
    bag = list[str]()
    kills = list[tuple[str, float]]()
    stop = time.monotonic() + seconds
    while time.monotonic() < stop and not run.has_ended:
        bag = bag or dice.sample(VICTIMS, len(VICTIMS))
        title = bag.pop()
        stamp = kill_one(run, title, dice)
        if stamp is not None:
            kills.append((title, stamp))
        time.sleep(pause_s if len(kills) >= len(VICTIMS) else 0.0)
    return [stamp for title, stamp in kills if title == VICTIMS[0]]


def kill_one(run: Launched, title: str, dice: random.Random) -> float | None:
    """Kill -9 one of such processes and wait for its successor; returns when it was killed, or None
    if the run ends just now.
    """
    run.wait_until(lambda: run.has_ended or run.pids(title))
    before = set(run.pids(title))
    if not before:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(dice.choice(sorted(before)), signal.SIGKILL)
        stamp = time.time()
        run.wait_until(lambda: run.has_ended or set(run.pids(title)) - before)
        return stamp
    return None


def recovery_s(
    killed: list[float],
    hangs: list[float],
    streams: dict[StreamId, list[StoredChunk]],
    env: EnvSpec,
) -> dict[str, Any]:
    """Seconds from each event to the next first chunk of a replacement; a hang while a worker was
    killed is left out.
    """
    hangs = [
        hang for hang in hangs if not any(hang <= kill <= hang + DEADLINE_S for kill in killed)
    ]
    first_seen: dict[tuple[int, int], float] = {}
    for stream, chunks in streams.items():
        name = (stream.slot, stream.incarnation)
        first_seen[name] = min(first_seen.get(name, float("inf")), chunks[0].inserted_s)
    successors = sorted(
        stamp
        for (slot, incarnation), stamp in first_seen.items()
        if any(s == slot and o < incarnation for s, o in first_seen)
    )
    rebuilt = (
        sorted(stamp for chunks in streams.values() for stamp in rebuilt_at(chunks, env))
        + successors
    )

    def after(events: list[float], stamps: list[float], at_least_s: float) -> list[float]:
        return [
            round(min((s - event for s in stamps if s > event + at_least_s), default=-1.0), 2)
            for event in events
        ]

    return {
        "worker_killed": after(killed, successors, 0.0),
        "env_hung": after(hangs, rebuilt, DEADLINE_S),
        "deadline": DEADLINE_S,
    }


def run_chaos(
    folder: Path,
    *,
    seconds: float,
    pause_s: float,
    odds: float,
    target: int,
    least_updates: int = 0,
) -> dict[str, Any]:
    """Kill for this many seconds, from the first stored rows on, or once this many updates
    were made.
    """
    log = folder.parent / "chaos.log"
    log.touch()
    words = [
        "--preset",
        "debug",
        "--env",
        "chaos_envs:ChaosEnv",
        "--workers",
        "2",
        "--envs-per-worker",
        "2",
    ]
    words += ["--run-dir", str(folder)]
    words += [
        "--eval-episodes",
        "0",
        "--inference",
        "central",
        "--metrics-port",
        "0",
        "--env-steps",
        str(target),
    ]
    words += [
        "--train-ratio",
        "2",
        "--replay.shards",
        "2",
        "--actors.max-restarts",
        "1000",
        "--actors.max-env-failures",
        "1000",
    ]
    # each failure by itself: the pause after many grows by design
    words += ["--actors.env-failure-window-s", "10"]
    words += [
        "--actors.step-timeout-s",
        str(DEADLINE_S),
        "--actors.reset-timeout-s",
        str(DEADLINE_S),
    ]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with launched(
        folder, *words, env={"CHAOS_LOG": str(log), "CHAOS_ODDS": str(odds), "PYTHONPATH": path}
    ) as run:
        run.wait_until(
            lambda: run.journal_bytes() and run.summary().get("train_steps", 0) >= least_updates,
            180,
        )
        killed = kill_at_random(run, seconds, pause_s)
        assert run.finish(240) == 0, run.output.read_text()
        summary = run.summary()
        assert run.leftovers() == []
        said = run.output.read_text()
    events = [line.split(" ", 1) for line in log.read_text().splitlines()]
    env = EnvSpec.from_dict(json.loads((folder / "config.json").read_text())["env"])
    streams = read_journals(folder)
    decisions = [
        check_counting(piece)
        for chunks in streams.values()
        for piece in pieces(rows_of(chunks, env))
    ]
    rows = sum(stored.chunk.num_rows for chunks in streams.values() for stored in chunks)
    counters = summary["rows"]
    assert summary["status"] == "completed"
    assert sum(decisions) == summary["agent_steps"] >= target
    assert (counters["inserted"], counters["lost_acked"]) == (rows, 0)
    hangs = [float(stamp) for stamp, kind in events if kind.startswith("hang")]
    # those whose worker did not die before the deadline, nor the run end
    overdue = said.count("hung (failure")
    assert said.count("hangs; its stack:") >= overdue, "a hang leaves a stack dump in the log"
    kinds = {kind: sum(k == kind for _, k in events) for _, kind in events}
    report = {"misbehaved": kinds, "overdue": overdue, "restarts": summary["restarts"]}
    report["recovery_s"] = recovery_s(killed, hangs, streams, env)
    (folder.parent / "recovery.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return report


@pytest.mark.timeout(500 * PATIENCE)
def test_fifteen_seconds_of_chaos_cost_no_stored_row(tmp_path: Path) -> None:
    report = run_chaos(tmp_path / "run", seconds=15, pause_s=3.0, odds=0.02, target=700)
    assert report["restarts"]["worker"] + report["restarts"]["inference"] >= 2
    assert report["restarts"]["env"] >= 1


@pytest.mark.long
@pytest.mark.timeout(1200 * PATIENCE)
def test_two_minutes_of_chaos_cost_no_stored_row(tmp_path: Path) -> None:
    report = run_chaos(
        tmp_path / "run", seconds=120, pause_s=4.0, odds=0.01, target=12000, least_updates=1
    )
    assert report["restarts"]["worker"] >= 5
    assert report["restarts"]["inference"] >= 5
    assert report["restarts"]["env"] >= 5
    assert report["overdue"] >= 5
