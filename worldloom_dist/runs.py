"""``python -m worldloom_dist.runs [FOLDER...]``: a table of the runs below folders, with filters,
for people, or as JSON or CSV for programs. It changes and deletes nothing.

Exit status: 0 also when no run passes the filters; 2 when there is no run, or a flag is wrong.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import fnmatch
import io
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.json_text import to_json
from worldloom.core.program import called, interruptible
from worldloom_dist.run.listing import DAMAGED, RUNS, STATUSES, RunEntry, find_runs, read_entry
from worldloom_dist.run.text_table import aligned

__all__ = ["list_runs", "main", "words_after"]

HEADS = (
    *("run", "env", "agent", "seed", "steps", "return", "best", "hours"),
    *("status", "commit", "updated"),
)
RIGHT = ("seed", "steps", "return", "best", "hours")
SORTS: Mapping[str, str] = {
    "name": "name",
    "env": "env",
    "agent": "agent",
    "seed": "seed",
    "steps": "env_steps",
    "updates": "train_steps",
    "return": "return_last",
    "best": "return_best",
    "hours": "hours",
    "status": "status",
    "commit": "commit",
    "started": "started",
    "updated": "updated",
}
"""What the table can be sorted by -> a field of :class:`RunEntry`."""
AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([mhdw])")
UNIT_S = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def list_runs(folders: Sequence[Path], unreadable: list[str] | None = None) -> list[RunEntry]:
    """The runs below folders, each once, by name.

    Args:
        folders: Where to look; a run folder is listed itself.
        unreadable: Gets a sentence for each folder that cannot be listed.

    Raises:
        ConfigurationError: If one is no folder.
    """
    found: dict[Path, RunEntry] = {}
    for folder in folders:
        try:
            is_folder = folder.is_dir()
        except OSError as error:
            raise ConfigurationError(
                f"FOLDER: {folder} cannot be looked at ({error.strerror}); name another one"
            ) from error
        if not is_folder:
            raise ConfigurationError(
                f"FOLDER: {folder} is not a folder; name one that your runs are below"
            )
        for path in find_runs(folder, unreadable):
            inside = path.relative_to(folder)
            name = str(path) if len(folders) > 1 else str(inside)
            name = path.resolve().name if name == "." else name
            found.setdefault(path.resolve(), read_entry(path, name))
    return sorted(found.values(), key=lambda entry: _natural(entry.name))


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(words)
    unreadable: list[str] = []
    try:
        since = None if options.since is None else _moment(options.since)
        found = list_runs(options.folder, unreadable)
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for sentence in unreadable:
        sys.stderr.write(f"warning: {sentence}\n")
    if not found:
        where = ", ".join(map(str, options.folder))
        sys.stderr.write(
            f"error: FOLDER: {where} holds no run; name the folder that your runs are below\n"
        )
        return 2
    shown = _sorted(_filtered(found, options, since), options.sort, is_reversed=options.reverse)
    _note_left_out(found, shown, options)
    if options.json:
        sys.stdout.write("".join(to_json(entry.to_dict()) + "\n" for entry in shown))
    elif options.csv:
        sys.stdout.write(_csv(shown))
    elif shown:
        sys.stdout.write(_table(shown) + "\n")
    return 0


def words_after(before: str) -> list[str]:
    """What a word of the command line may be, for completion.

    Args:
        before: The word before it.
    """
    choices = {"--status": list(STATUSES), "--sort": list(SORTS)}
    flags = [flag for action in _parser()._actions for flag in action.option_strings]
    return choices.get(before, [flag for flag in flags if flag.startswith("--")])


def _filtered(
    entries: Sequence[RunEntry], options: argparse.Namespace, since: float | None
) -> list[RunEntry]:
    def passes(entry: RunEntry) -> bool:
        texts = (
            (options.env, entry.env),
            (options.agent, entry.agent),
            (options.commit, entry.commit),
        )
        return (
            all(not wanted or _matches(text, wanted) for wanted, text in texts)
            and (not options.status or entry.status in options.status)
            and (not options.seed or entry.seed in options.seed)
            and (since is None or (entry.updated is not None and entry.updated >= since))
        )

    return [entry for entry in entries if passes(entry)]


def _matches(text: str, patterns: Sequence[str]) -> bool:
    """True when a pattern is in the text, or with ``*``, ``?`` or ``[`` fits the whole of it."""
    return any(
        fnmatch.fnmatch(text.lower(), pattern.lower())
        if re.search(r"[*?[]", pattern)
        else pattern.lower() in text.lower()
        for pattern in patterns
    )


def _note_left_out(
    found: Sequence[RunEntry], shown: Sequence[RunEntry], options: argparse.Namespace
) -> None:
    """Say on stderr which damaged runs no filter can judge, and what there is when none is
    shown.
    """
    kept = {entry.folder for entry in shown}
    doubtful = [
        entry.name
        for entry in found
        if entry.folder not in kept and entry.status == DAMAGED and not (entry.env and entry.agent)
    ]
    if doubtful and not (options.status and DAMAGED not in options.status):
        sys.stderr.write(f"not shown, because too little of them is known: {', '.join(doubtful)}\n")
    if not shown:
        envs = sorted({entry.env for entry in found if entry.env})
        agents = sorted({entry.agent for entry in found if entry.agent})
        sys.stderr.write(
            f"none of {len(found)} runs passes the filters; their envs are "
            f"{', '.join(envs) or 'not known'}, their agents {', '.join(agents) or 'not known'}\n"
        )


def _sorted(entries: Sequence[RunEntry], by: str, *, is_reversed: bool) -> list[RunEntry]:
    """In the order of a field; what is not known comes last either way."""
    name = SORTS[by]
    known = [entry for entry in entries if getattr(entry, name) not in (None, "")]
    unknown = [entry for entry in entries if getattr(entry, name) in (None, "")]

    def key(entry: RunEntry) -> Any:
        value = getattr(entry, name)
        return _natural(value) if isinstance(value, str) else value

    return [*sorted(known, key=key, reverse=is_reversed), *unknown]


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """A key by which ``run-10`` comes after ``run-9``."""
    parts = re.split(r"(\d+)", text.lower())
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _table(entries: Sequence[RunEntry]) -> str:
    lines = aligned([HEADS, *map(_cells, entries)], RIGHT)
    notes = [f"{entry.name}: {entry.problem}" for entry in entries if entry.problem]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _cells(entry: RunEntry) -> tuple[str, ...]:
    is_offline = entry.env == "none"
    steps = entry.train_steps if is_offline else entry.env_steps
    last = _number(entry.return_last)
    if entry.return_last is None and entry.return_train is not None:
        last = f"{_number(entry.return_train)} (training)"
    updated = entry.updated
    return (
        entry.name,
        entry.env or "-",
        entry.agent or "-",
        "-" if entry.seed is None else str(entry.seed),
        "-" if steps is None else f"{steps:,}{' updates' if is_offline else ''}",
        last,
        _number(entry.return_best),
        _hours(entry.hours),
        entry.status,
        entry.commit or "-",
        "-"
        if updated is None
        else datetime.fromtimestamp(updated).isoformat(" ", timespec="minutes"),
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _hours(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.01" if 0 < value < 0.01 else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _csv(entries: Sequence[RunEntry]) -> str:
    out = io.StringIO()
    names = [field.name for field in dataclasses.fields(RunEntry)]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(entry.to_dict() for entry in entries)
    return out.getvalue()


def _moment(text: str) -> float:
    """``7d``, ``12h``, ``2026-11-28`` or ``2026-11-28 14:00`` as unix time in seconds.

    Raises:
        ConfigurationError: If it is none of these.
    """
    ago = AGO.fullmatch(text.strip().lower())
    try:
        if ago is not None:
            return time.time() - float(ago[1]) * UNIT_S[ago[2]]
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigurationError(
            f"--since: cannot be {text!r}; it takes a time ago (30m, 12h, 7d, 2w) or a date "
            "(2026-11-28, or with a time: 2026-11-28T14:00)"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("runs"),
        description="A table of runs: how far each is, its return, hours, status and commit. "
        "Changes nothing; runs that are damaged are listed with what is wrong.",
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        nargs="*",
        default=[RUNS],
        help="looked through for runs, to any depth (default: runs)",
    )
    add: Callable[..., object] = parser.add_argument
    text = "a part of it, or a pattern like gym:Cart*; may be repeated"
    add("--env", action="append", default=[], metavar="TEXT", help=f"runs on this env: {text}")
    add("--agent", action="append", default=[], metavar="TEXT", help=f"runs of this agent: {text}")
    add("--commit", action="append", default=[], metavar="TEXT", help=f"of this commit: {text}")
    add("--seed", action="append", default=[], type=int, help="runs of this seed; repeatable")
    add("--status", action="append", default=[], choices=STATUSES, help="as it is; repeatable")
    add("--since", metavar="WHEN", help="that wrote since then: 12h, 7d, 2026-11-28")
    add("--sort", choices=list(SORTS), default="name", help="order (default: %(default)s)")
    add("--reverse", action="store_true", help="the highest or last first")
    machine = parser.add_mutually_exclusive_group()
    machine.add_argument("--json", action="store_true", help="print one JSON object per run")
    machine.add_argument("--csv", action="store_true", help="print comma-separated values")
    return parser


if __name__ == "__main__":
    sys.exit(main())
