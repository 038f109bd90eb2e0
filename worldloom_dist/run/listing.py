"""The runs below a folder: finds them, and reads of each what tells it from the others. Reads only.

A folder is one of a run when it holds what only runs write. Where it lacks the settings of a run,
the files may be another program's: it is listed, and what lies below it is looked at, too. Nothing
is left out for being damaged, old or unfinished: such a run is listed with what is wrong and with
what can still be read of it.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import checked
from worldloom.core.json_text import read_object
from worldloom.core.plain_files import read_plain
from worldloom_dist.run.curves import EVALUATION, History
from worldloom_dist.run.versions import commit_of
from worldloom_dist.run.view import last_record, read_records, read_view

__all__ = ["DAMAGED", "RUNS", "STATUSES", "RunEntry", "find_runs", "newest_run", "read_entry"]

RUNS = Path("runs")
"""Where runs go that are not told where."""
DAMAGED = "damaged"
STATUSES = ("completed", "running", "starting", "stopped", "failed", "died", DAMAGED)
"""What ``summary.json`` or the lock says of a run, and what is said of one that cannot be read."""
OF_RUNS = ("summary.json", "metrics.jsonl", "command.txt", "incarnations.json")
"""Files that mark a run's folder where ``config.json`` does not; a saved model has one, too."""
OWN = frozenset("checkpoints replay videos nonfinite ray tensorboard wandb trackio mlflow".split())
"""Folders that a run makes inside its own."""
LAST_S = 253_370_764_800.0
"""The year 9999, beyond which no date can be written."""
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """One run of the table; None and empty texts stand for what is not known.

    Attributes:
        name: Path of its folder below the folder that was listed.
        folder: Its folder.
        run_id: Of the run.
        env, agent, seed: What it trains, where, and with which seed.
        status: One of :data:`STATUSES`.
        env_steps, train_steps: So far.
        target_steps: Env steps asked for; updates where there is no env.
        return_last: Mean return of the last evaluation.
        return_best: Highest mean return of an evaluation.
        return_train: Mean return of recent training episodes.
        hours: For which it ran, pauses left out.
        commit: Git commit of the folder in which it was started.
        started, updated: When it was first started and when it last wrote, unix time in seconds.
        problem: What is wrong with it: why it failed, or what of it cannot be read.
    """

    name: str
    folder: str
    run_id: str = ""
    env: str = ""
    agent: str = ""
    seed: int | None = None
    status: str = DAMAGED
    env_steps: int | None = None
    train_steps: int | None = None
    target_steps: int | None = None
    return_last: float | None = None
    return_best: float | None = None
    return_train: float | None = None
    hours: float | None = None
    commit: str = ""
    started: float | None = None
    updated: float | None = None
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; times as text, ISO 8601 in UTC."""
        times = {
            name: None if stamp is None else _iso(stamp)
            for name, stamp in (("started", self.started), ("updated", self.updated))
        }
        return {**asdict(self), **times}


def _iso(stamp: float) -> str:
    return datetime.fromtimestamp(stamp, UTC).isoformat(timespec="seconds")


def find_runs(folder: Path, unreadable: list[str] | None = None) -> Iterator[Path]:
    """The run folders below a folder, or the folder itself if it is one; each once, also where
    links lead to it. What a run has inside is not searched, and neither are hidden folders.

    Args:
        folder: Where to look.
        unreadable: Gets a sentence for each folder or link that cannot be looked at.
    """
    problems = [] if unreadable is None else unreadable
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            real = here.resolve()
            if real in seen:
                continue
            seen.add(real)
            is_one = is_run(here)
            if is_one:
                yield here
                if _has_settings(here):
                    continue
            inside = [path for path in here.iterdir() if not path.name.startswith(".")]
        except OSError as error:
            problems.append(f"{here} cannot be listed ({error.strerror})")
            continue
        shown = _folders(inside, problems)
        if is_one:
            shown = [path for path in shown if path.name not in OWN]
        # a link comes after what it may lead to
        waiting += sorted(shown, key=lambda path: (path.is_symlink(), path.name), reverse=True)


def _folders(paths: list[Path], problems: list[str]) -> list[Path]:
    """Those that are folders; one of which that cannot be told costs a sentence and no other."""
    found = []
    for path in paths:
        try:
            if path.is_dir():
                found.append(path)
        except OSError as error:
            problems.append(f"{path} cannot be looked at ({error.strerror})")
    return found


def newest_run(folder: Path = RUNS) -> Path:
    """The run below a folder that wrote last, which is said on stderr: what a command looks at
    when no run is named.

    Raises:
        ConfigurationError: If there is none.
    """
    if not folder.is_dir():
        raise ConfigurationError(
            f"run_dir: no run is named, and there is no folder {folder}/ here; name that of a run"
        )
    entries = [read_entry(path, path.name) for path in find_runs(folder)]
    if not entries:
        raise ConfigurationError(
            f"run_dir: no run is named, and there is none below {folder}/; name the folder of a run"
        )
    whole = [entry for entry in entries if entry.status != DAMAGED]
    newest = max(whole or entries, key=lambda entry: entry.updated or 0.0)
    sys.stderr.write(f"the newest run: {newest.folder}\n")
    return Path(newest.folder)


def is_run(folder: Path) -> bool:
    """True for a folder that a run has written to."""
    return any((folder / name).is_file() for name in OF_RUNS) or _has_settings(folder)


def _has_settings(folder: Path) -> bool:
    """True where ``config.json`` is that of a run, or cannot be read."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    try:
        return "run" in read_object(config)
    except (OSError, ValueError):
        return True  # whatever it was, someone should look


