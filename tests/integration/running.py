"""Run the real command line in a subprocess, look at what it wrote, and make sure that nothing is
left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from worldloom.core.sequence import Rows, StreamId
from worldloom.core.specs import EnvSpec
from worldloom.data.codec import decode_rows
from worldloom.envs.toy import CountingEnv
from worldloom_dist.replay.journal import Journal
from worldloom_dist.replay.records import CHUNK, StoredChunk

MARK = "WORLDLOOM_TEST_RUN"
PATIENCE = float(os.environ.get("WORLDLOOM_PATIENCE", "1"))
"""Factor on every deadline, for machines that do other work too."""


class Launched:
    """A running ``python -m worldloom_dist.launch``; every process it starts carries its mark in
    the environment.
    """

    def __init__(self, folder: Path, *words: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        environment = {
            **os.environ,
            MARK: self.mark,
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
            **(env or {}),
        }
        self.output = folder.parent / f"{folder.name}-{self.mark[:6]}.out"
        command = [sys.executable, "-m", "worldloom_dist.launch", *words]
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def pids(self, title: str) -> list[int]:
        """Processes of this run whose command line begins with ``title`` (for example
        ``ray::ShardRole``).
        """
        return [pid for pid, line in marked(self.mark).items() if line.startswith(title)]

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def summary(self) -> dict[str, Any]:
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        """Wait for a condition; fails with the run's output when it ends or takes too long."""
        deadline = time.monotonic() + timeout_s * PATIENCE
        while time.monotonic() < deadline:
            # looked at first, because what is waited for may be the last thing that the run does
            had_ended = self.has_ended
            value = condition()
            if value:
                return value
            assert not had_ended, self.output.read_text()
            time.sleep(0.1)
        raise AssertionError(f"waited {timeout_s} s in vain:\n{self.output.read_text()}")

    def journal_bytes(self) -> int:
        """Size of the journals now."""
        return sum(path.stat().st_size for path in self.folder.glob("replay/shard-*/segment-*.wal"))

    def finish(self, timeout_s: float = 100.0) -> int:
        """Wait for the end; returns the exit status."""
        try:
            return self.process.wait(timeout_s * PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(
                f"still running after {timeout_s} s:\n{self.output.read_text()}"
            ) from error

    def leftovers(self) -> list[str]:
        """Command lines of processes that outlived the run."""
        deadline = time.monotonic() + 10.0 * PATIENCE
        while (left := marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return list(left.values())

    def kill_all(self) -> None:
        kill_marked(self.mark)
        self.process.wait(10)


def marked(mark: str) -> dict[int, str]:
    """Command lines of the living processes whose environment carries a mark, by process id."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())
    return found


def kill_marked(mark: str) -> None:
    """Kill them, and those that they start meanwhile."""
    while found := marked(mark):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


@contextlib.contextmanager
def launched(folder: Path, *words: str, env: dict[str, str] | None = None) -> Iterator[Launched]:
    """A run in ``folder``; killed with everything it started when the block ends."""
    run = Launched(folder, *words, env=env)
    try:
        yield run
    finally:
        run.kill_all()


def read_journals(folder: Path) -> dict[StreamId, list[StoredChunk]]:
    """Every stored chunk of a run folder, by stream, in the order of insertion."""
    streams: dict[StreamId, list[StoredChunk]] = {}
    for directory in sorted((folder / "replay").glob("shard-*")):
        journal = Journal(directory)
        try:
            for record in journal.read():
                if record.kind == CHUNK:
                    stored = StoredChunk.unpack(record.payload)
                    streams.setdefault(stored.chunk.stream, []).append(stored)
        finally:
            journal.close()
    return streams


def rows_of(chunks: list[StoredChunk], env: EnvSpec) -> Rows:
    """The rows of one stream; its chunks must be numbered without gap or repeat."""
    assert [stored.chunk.seq for stored in chunks] == list(range(len(chunks)))
    parts = [decode_rows(stored.chunk.payload, env.columns()) for stored in chunks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_counting(rows: Rows) -> int:
    """Prove by ``toy:counting``'s own counters that no row is lost, doubled or shifted; returns the
    number of decisions.
    """
    episode, step, led_here = rows["obs"].T
    expected_episode = 0
    expected_step = 0
    for t in range(len(step)):
        assert (episode[t], step[t]) == (expected_episode, expected_step), f"row {t}"
        assert rows["is_first"][t] == (expected_step == 0)
        assert rows["reward"][t] == expected_step
        if expected_step:
            assert led_here[t] == rows["action"][t - 1, 0], (
                f"row {t} was reached by another action than row {t - 1} holds"
            )
        is_last = expected_step == CountingEnv.LENGTHS[expected_episode % len(CountingEnv.LENGTHS)]
        assert rows["terminated"][t] == (is_last and expected_episode % 2 == 0)
        assert rows["truncated"][t] == (is_last and expected_episode % 2 == 1)
        expected_episode, expected_step = (
            (expected_episode + 1, 0) if is_last else (expected_episode, expected_step + 1)
        )
    return int(np.count_nonzero(~rows["is_first"]))
