"""The run folder: what a run writes, where, and in which words.

    config.json  command.txt  versions.txt  metrics.jsonl  console.log  summary.json  checkpoints/
    replay/  videos/  incarnations.json  lock

``summary.json`` is replaced atomically every few seconds and at the end, so a reader always finds a
whole one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldloom.algorithms.registry import outside_module
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.files import write_json, write_text
from worldloom.core.json_text import read_object, to_json
from worldloom.core.specs import EnvSpec
from worldloom.envs.consent import is_own, names_code, sign_run
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.versions import versions
from worldloom_dist.run.view import HELD, is_held

logger = logging.getLogger(__name__)

__all__ = ["RunFolder"]

COUNTERS_FILE = "replay/books.json"
EAGER_FILE = "eager.json"
LOCK = "lock"
LARGEST = 2**24
"""Starts of one role that no run reaches."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run and the files that describe it."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Checkpoint folders."""
        return self.path / "checkpoints"

    @property
    def replay(self) -> Path:
        """Replay journals, one folder per shard."""
        return self.path / "replay"

    @property
    def videos(self) -> Path:
        """Videos of evaluations, and pictures of predictions (``index.jsonl`` says which is which);
        they reach the run's sinks.
        """
        return self.path / "videos"

    @property
    def summary_path(self) -> Path:
        """``summary.json``."""
        return self.path / "summary.json"

    @property
    def has_records(self) -> bool:
        """True once the run has recorded a number: there is something to look at."""
        return (self.path / "metrics.jsonl").is_file()

    def hold(self) -> None:
        """Make the folder, and hold it for the life of this process.

        Raises:
            ConfigurationError: If another launcher uses the folder, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            raise ConfigurationError(
                f"run_dir: {self.path} cannot be written ({error}); name another folder"
            ) from error

    def open(
        self,
        config: RunConfig,
        env: Mapping[str, Any],
        agent: Mapping[str, Any],
        words: Sequence[str] = (),
        started_in: Path = Path(),
    ) -> str:
        """A new run is described in the folder, and one that goes on keeps its id. The folder is
        held before: see :meth:`hold`.

        Of a run that goes on nothing is changed here: see :meth:`describe`, also for the arguments.

        Returns:
            The run's id.

        Raises:
            ConfigurationError: If it holds a run that cannot be read.
        """
        known = self.read_json("config.json").get("run_id")
        return str(known) if known else self.describe(config, env, agent, words, started_in)

    def describe(
        self,
        config: RunConfig,
        env: Mapping[str, Any],
        agent: Mapping[str, Any],
        words: Sequence[str] = (),
        started_in: Path = Path(),
    ) -> str:
        """Write the settings, the command line and the versions; the run keeps its id if it has
        one.

        Of a run that goes on with other settings this is done when it is known to work with them.

        Args:
            config: Its settings.
            env: What its env gives and takes.
            agent: Settings of its agent.
            words: The flags that it was started with.
            started_in: The working directory then; its git commit goes beside the versions.

        Returns:
            The run's id.
        """
        known = self.read_json("config.json")
        is_mine = self._is_mine(known)
        # Ray and the sinks take no name that is no UTF-8
        name = "".join(char if char.isprintable() else "-" for char in self.path.name)
        run_id: str = known.get("run_id") or f"{name}-{uuid.uuid4().hex[:6]}"
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with (self.path / "command.txt").open("ab") as file:
            python = Path(sys.executable).name
            line = f"{stamp}  {shlex.join([python, '-m', 'worldloom_dist.launch', *words])}\n"
            # names of files may be no UTF-8
            file.write(line.encode("utf-8", "surrogateescape"))
        write_text(self.path / "versions.txt", versions(started_in))
        facts = {"run_id": run_id, "run": config.to_dict(), "env": env, "agent": agent}
        write_json(self.path / "config.json", facts)
        if is_mine:
            sign_run(self.path, config.env.played, outside_module(config.agent))
        return run_id

    def _is_mine(self, known: Mapping[str, Any]) -> bool:
        """True of a run that this user made, or that names no code of others.

        Args:
            known: Its ``config.json``; empty for a new run.
        """
        if not known.get("run"):
            return not known
        before = RunConfig.from_dict(known["run"])
        named = (before.env.played, outside_module(before.agent))
        return not names_code(*named) or is_own(self.path, *named)

    def release(self) -> None:
        """Let go of a folder that this process holds."""
        _, file = HELD.pop(os.path.realpath(self.path / LOCK), (0, None))
        if file is not None:
            os.close(file)

    def _lock(self) -> None:
        """Hold the folder until :meth:`release`, or for the life of this process: the file stays
        open, and the lock goes with it. Nothing happens where this process holds it already.
        """
        if is_held(self.path / LOCK):
            return
        file = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise ConfigurationError(
                f"run_dir: another launcher uses {self.path}; wait for it, or name another folder"
            ) from error
        HELD[os.path.realpath(self.path / LOCK)] = (os.getpid(), file)

    def next_incarnation(self, role: str) -> int:
        """How often ``role`` was started in the run (1, 2, ...); on the disk before it is used, so
        it never repeats.
        """
        known = self._incarnations()
        value = known.get(role, 0) + 1
        self.write_incarnations({**known, role: value})
        return value

    def incarnation(self, role: str) -> int:
        """How often ``role`` was started in the run so far."""
        return self._incarnations().get(role, 0)

    def count_on_from(self, found: Mapping[str, int]) -> None:
        """Let :meth:`next_incarnation` go on above what the run's rows say, where
        ``incarnations.json`` was lost or is an old copy.

        Args:
            found: Per role how often it was started at least.
        """
        known = self._incarnations()
        behind = {role: number for role, number in found.items() if number > known.get(role, 0)}
        if behind:
            logger.warning(
                "%s was lost or is an old copy: it says %s, and the run's rows say %s; counting "
                "on from there",
                self.path / "incarnations.json",
                {role: known.get(role, 0) for role in behind},
                behind,
            )
            self.write_incarnations({**known, **behind})

    def _incarnations(self) -> dict[str, int]:
        path = self.path / "incarnations.json"
        known = self.read_json(path.name)
        if all(type(count) is int and 0 <= count < LARGEST for count in known.values()):
            return known
        raise ConfigurationError(
            f"{path} cannot be read (a count of starts cannot be among {list(known.values())}); "
            "restore it from a copy"
        )

    def write_incarnations(self, counts: Mapping[str, int]) -> None:
        """On the disk before it is used: a name that comes twice cannot be told from itself."""
        write_json(self.path / "incarnations.json", counts, is_synced=True)

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder, ``{}`` when it does not exist."""
        path = self.path / name
        try:
            return read_object(path) if path.exists() else {}
        except (ValueError, OSError) as error:
            raise ConfigurationError(
                f"{path} cannot be read ({error}); restore it from a copy"
            ) from error

    def env_spec(self) -> EnvSpec | None:
        """What the run's env gives and takes; None where nothing is known of it.

        Raises:
            ConfigurationError: If ``config.json`` is damaged.
        """
        found = self.read_json("config.json").get("env")
        try:
            return EnvSpec.from_dict(found) if found else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"{self.path / 'config.json'} has an env that cannot be read ({error!r}); repair it"
            ) from error

    def check_readable(self) -> None:
        """Refuse to go on where a file is damaged that a resumed run reads.

        Raises:
            ConfigurationError: Names the first one.
        """
        for name in (
            "config.json",
            "summary.json",
            "incarnations.json",
            "imports.json",
            COUNTERS_FILE,
            EAGER_FILE,
        ):
            self.read_json(name)
        self._incarnations()

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; a disk that takes no more costs the line, and a
        warning.
        """
        line = to_json(record) + "\n"
        path = self.path / "metrics.jsonl"
        try:
            with path.open("ab+") as file:
                if file.tell():  # a line that a kill or a full disk has cut short stays alone
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else "\n" + line
                file.write(line.encode())
        except OSError as error:
            logger.warning(
                "a record is lost, because %s cannot be written (%s); free space",
                path,
                error.strerror,
            )

    def read_counters(self) -> dict[str, dict[str, int]]:
        """The counters of every shard as they were last known; empty for a new run."""
        return self.read_json(COUNTERS_FILE)

    def write_counters(self, shards: Mapping[str, Mapping[str, int]]) -> None:
        """Replace them. They lie outside the shards' folders, so that a shard that lost its disk
        can be told what it had.
        """
        self.replay.mkdir(exist_ok=True)
        write_json(self.path / COUNTERS_FILE, shards)

    @property
    def eager_reason(self) -> str:
        """Why updates of the run are not captured any more; empty while they may be."""
        return str(self.read_json(EAGER_FILE).get("updates", ""))

    def note_eager(self, reason: str) -> None:
        """Have every later learner of the run make its updates eagerly, until ``eager.json`` is
        deleted.
        """
        write_json(self.path / EAGER_FILE, {"updates": reason})

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace ``summary.json``."""
        write_json(self.summary_path, summary)

    def try_write_summary(self, summary: Mapping[str, Any]) -> None:
        """:meth:`write_summary` where something else counts more: a failure is a warning."""
        try:
            self.write_summary(summary)
        except OSError as error:
            logger.warning(
                "%s is old, because it cannot be written (%s); free space",
                self.summary_path,
                error.strerror,
            )
