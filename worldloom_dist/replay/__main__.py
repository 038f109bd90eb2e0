"""``python -m worldloom_dist.replay import|export|verify RUN_DIR``: rows into and out of a run
folder, and whether it is whole.

Exit status: 0 = done, and whole; 1 = the run folder is damaged, or the disk is full; 2 = wrong
input, files included.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    MissingDependencyError,
    StateError,
    WorldLoomError,
)
from worldloom.core.json_text import to_json
from worldloom.core.program import called, interruptible
from worldloom.core.sequence import Rows
from worldloom.envs.tasks import check_one_task
from worldloom_dist.ports import RowCounters
from worldloom_dist.replay.formats.episode_files import SOURCES, whole_name, write_episode_file
from worldloom_dist.replay.history import EpisodeHistory
from worldloom_dist.replay.imports import ImportList, ImportReport, check_file, load_share
from worldloom_dist.replay.journal import JournalHeldError
from worldloom_dist.replay.verify import verify_run
from worldloom_dist.run.builders import build_shard
from worldloom_dist.run.cli import read_config
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.plan import Plan, resolve
from worldloom_dist.run.view import is_locked

__all__ = ["main"]

USAGE_ERRORS = (ConfigurationError, MissingDependencyError)


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=called("data"),
        description="Rows into and out of a run folder.",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in (
        ("import", "store the episodes of a file"),
        ("export", "write whole episodes to a file"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("run_dir", type=Path, help="a run folder, also of a run that goes on")
        action.add_argument("file", help=SOURCES)
    text = "check every checksum and counter of a run folder"
    actions.add_parser("verify", help=text, description=text).add_argument(
        "run_dir", type=Path, help="a run folder"
    )
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.action == "import":
            return import_file(options.run_dir, options.file)
        if options.action == "export":
            return export_file(options.run_dir, options.file)
        return verify(options.run_dir)
    except WorldLoomError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, USAGE_ERRORS) else 1
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stderr.write(
            f"error: {options.run_dir}: {error}; free space, or give the rights to "
            "read and write there\n"
        )
        return 1


def import_file(run_dir: Path, source: str) -> int:
    """Add a file to a run: a stopped one stores it now, a live one within a second, a lock-step one
    when it goes on.
    """
    config = read_config(run_dir)  # neither its env nor the files that it began with are needed
    config = dataclasses.replace(config, replay=dataclasses.replace(config.replay, load=None))
    plan = resolve(config, recorded=RunFolder(run_dir).env_spec())
    check_one_task(plan.env_spec, "import")
    try:
        check_file(source, plan.columns, plan.env_spec)
    except CheckpointError as error:
        raise ConfigurationError(str(error)) from error
    source = whole_name(source)
    if plan.config.replay.durability == "none":
        raise ConfigurationError(
            f"{run_dir} keeps its rows in memory only; start it with --replay.load {source} instead"
        )
    ImportList(run_dir).add([source])
    if plan.config.runtime == "local":
        sys.stdout.write(
            f"{source} is stored when the run goes on: python -m "
            f"worldloom_dist.launch --resume {shlex.quote(str(run_dir))}\n"
        )
        return 0
    try:
        report = _store_now(plan, run_dir, source)
    except JournalHeldError:
        sys.stdout.write(
            f"{run_dir} is running: its shards store {source} within seconds; "
            "console.log says when\n"
            if is_locked(run_dir / "lock")
            else f"another import is at work in {run_dir}: {source} is stored when it is imported "
            "again after that, or when the run goes on\n"
        )
        return 0
    except StateError as error:
        raise StateError(
            f"{error}; then import {source} again: what is stored by now is not stored twice"
        ) from error
    sys.stdout.write("\n".join(report.sentences) + "\n")
    return 0


def export_file(run_dir: Path, target: str) -> int:
    """Write every whole episode that the journals hold."""
    env = RunFolder(run_dir).env_spec()
    if env is None:
        raise ConfigurationError(
            f"{run_dir} holds no run (no config.json with an env); give the folder of a run"
        )
    history = EpisodeHistory(run_dir / "replay")
    counts = [0, 0]

    def episodes() -> Iterator[Rows]:
        """Whole episodes in the columns of the env, counted on the way."""
        for rows in history.episodes():
            if len(rows["is_first"]) > 1:
                counts[0], counts[1] = counts[0] + 1, counts[1] + len(rows["is_first"])
                yield {name: rows[name] for name in env.columns()}

    notes = write_episode_file(target, env, episodes())
    sys.stdout.write(f"wrote {counts[1]} rows of {counts[0]} episodes to {target}\n")
    sys.stdout.write("".join(f"{note}\n" for note in notes))
    if history.fragment_rows:
        sys.stdout.write(
            f"{history.fragment_rows} rows were left out, because the beginning of "
            "their episode was evicted\n"
        )
    return 0


def verify(run_dir: Path) -> int:
    """Say what the folder holds; exit status 1 when something is wrong."""
    if not run_dir.is_dir():
        raise ConfigurationError(f"{run_dir} is no folder; give the folder of a run")
    if not any((run_dir / name).exists() for name in ("config.json", "replay")):
        raise ConfigurationError(
            f"{run_dir} holds no run (no config.json, no replay/); give the folder of a run"
        )
    findings = verify_run(run_dir)
    sys.stdout.write(to_json(findings.to_dict(), indent=2) + "\n")
    sys.stdout.write(f"{run_dir} is {'damaged: see problems' if findings.problems else 'whole'}\n")
    return 1 if findings.problems else 0


def _store_now(plan: Plan, run_dir: Path, source: str) -> ImportReport:
    """Store a file in the journals of a run that does not run."""
    num_shards = plan.config.replay.shards
    folder = RunFolder(run_dir)
    parts = []
    with contextlib.ExitStack() as stack:
        shards = []
        for index in range(num_shards):
            shards.append(build_shard(plan, index, folder.replay))
            stack.callback(shards[-1].close)
        # or the rows of the file would stand for those that the disk has lost
        known = folder.read_counters()
        for shard in shards:
            if str(shard.index) in known:
                shard.mark_lost(RowCounters(**known[str(shard.index)]))
        parts = [load_share(shard, source, num_shards) for shard in shards]
    return ImportReport.joined(parts)


if __name__ == "__main__":
    sys.exit(main())
