"""What can be asked for by name: agents and world models, env suites and sinks, ours and those that
installed packages bring. The lines of ``worldloom models`` and ``worldloom list``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from worldloom.algorithms.registry import agent_names, guest_agents
from worldloom.core.guests import ENV_SUITES, SINKS, guests
from worldloom.distributed import distributed
from worldloom.envs.config import SUITES, suite_names
from worldloom.factory import MODEL_CATALOG

__all__ = ["LISTS", "list_lines", "model_lines"]

OURS = "worldloom"


def model_lines() -> list[str]:
    """A line for every preset of an agent or a world model, with its size and what it is."""
    makers = {name: one.guest.package for one in guest_agents() for name in one.presets}
    agents = agent_names()
    ours = sorted((name for name in agents if name not in makers), key=_family_and_size)
    names = [*ours, *(n for n in MODEL_CATALOG if n not in agents), *makers]
    width = max(map(len, names))
    lines = []
    for name in names:
        entry = MODEL_CATALOG.get(name)
        named = _family_and_size(name)[1]  # the authors' own word for it, such as size400m
        size = f"{entry['params'] / 1e6:7.1f} M" if entry else f"{named:7} M" if named else " " * 9
        small = "small, for laptops and tests" if name.endswith(":ci") else "an agent"
        text = entry["description"] if entry else small
        if name in makers:
            size, text = " " * 9, f"an agent of {makers[name]}"
        lines.append(f"{name:<{width}}  {size}  {text}{'; --agent' if name in agents else ''}")
    return lines


def list_lines(kind: str | None = None) -> list[str]:
    """A line per name, with what is typed and whose it is, of one kind or of all.

    Args:
        kind: Of :data:`LISTS`; None for all, each below a line that names it.
    """
    if kind is not None:
        return _table(LISTS[kind]())
    return [
        line
        for name, rows in LISTS.items()
        for line in (f"{name}:", *(f"  {line}" for line in _table(rows())))
    ]


def _agents() -> list[tuple[str, str, str]]:
    presets: dict[str, list[str]] = {}
    for name in agent_names(with_guests=False):
        algorithm, _, preset = name.partition(":")
        presets.setdefault(algorithm, []).append(preset)
    rows = [(name, f"--agent {name}:{'|'.join(some)}", OURS) for name, some in presets.items()]
    for one in guest_agents():
        name = one.guest.name
        some = "|".join(preset.partition(":")[2] for preset in one.presets)
        rows.append((name, one.problem or f"--agent {name}:{some}", one.guest.package))
    return rows


def _env_suites() -> list[tuple[str, str, str]]:
    found = guests(ENV_SUITES)
    rows = [
        (name, f"--env {name}:NAME", OURS if name in SUITES else found[name].package)
        for name in suite_names()
    ]
    hidden = [(name, f"{name} is one of ours") for name in found if name in SUITES]
    return rows + [(name, problem, found[name].package) for name, problem in hidden]


def _sinks() -> list[tuple[str, str, str]]:
    ours = distributed("metrics.guest_sinks", "sinks of a run").OURS
    rows = [(name, f"--{name}", OURS) for name in ours]
    for name, guest in guests(SINKS).items():
        typed = f"{name} is one of ours" if name in ours else f"--sink {name}"
        rows.append((name, typed, guest.package))
    return rows


LISTS: Mapping[str, Callable[[], list[tuple[str, str, str]]]] = {
    "agents": _agents,
    "envs": _env_suites,
    "sinks": _sinks,
}
"""Kind -> rows of name, what is typed (or why it cannot be), and the package that has it."""


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 2)]
    return [f"{name:<{widths[0]}}  {whose:<{widths[1]}}  {typed}" for name, typed, whose in rows]


def _family_and_size(name: str) -> tuple[str, int, str]:
    """Sorts agents by algorithm and then by size, the smallest (``ci``) first."""
    family, _, preset = name.partition(":")
    digits = "".join(filter(str.isdigit, preset))
    return family, int(digits or 0), preset
