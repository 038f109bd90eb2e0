"""``--seeds 1-5``: a run for each seed, one after the other or ``--parallel N`` at once.

Every seed is an ordinary run in a folder of its own, ``NAME-seed3``, made by a process of its own,
as if it had been started alone. A sweep that was interrupted goes on with ``--if-exists resume``:
runs that are complete are left as they are.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import Bounds, checked
from worldloom.core.json_text import read_object
from worldloom.core.program import EXIT_INTERRUPTED, EXIT_TERMINATED
from worldloom.evaluation.seeds import bootstrap_interval
from worldloom_dist.run.claim import run_name
from worldloom_dist.run.cli import parse
from worldloom_dist.run.closing import program
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.signals import EXIT_AGAIN, StopFlag, stop_on_signals
from worldloom_dist.run.view import duration, read_view

__all__ = ["SeedRuns", "parse_seeds", "run_seeds", "split_words"]

CHILDREN_EVERY_S = 0.2
SAY_EVERY_S = 10.0
MOST_SEEDS = 1000
LAST_WORDS_BYTES = 64 * 1024
PARALLEL = "--parallel"
SEEDS = "--seeds"


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The flags of one run, and ``seeds`` and ``parallel`` where they are given.

    Raises:
        ConfigurationError: If one of the two has no value.
    """
    rest: list[str] = []
    found: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in (SEEDS, PARALLEL):
            rest.append(word)
            continue
        if not equals:
            if not left or left[0].startswith("--"):
                raise ConfigurationError(f"{flag}: expected a value after it")
            value = left.pop(0)
        found[flag.removeprefix("--")] = value
    if "parallel" in found and "seeds" not in found:
        raise ConfigurationError(f"{PARALLEL} is for several runs: name them with {SEEDS} 1-5")
    return rest, found


