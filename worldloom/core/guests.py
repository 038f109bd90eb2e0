"""What installed packages bring along: agents, env suites and sinks that they declare as entry
points of a group of ours.

    [project.entry-points."worldloom.agents"]
    greedy = "my_package.greedy"

Nothing is imported here but metadata. A package that is installed was chosen by the user, so its
code is asked no consent, as that of ours; a module that a run folder names is (``envs.consent``).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["AGENTS", "ENV_SUITES", "SINKS", "Guest", "guests"]

AGENTS = "worldloom.agents"
ENV_SUITES = "worldloom.env_suites"
SINKS = "worldloom.sinks"


class Guest(NamedTuple):
    """One entry point.

    Attributes:
        name: As it is typed.
        value: ``package.module`` (of an agent always), or ``package.module:name``.
        package: Name and version of the package that declares it.
    """

    name: str
    value: str
    package: str


def guests(group: str) -> Mapping[str, Guest]:
    """Entry points of a group by name, in the order of their names; of two with one name the first
    on ``sys.path`` counts.
    """
    return _guests(group, tuple(sys.path))


@functools.lru_cache(maxsize=8)
def _guests(group: str, path: tuple[str, ...]) -> Mapping[str, Guest]:
    """As :func:`guests`; looking takes milliseconds, and names of envs are read often."""
    import importlib.metadata  # takes a while, and most processes ask for no guest

    found: dict[str, Guest] = {}
    for point in importlib.metadata.entry_points(group=group):
        package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "?"
        found.setdefault(point.name, Guest(point.name, point.value, package))
    return dict(sorted(found.items()))
