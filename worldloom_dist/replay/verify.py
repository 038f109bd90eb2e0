"""Is a run folder whole? Every checksum and every counter of its journals, snapshots, checkpoints
and summary; nothing is changed.

Works beside a live run too: what is being written at that moment is a torn tail, which is no damage
because it was never acknowledged.

``summary.json`` says how the run ended, so it is compared with the journals only when the run has
ended. Rows that were imported into it afterwards stand at the end of the journals, and the summary
may know of them or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import CheckpointError, ConfigurationError, WorldLoomError
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_plain
from worldloom.core.specs import EnvSpec
from worldloom_dist.replay.history import shard_folders
from worldloom_dist.replay.imports import ImportList
from worldloom_dist.replay.verify_shard import ShardFindings, verify_shard
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.view import is_locked

__all__ = ["RunFindings", "verify_run"]

BOOKS = ("inserted", "stored", "evicted", "lost_acked", "duplicate")
ENDED = ("completed", "stopped")
"""What a summary says of a run that wrote its last rows before it."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(slots=True)
class RunFindings:
    """What a run folder holds: per shard, the checkpoints that were read, and every problem."""

    shards: dict[str, ShardFindings] = field(default_factory=dict)
    checkpoints: int = 0
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = (
            "chunks",
            "rows",
            "inserted",
            "agent_steps",
            "duplicate",
            "lost",
            "carry_resets",
            "torn_bytes",
        )
        shards = {
            name: {key: getattr(found, key) for key in names} for name, found in self.shards.items()
        }
        return {"shards": shards, "checkpoints": self.checkpoints, "problems": self.problems}


@dataclass(slots=True)
class _Summary:
    """What ``summary.json`` says, read before the journals are."""

    path: Path
    status: str
    rows: dict[str, int]
    counters: dict[str, int]


def verify_run(folder: Path) -> RunFindings:
    """Check a whole run folder.

    Raises:
        CheckpointError: If it holds no journals.
    """
    findings = RunFindings()
    folders = shard_folders(folder / "replay")
    problems = findings.problems
    is_live = is_locked(folder / "lock")
    config, env = _read_config(folder / "config.json", problems)
    summary = _read_summary(folder / "summary.json", problems, is_live=is_live)
    known = _read_counters(RunFolder(folder), problems)
    for shard in folders:
        findings.shards[shard.name] = verify_shard(shard)
        problems += findings.shards[shard.name].problems
    problems += _missing_ends(folder, known, findings.shards)
    facts = list(_checkpoints(folder / "checkpoints", findings))
    problems += _import_problems(folder)
    is_live |= is_locked(folder / "lock")
    if config is not None and env is not None:
        problems += _layout_problems(folder, config, env, findings.shards, is_live=is_live)
    if summary is not None:
        problems += _sum_problems(summary, env)
        if (
            summary.status in ENDED
            and not is_live
            and not any(found.problems for found in findings.shards.values())
        ):
            found = list(findings.shards.values())
            may_have_more = (folder / "imports.json").exists()
            problems += _row_problems(summary, found, config, may_have_more=may_have_more)
            problems += _checkpoint_problems(summary, facts)
    return findings


def _read_config(path: Path, problems: list[str]) -> tuple[RunConfig | None, EnvSpec | None]:
    """The run's settings and the columns of its env."""
    try:
        found = parse_json(read_plain(path))
        return RunConfig.from_dict(found["run"]), EnvSpec.from_dict(found["env"])
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (*UNREADABLE, ConfigurationError) as error:
        problems.append(f"{path} cannot be read ({error})")
    return None, None


def _read_summary(path: Path, problems: list[str], *, is_live: bool) -> _Summary | None:
    try:
        found = parse_json(read_plain(path))
        rows = {name: int(found["rows"][name]) for name in BOOKS}
        counters = {
            name: int(found[name])
            for name in ("env_steps", "agent_steps", "train_steps", "replayed_steps")
        }
        return _Summary(path, str(found["status"]), rows, counters)
    except FileNotFoundError:
        if not is_live:  # a run that begins has none yet
            problems.append(f"{path.name} is missing")
    except UNREADABLE as error:
        problems.append(f"{path} cannot be read ({error})")
    return None


def _read_counters(run: RunFolder, problems: list[str]) -> dict[str, int]:
    """Rows that each shard has had at least, by its name, as the run last knew it; looks at the
    counts of starts, too.
    """
    try:
        run.incarnation("")
        return {
            f"shard-{index}": int(counters["inserted"])
            for index, counters in run.read_counters().items()
        }
    except (*UNREADABLE, ConfigurationError) as error:
        problems.append(f"{run.path}: what it counts cannot be read ({error})")
    return {}


def _missing_ends(
    folder: Path, known: dict[str, int], shards: dict[str, ShardFindings]
) -> Iterator[str]:
    for name, inserted in known.items():
        if name in shards and shards[name].inserted < inserted:
            yield (
                f"{folder / 'replay' / name}: the journal ends at row {shards[name].inserted}, and "
                f"the run knew of {inserted} rows: the end of it is missing"
            )