def read_entry(folder: Path, name: str) -> RunEntry:
    """A run's line of the table. Raises nothing: what is wrong is in the line.

    Args:
        folder: Of the run.
        name: How the table calls it.
    """
    known: dict[str, Any] = {"name": name, "folder": str(folder)}
    problems = []
    for read in (_of_config, _of_files, _of_evaluations, _of_view):
        try:
            known |= read(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(_sentence(error))
    if problems:
        known |= {"status": DAMAGED, "problem": "; ".join(dict.fromkeys(problems))}
    return RunEntry(**known)


def _of_view(folder: Path) -> dict[str, Any]:
    _object(folder / "config.json")
    if (folder / "summary.json").exists():
        _object(folder / "summary.json")
    view = read_view(folder)
    return {
        "status": view.status,
        "env_steps": view.env_steps,
        "train_steps": view.train_steps,
        "target_steps": view.target_updates if view.is_offline else view.target,
        "return_last": (view.evaluation or {}).get("return_mean"),
        "return_train": view.train_return,
        "hours": view.wall_time_s / 3600,
        "problem": view.error or "",
    }


def _of_config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says, of any version of it, and damaged elsewhere or not."""
    config = _object(folder / "config.json")
    run = config["run"]
    found = {
        "run_id": config.get("run_id", ""),
        "env": run["env"]["env"],
        "agent": run["agent"],
        "seed": run["seed"],
    }
    for key, value in found.items():
        checked(f"config.json: {key}", value, int if key == "seed" else str)
    return found


def _of_evaluations(folder: Path) -> dict[str, Any]:
    records = read_records(folder / "metrics.jsonl", "eval")
    history = History().add_all(records)
    if not history.evaluations:
        return {}
    values = history.curve(EVALUATION).values
    return {"return_best": float(values.max()) if len(values) else None}


def _of_files(folder: Path) -> dict[str, Any]:
    """When it ran, and from which commit."""
    return {
        "commit": commit_of(folder),
        "started": _started(folder),
        "updated": _updated(folder),
    }


def _started(folder: Path) -> float | None:
    path = folder / "command.txt"
    found = STAMP.match(read_plain(path).decode(errors="replace")) if path.exists() else None
    try:
        return time.mktime(time.strptime(found[0], "%Y-%m-%d %H:%M:%S")) if found else None
    except (ValueError, OverflowError):  # no such day
        return None


def _updated(folder: Path) -> float | None:
    """By the newest record, whose time a copy of the folder keeps; else by the files' own times."""
    stamp = last_record(folder / "metrics.jsonl").get("time")
    if isinstance(stamp, int | float) and 0 <= stamp < LAST_S:
        return float(stamp)
    files = [folder / name for name in (*OF_RUNS, "config.json")]
    return max((path.stat().st_mtime for path in files if path.exists()), default=None)


def _object(path: Path) -> dict[str, Any]:
    """A JSON file of the run; an error names it."""
    try:
        return read_object(path)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        name = Path(error.filename).name
        if isinstance(error, FileNotFoundError):
            return f"there is no {name}"
        return f"{name} cannot be read ({error.strerror})"
    if isinstance(error, KeyError):
        return f"config.json has no {error.args[0]!r}"
    if isinstance(error, TypeError | AttributeError):
        return f"its files are of another kind than a run writes ({error})"
    return str(error)
