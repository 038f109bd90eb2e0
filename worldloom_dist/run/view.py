"""What a person wants to know of a run, in one small object: the live console, ``status`` and
``plot`` read a run through it.

A running process fills a :class:`View` from its own numbers, and :func:`read_view` fills it from a
run folder. Imports little but the standard library, so that ``status`` answers at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import checked, normalize
from worldloom.core.json_text import parse_json, read_object
from worldloom.core.plain_files import open_plain, plain_lines, read_tail
from worldloom_dist.metrics.names import loss_of

__all__ = [
    "HELD",
    "View",
    "duration",
    "facts",
    "is_held",
    "is_locked",
    "last_record",
    "read_records",
    "read_view",
    "reading_run",
    "shown_losses",
    "status_of",
    "title_of",
]

HELD: dict[str, tuple[int, int]] = {}
"""Locks that this process holds: process and descriptor, by where they lie."""

SILENT_S = 15.0
TAIL_BYTES = 256 * 1024
MOST_LOSSES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A run at one moment.

    Attributes:
        run_id, folder, title: Which run; ``title`` says agent, env and seed.
        status: As in ``summary.json``, or ``died`` when it says running and no process runs it.
        error: Why it failed.
        env_steps, target: Env steps so far, and those asked for.
        train_steps, target_updates: Updates so far; those asked for where there is no env, else 0.
        losses: Newest ones by name.
        env_steps_per_s, updates_per_s: Over the last seconds while it runs, over the whole run
            afterwards.
        train_return: Mean of recent training episodes; None before the first.
        evaluation: The last one, as in ``summary.json``.
        train_ratio, target_ratio: Trained positions per agent step.
        lag, lag_p99: Policy lag in updates; None before it was measured.
        stored, capacity: Rows in replay, and rows that fit.
        restarts: By kind.
        phase: What it is at, or what binds it.
        wall_time_s: Of the whole run.
        eta_s: Seconds to go, of a run that goes on; None where that is not known yet.
    """

    run_id: str = ""
    folder: str = ""
    title: str = ""
    status: str = "running"
    error: str | None = None
    env_steps: int = 0
    target: int = 0
    train_steps: int = 0
    target_updates: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    env_steps_per_s: float = 0.0
    updates_per_s: float = 0.0
    train_return: float | None = None
    evaluation: Mapping[str, Any] | None = None
    train_ratio: float = 0.0
    target_ratio: float = 0.0
    lag: float | None = None
    lag_p99: float | None = None
    stored: int = 0
    capacity: int = 0
    restarts: Mapping[str, int] = field(default_factory=dict)
    phase: str = ""
    wall_time_s: float = 0.0
    eta_s: float | None = None

    @property
    def progress(self) -> float:
        """Share of the env steps (without an env: updates) asked for, 0 to 1."""
        if self.is_offline:
            return min(1.0, self.train_steps / self.target_updates)
        return min(1.0, self.env_steps / self.target) if self.target else 0.0

    @property
    def is_offline(self) -> bool:
        """True when there is no env, so that updates are what is counted."""
        return self.target_updates > 0

    @property
    def counted(self) -> str:
        """How far it is, in words."""
        if self.is_offline:
            return f"{self.train_steps:,} of {self.target_updates:,} updates"
        return f"{self.env_steps:,} of {self.target:,} env steps"


def title_of(agent: str, env: str, load: str | None, seed: int) -> str:
    """Agent, env and seed of a run in words; where there is no env, the data it trains on."""
    return f"{agent} on {env if env != 'none' else f'{load}, offline'}, seed {seed}"