def _layout_problems(
    folder: Path,
    config: RunConfig,
    env: EnvSpec,
    shards: dict[str, ShardFindings],
    *,
    is_live: bool,
) -> Iterator[str]:
    """Shards that are missing or too many, and columns that are not those of the run's env."""
    wanted = {f"shard-{index}" for index in range(config.replay.shards)}
    if not is_live:  # a run that begins makes them one after the other
        yield from (
            f"{folder / 'replay' / name} is missing" for name in sorted(wanted - set(shards))
        )
    yield from (
        f"{folder / 'replay' / name} is none of the run's {len(wanted)} shards"
        for name in sorted(set(shards) - wanted)
    )
    for name, found in shards.items():
        if found.index is not None and name != f"shard-{found.index}":
            yield f"{folder / 'replay' / name / 'shard.json'}: says that it is shard {found.index}"
        wrong = [
            column
            for column, spec in env.columns().items()
            if found.columns and found.columns.get(column) != spec
        ]
        if wrong:
            yield (
                f"{folder / 'replay' / name / 'shard.json'}: columns {wrong} are not "
                "those of the env in config.json"
            )


def _sum_problems(summary: _Summary, env: EnvSpec | None) -> Iterator[str]:
    """What must add up in every summary, also of a run that goes on."""
    rows = summary.rows
    counters = summary.counters
    if rows["inserted"] != rows["stored"] + rows["evicted"] + rows["lost_acked"]:
        yield (
            f"{summary.path}: inserted {rows['inserted']} is not stored {rows['stored']} "
            f"+ evicted + lost of {rows}"
        )
    if negative := [name for name, value in {**rows, **counters}.items() if value < 0]:
        yield f"{summary.path}: {negative} cannot be negative"
    if env is not None and counters["env_steps"] != counters["agent_steps"] * env.action_repeat:
        yield (
            f"{summary.path}: env_steps {counters['env_steps']} is not agent_steps "
            f"{counters['agent_steps']} * "
            f"action_repeat {env.action_repeat}"
        )


def _row_problems(
    summary: _Summary, shards: list[ShardFindings], config: RunConfig | None, *, may_have_more: bool
) -> Iterator[str]:
    """The summary of a run that ended against its journals; ``may_have_more``: files may have been
    imported since.
    """
    rows = summary.rows
    inserted = sum(found.inserted for found in shards)
    fewest = sum(found.run_rows for found in shards) if may_have_more else inserted
    if not fewest <= rows["inserted"] <= inserted:
        yield f"{summary.path}: says inserted {rows['inserted']}, and the journals say {inserted}"
    counts = {
        "lost_acked": (rows["lost_acked"], sum(found.lost for found in shards)),
        "duplicate": (rows["duplicate"], sum(found.duplicate for found in shards)),
        "agent_steps": (
            summary.counters["agent_steps"],
            sum(found.agent_steps for found in shards),
        ),
    }
    if config is not None and rows["inserted"] == inserted:
        kept = sum(
            found.newest(config.replay.capacity_steps // config.replay.shards) for found in shards
        )
        is_exact = config.replay.capacity_gb is None  # a bound in bytes evicts earlier
        counts["stored"] = (rows["stored"], kept if is_exact else min(kept, rows["stored"]))
    for name, (said, mine) in counts.items():
        if said != mine:
            yield f"{summary.path}: says {name} {said}, and the journals say {mine}"


def _checkpoint_problems(
    summary: _Summary, facts: list[tuple[str, dict[str, Any]]]
) -> Iterator[str]:
    """A run that ended wrote its last checkpoint just before; checkpoints elsewhere (behind a URL)
    are not looked at.
    """
    name, newest = max(facts, default=("", {}), key=lambda entry: entry[0])
    for counter in ("train_steps", "replayed_steps"):
        said = summary.counters[counter]
        mine = newest.get(counter)
        if mine is not None and said != mine:
            yield (
                f"{summary.path}: says {counter} {said}, and the newest checkpoint "
                f"({name}) says {mine}"
            )


def _import_problems(folder: Path) -> Iterator[str]:
    try:
        ImportList(folder).read()
    except CheckpointError as error:
        yield str(error)


def _checkpoints(folder: Path, findings: RunFindings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and facts of every whole checkpoint but the copy of the best; what is wrong with the
    others becomes a problem.
    """
    from worldloom.training.manifests import read_manifest
    from worldloom.training.tree_files import load_tree

    for path in sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.endswith(".tmp")):
        try:
            load_tree(path)
            findings.checkpoints += 1
            if path.name.startswith("step-"):
                yield path.name, dict(read_manifest(path).get("facts", {}))
        except WorldLoomError as error:
            if path.exists():  # otherwise the run replaced it by newer ones
                findings.problems.append(str(error))