def parse_seeds(text: str) -> list[int]:
    """``1-3,8`` -> [1, 2, 3, 8].

    Raises:
        ConfigurationError: If it is something else, or names a seed twice, or more than a thousand.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else -1
        if last < first:
            raise ConfigurationError(
                f"seeds must be numbers and ranges like 1-5 or 1,2,7, got {text!r}"
            )
        if len(found) + last - first >= MOST_SEEDS:
            raise ConfigurationError(f"seeds: at most {MOST_SEEDS}, got more: {text!r}")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise ConfigurationError(f"seeds: each can be named once, got {text!r}")
    return found


def run_seeds(words: Sequence[str], given: Mapping[str, str]) -> int:
    """Run a sweep; returns the exit status.

    Args:
        words: The flags of one run.
        given: ``seeds`` and ``parallel`` as they were typed.

    Raises:
        ConfigurationError: If a flag is wrong, or a folder holds a run already.
    """
    seeds = parse_seeds(given["seeds"])
    text = given.get("parallel", "1")
    if not text.isdecimal():
        raise ConfigurationError(f"{PARALLEL}: cannot be {text!r}; it takes an integer")
    return SeedRuns(parse(words), words, seeds, parallel=int(text)).run()


@dataclass(slots=True)
class _SeedRun:
    """One seed: its folder, its process while it runs, and its exit status."""

    seed: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    complaints: IO[bytes] | None = None
    status: int | None = None


class SeedRuns:
    """The runs of a sweep over seeds.

    Args:
        config: Of one run, without a seed.
        words: Its flags.
        seeds: One run each.
        parallel: How many run at once.
        out: Where lines go; standard output by default.

    Raises:
        ConfigurationError: If a flag contradicts several seeds, or a folder holds a run already.
    """

    def __init__(
        self,
        config: RunConfig,
        words: Sequence[str],
        seeds: Sequence[int],
        *,
        parallel: int = 1,
        out: TextIO | None = None,
    ) -> None:
        self._config = config
        self._words = _without(words, "--run-dir", "--seed", "--learner.checkpoints")
        self._parallel = checked("parallel", parallel, int, Bounds(1, MOST_SEEDS))
        self._out = out or sys.stdout
        given = {word.partition("=")[0] for word in words}
        if "--seed" in given:
            raise ConfigurationError("seed: the seeds come from --seeds; leave --seed out")
        if "--resume" in given:
            raise ConfigurationError(
                "resume goes on with one run; a sweep goes on with its own command and "
                "--if-exists resume"
            )
        for name in ("metrics_port", "gateway_port"):
            if parallel > 1 and getattr(config, name):
                raise ConfigurationError(
                    f"{name}: {parallel} runs at once cannot share port {getattr(config, name)}; "
                    "leave the flag out, or run one after the other"
                )
        self._root = _named(config.run_dir or Path("runs") / run_name(config))
        self._has_forwarded = False
        self._runs = [_SeedRun(seed, self._folder_of(seed)) for seed in seeds]
        taken = [run.folder for run in self._runs if (run.folder / "config.json").exists()]
        if taken and config.if_exists == "error":
            raise ConfigurationError(
                f"run_dir: {taken[0]} holds a run already; add --if-exists resume to go on with "
                "the sweep, or name another folder with --run-dir"
            )

    def run(self) -> int:
        """Run all of them; returns the exit status: 0 when each is complete or was stopped, 2 when
        one had wrong input, 1 when one failed, 75 when the machine goes away before all are
        complete.
        """
        with stop_on_signals() as stop:
            try:
                self._run_all(stop)
            except KeyboardInterrupt:  # the second signal
                self._forward(signal.SIGINT)
                self._wait()
        self._say_last(is_stopped=stop.is_set)
        statuses = [run.status for run in self._runs if run.status]
        if statuses:
            return 2 if 2 in statuses else 1
        return EXIT_AGAIN if stop.asks_again and not all(map(self._is_complete, self._runs)) else 0

    def _run_all(self, stop: StopFlag) -> None:
        waiting = [run for run in self._runs if not self._is_complete(run)]
        for run in self._runs:
            if run not in waiting:
                self._say(f"seed {run.seed}: complete already, in {run.folder}")
        said_at = time.monotonic()
        while waiting or any(run.process for run in self._runs):
            if stop.is_set and not self._has_forwarded:
                waiting.clear()
                self._forward(signal.SIGUSR1)
            while waiting and sum(run.process is not None for run in self._runs) < self._parallel:
                self._start(waiting.pop(0))
            for run in self._runs:
                if run.process is not None and run.process.poll() is not None:
                    self._note_end(run)
                    if run.status == 2:  # so would the others
                        waiting.clear()
            if self._parallel > 1 and time.monotonic() - said_at >= SAY_EVERY_S:
                said_at = time.monotonic()
                self._say_progress()
            time.sleep(CHILDREN_EVERY_S)

    def _start(self, run: _SeedRun) -> None:
        command = [
            *(sys.executable, "-m", "worldloom_dist.launch", *self._words),
            *("--seed", str(run.seed), "--run-dir", str(run.folder)),
            *self._checkpoints_of(run.seed),
        ]
        is_alone = self._parallel == 1
        self._say(f"seed {run.seed}: {run.folder}")
        self._out.flush()
        # a file, because a pipe that is not read while it runs would stop it when it is full
        run.complaints = None if is_alone else tempfile.TemporaryFile()  # noqa: SIM115
        run.process = subprocess.Popen(
            command,
            stdout=None if is_alone else subprocess.DEVNULL,
            stderr=run.complaints,
            start_new_session=True,  # a terminal's Ctrl-C reaches it once, through us
        )

    def _note_end(self, run: _SeedRun) -> None:
        assert run.process is not None
        complaint = _last_words(run.complaints)
        # the signal may come before a run listens to it: then nothing has begun
        code = run.process.returncode
        early = (-signal.SIGUSR1, EXIT_TERMINATED, EXIT_INTERRUPTED)
        is_early = self._has_forwarded and code in (*early, -signal.SIGTERM, -signal.SIGINT)
        run.process = None
        run.complaints = None
        summary = {"status": "stopped"} if is_early else _summary_of(run.folder)
        is_stopped = self._has_forwarded and summary.get("status") == "stopped"  # also at once
        run.status = 0 if is_early or is_stopped or code == EXIT_AGAIN else abs(code)
        end = summary.get("status", "failed") if run.status == 0 else "failed"
        why = complaint.splitlines()[-1] if run.status and complaint else summary.get("error")
        self._say(f"seed {run.seed}: {end}{f' ({why})' if run.status and why else ''}")

    def _forward(self, number: signal.Signals) -> None:
        """Hand a signal on to the runs: first SIGUSR1, which a service manager's or a batch
        system's own SIGTERM to the same run may come before or follow, then SIGINT.
        """
        self._has_forwarded = True
        for run in self._runs:
            if run.process is not None:
                run.process.send_signal(number)

    def _wait(self) -> None:
        for run in self._runs:
            if run.process is not None:
                run.process.wait()
                self._note_end(run)

    def _is_complete(self, run: _SeedRun) -> bool:
        summary = _summary_of(run.folder)
        config = self._config
        counted, target = ("env_steps", config.env_steps)
        if config.env.is_none:
            counted, target = ("train_steps", config.train_steps)
        return summary.get("status") == "completed" and summary.get(counted, 0) >= target

    def _say_progress(self) -> None:
        for run in self._runs:
            if run.process is None:
                continue
            try:
                view = read_view(run.folder, is_live=True)
            except (OSError, ValueError, KeyError):  # it has only just begun
                continue
            shown = "-" if view.train_return is None else f"{view.train_return:.1f}"
            left = f", {duration(view.eta_s)} to go" if view.eta_s is not None else ""
            self._say(f"seed {run.seed}: {view.counted}, return {shown}{left}")

    def _say_last(self, *, is_stopped: bool) -> None:
        """What came out: a line per seed, the mean over seeds, and the commands that go on."""
        self._say("")
        returns = []
        for run in self._runs:
            summary = _summary_of(run.folder)
            evaluation = summary.get("eval") or {}
            mean = evaluation.get("return_mean")
            is_done = run.status in (0, None) and summary.get("status") == "completed"
            if mean is not None and is_done:
                returns.append(float(mean))
            shown = "-" if mean is None else f"{mean:.1f}"
            status = summary.get("status", "not started")
            self._say(f"seed {run.seed:<5} {status:<10} return {shown:>9}   {run.folder}")
        if returns:
            values = np.array(returns)
            low, high = bootstrap_interval([values], lambda v: v.mean(axis=0))
            word = "seeds" if len(returns) > 1 else "seed"
            self._say(
                f"return   {values.mean():.1f} [{float(low):.1f}, {float(high):.1f}] over "
                f"{len(returns)} {word} (mean of the last evaluations, 95 % bootstrap interval)"
            )
        if folders := self._shown_folders():
            self._say(f"plot     {program()} plot {folders}")
            self._say(f"compare  {program()} plot --table {folders}")
        if is_stopped or any(run.status for run in self._runs):
            self._say("go on    the same command with --if-exists resume")

    def _shown_folders(self) -> str:
        """The folders that there is something to see in, as they are typed; several by a pattern
        where it takes in no others.
        """
        folders = [run.folder for run in self._runs if RunFolder(run.folder).has_records]
        pattern = f"{glob.escape(self._root.name)}-seed*"
        if len(folders) > 3 and set(self._root.parent.glob(pattern)) == set(folders):
            return f"{shlex.quote(str(self._root))}-seed*"
        return " ".join(shlex.quote(str(folder)) for folder in folders)

    def _folder_of(self, seed: int) -> Path:
        return self._root.with_name(f"{self._root.name}-seed{seed}")

    def _checkpoints_of(self, seed: int) -> list[str]:
        """Each seed has checkpoints of its own, where one place is named for all."""
        place = self._config.learner.checkpoints
        return ["--learner.checkpoints", f"{place.rstrip('/')}/seed{seed}"] if place else []

    def _say(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


def _named(root: Path) -> Path:
    """The same folder by a path that ends in its name.

    Raises:
        ConfigurationError: If it has none.
    """
    named = root if root.name not in ("", "..") else root.resolve()
    if not named.name:
        raise ConfigurationError(
            f"run_dir: seeds get folders beside {root} that begin with its name, and it has none; "
            "name another folder"
        )
    return named


def _last_words(complaints: IO[bytes] | None) -> str:
    """The end of what a run wrote to its standard error, which is closed."""
    if complaints is None:
        return ""
    with complaints:
        complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
        return complaints.read().decode(errors="replace").strip()


def _summary_of(folder: Path) -> Mapping[str, Any]:
    try:
        return read_object(folder / "summary.json")
    except (OSError, ValueError):
        return {}


def _without(words: Sequence[str], *flags: str) -> list[str]:
    """Words without some flags and their values."""
    kept = []
    left = list(words)
    while left:
        word = left.pop(0)
        flag, equals, _ = word.partition("=")
        if flag.replace("_", "-") not in flags:
            kept.append(word)
        elif not equals and left:
            left.pop(0)
    return kept