def facts(view: View) -> list[tuple[str, str]]:
    """The view as label and text, in the order in which people ask."""
    train = "-" if view.train_return is None else f"{view.train_return:.1f}"
    if view.is_offline:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in view.losses.items())
        return [
            ("losses", shown or "-"),
            ("updates/s", f"{view.updates_per_s:,.1f}"),
            ("replay", f"{view.stored:,} rows"),
            ("now", view.phase or "-"),
        ]
    found = [("return", f"{train} (training)")]
    if view.evaluation:
        mean, spread = (view.evaluation.get(name) for name in ("return_mean", "return_std"))
        shown = (
            "not finite"
            if mean is None
            else f"{mean:.1f}" + ("" if spread is None else f" ± {spread:.1f}")
        )
        found.append(("eval", f"{shown} at {view.evaluation.get('env_steps', 0):,}"))
        if view.evaluation.get("score") is not None:
            count = len(view.evaluation.get("tasks") or ())
            found.append(("score", f"{view.evaluation['score']:.1f} of 100, {count} tasks"))
    else:
        found.append(("eval", "-"))
    found += [
        ("env steps/s", f"{view.env_steps_per_s:,.0f}"),
        ("updates/s", f"{view.updates_per_s:,.1f}"),
    ]
    ratio = f"{view.train_ratio:.4g}" if view.train_ratio > 0 else "-"
    found.append(("train ratio", f"{ratio} (target {view.target_ratio:.4g})"))
    lag = (
        "-"
        if view.lag is None
        else f"{view.lag:.1f} updates"
        + ("" if view.lag_p99 is None else f", p99 {view.lag_p99:.0f}")
    )
    found.append(("policy lag", lag))
    share = f" ({view.stored / view.capacity:.0%})" if view.capacity else ""
    found.append(("replay", f"{view.stored:,} rows{share}"))
    failures = ", ".join(f"{kind} {count}" for kind, count in view.restarts.items() if count)
    found.append(("restarts", failures or "none"))
    found += [("updates", f"{view.train_steps:,}"), ("now", view.phase or "-")]
    return found


def shown_losses(values: Mapping[str, Any]) -> dict[str, float]:
    """The losses that fit on a line, of a record: the total first and beside it the held-out one,
    then the first ones by name.
    """
    found: dict[str, float] = {
        loss: value
        for key, value in sorted(values.items())
        if (loss := loss_of(key)) is not None and isinstance(value, int | float)
    }
    first: dict[str, float] = {
        name: found[name] for name in ("total", "held_out/total") if name in found
    }
    return dict(list({**first, **found}.items())[:MOST_LOSSES])


def duration(seconds: float) -> str:
    """``75`` -> ``1:15``, ``3700`` -> ``1:01:40``, two days -> ``2d 0:00:00``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02d}:{rest:02d}" if hours or days else f"{minutes}:{rest:02d}"
    return f"{days}d {clock}" if days else clock


@contextlib.contextmanager
def reading_run(folder: Path) -> Iterator[None]:
    """Say in one sentence what is wrong with a folder that is read inside.

    Raises:
        ConfigurationError: If it holds no run, or one that cannot be read.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"{folder} holds no run (no config.json); give a folder that a run writes to"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{folder} cannot be read: {error}; repair its files, or give another folder"
        ) from error


def read_view(folder: Path, *, is_live: bool = False) -> View:
    """The newest view of a run, running or finished, from its folder.

    Args:
        folder: Of the run.
        is_live: True where the caller knows that the run's process lives.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its files are damaged.
    """
    config = read_object(folder / "config.json")
    summary = {}
    if (folder / "summary.json").exists():
        summary = read_object(folder / "summary.json")
    run = config["run"]
    last = last_record(folder / "metrics.jsonl")
    status = status_of(folder, summary, is_live=is_live)
    is_running = status in ("running", "starting")
    rates = last if is_running and last else summary.get("throughput", {})
    lag = summary.get("staleness", {})
    view = View(
        run_id=config.get("run_id", ""),
        folder=str(folder),
        title=title_of(run["agent"], run["env"]["env"], run["replay"].get("load"), run["seed"]),
        status=status,
        error=summary.get("error"),
        env_steps=summary.get("env_steps", 0),
        target=run["env_steps"],
        train_steps=summary.get("train_steps", 0),
        target_updates=run.get("train_steps", 0) if run["env"]["env"] == "none" else 0,
        losses=shown_losses(last),
        env_steps_per_s=rates.get("env_steps_per_s", 0.0),
        updates_per_s=rates.get("updates_per_s", 0.0),
        train_return=summary.get("train_return_mean"),
        evaluation=summary.get("eval"),
        train_ratio=summary.get("train_ratio_actual", 0.0),
        target_ratio=last.get("replay_ratio_target", 0.0),
        lag=lag.get("mean"),
        lag_p99=lag.get("p99"),
        stored=summary.get("rows", {}).get("stored", 0),
        capacity=run["replay"]["capacity_steps"],
        restarts=summary.get("restarts", {}),
        phase=summary.get("phase", summary.get("bottleneck", "")) if is_running else "",
        wall_time_s=summary.get("wall_time_s", 0.0),
        eta_s=summary.get("eta_s") if status == "running" else None,
    )
    problems = normalize(view) or _evaluation_problems(view.evaluation or {})
    if problems:
        raise ValueError("; ".join(problems))
    return view


def status_of(folder: Path, summary: Mapping[str, Any], *, is_live: bool = False) -> str:
    """As in the summary, or ``died`` when it says running and no process runs it.

    Args:
        folder: Of the run.
        summary: Its ``summary.json``, empty before the first.
        is_live: True where the caller knows that the run's process lives.
    """
    status: str = checked("status", summary.get("status", "starting"), str)
    is_over = status not in ("running", "starting")
    return status if is_over or is_live or _is_running(folder) else "died"


def _evaluation_problems(evaluation: Mapping[str, Any]) -> list[str]:
    """What of an evaluation is not what :func:`facts` shows."""
    kinds = {
        "return_mean": float | None,
        "return_std": float | None,
        "score": float | None,
        "env_steps": int,
    }
    found = []
    for name, kind in kinds.items():
        try:
            checked(f"evaluation.{name}", evaluation.get(name, 0), kind)
        except ConfigurationError as error:
            found.append(str(error))
    return found


def read_records(path: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a line that is still being written, or was cut short, is
    left out.

    Args:
        path: Of the file; there may be none.
        kind: Only those of this kind: ``train`` or ``eval``. Other lines are not parsed, which
            takes most of the time of a long file.
    """
    if not path.exists():
        return
    mark = b"" if kind is None else f'"{kind}"'.encode()
    for line in plain_lines(path):
        if mark not in line:
            continue
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and kind in (None, record.get("kind")):
            yield record


def last_record(path: Path) -> dict[str, Any]:
    """The last whole training record, looked for near the end of the file only: it may be long."""
    if not path.exists():
        return {}
    for line in reversed(read_tail(path, TAIL_BYTES).splitlines()):
        try:
            record: Any = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("kind") == "train":
            return record
    return {}


def _is_running(folder: Path) -> bool:
    """True when a launcher holds the folder's lock, or (it may be on another machine) wrote a
    moment ago.
    """
    if is_locked(folder / "lock"):
        return True
    newest = max(
        (
            p.stat().st_mtime
            for name in ("summary.json", "console.log")
            if (p := folder / name).exists()
        ),
        default=0.0,
    )
    return abs(time.time() - newest) < SILENT_S  # later than now: the clock was set back


def is_held(lock: Path) -> bool:
    """Whether this very process holds a run's lock. To open and close the file would drop it: the
    system's locks are a process's, and go with the first of its descriptors that is closed.
    """
    return HELD.get(os.path.realpath(lock), (0, 0))[0] == os.getpid()


def is_locked(path: Path) -> bool:
    """Ask whether a launcher on this machine holds a run's lock, without taking it (Linux;
    elsewhere no one can be asked).
    """
    if is_held(path):
        return True
    if sys.platform != "linux" or not path.exists():
        return False
    question = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with open_plain(path) as file:
        try:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
        except OSError:
            return False
    return int(struct.unpack("hhqqi4x", answer)[0]) != fcntl.F_UNLCK
