"""From the name of an agent to the modules that have it: ours, those of installed packages by their
entry points, and a module of that dotted name. No torch.

Code of others may raise anything while it is imported; here that becomes one sentence.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any, NamedTuple

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import ConfigurationError, ModelNotFoundError, nearest
from worldloom.core.guests import AGENTS, Guest, guests

__all__ = [
    "AGENT_NAMES",
    "ALGORITHMS",
    "GuestAgent",
    "agent_names",
    "find_module",
    "guest_agents",
    "home_of",
    "outside_module",
    "spec_module",
    "split_name",
    "unknown_agent",
]

ALGORITHMS = {
    "dreamerv3": "worldloom.algorithms.dreamerv3",
    "mlp": "worldloom.algorithms.mlp",
    "r2dreamer": "worldloom.algorithms.r2dreamer",
    "tdmpc2": "worldloom.algorithms.tdmpc2",
}
"""Algorithm name -> package. Each has a torch-free module ``spec`` with the names of SPEC_NAMES,
and a module ``agent`` with those of AGENT_NAMES; a small agent may have all of them in one module.
"""
SPEC_NAMES = ("PRESETS", "DEFAULT_PRESET", "ENV_DEFAULTS", "ARCHITECTURE", "make_spec")
AGENT_NAMES = ("make_agent", "make_policy")


class GuestAgent(NamedTuple):
    """An agent that an installed package brings.

    Attributes:
        guest: Its entry point.
        presets: As they are typed, ``algorithm:preset``; none where it has a problem.
        problem: Why it cannot be asked for, in one sentence; else empty.
    """

    guest: Guest
    presets: tuple[str, ...] = ()
    problem: str = ""


def agent_names(*, with_guests: bool = True) -> list[str]:
    """Every ``algorithm:preset`` that can be asked for: ours, then those of installed packages."""
    ours = [
        f"{algorithm}:{preset}"
        for algorithm in sorted(ALGORITHMS)
        for preset in spec_module(algorithm).PRESETS
    ]
    return ours + [name for one in guest_agents() if with_guests for name in one.presets]


def guest_agents() -> list[GuestAgent]:
    """What installed packages bring, also what cannot be imported; imports the others' settings."""
    found = []
    for name, guest in guests(AGENTS).items():
        if name in ALGORITHMS:
            problem = f"agent {name!r} is one of ours; ask for it as {guest.value}:PRESET"
            found.append(GuestAgent(guest, problem=problem))
            continue
        try:
            presets = tuple(f"{name}:{preset}" for preset in spec_module(name).PRESETS)
            found.append(GuestAgent(guest, presets))
        except ConfigurationError as error:
            found.append(GuestAgent(guest, problem=error.message))
        except Exception as error:  # the edge: PRESETS of others may be anything
            found.append(GuestAgent(guest, problem=f"agent {name!r}: {_said(error)}"))
    return found


def outside_module(name: str) -> str | None:
    """The Python module that an agent's name has imported, where it is neither one of ours nor that
    of an installed package's entry point; else None.

    Example:
        >>> outside_module("my_pack.greedy:small"), outside_module("tdmpc2:5m")
        ('my_pack.greedy', None)
    """
    algorithm, _ = split_name(name)
    return None if algorithm in ALGORITHMS or algorithm in guests(AGENTS) else algorithm


def split_name(name: str) -> tuple[str, str]:
    """Algorithm and preset of ``algorithm:preset``; the preset may be missing."""
    algorithm, _, preset = name.partition(":")
    return algorithm, preset


def spec_module(algorithm: str) -> Any:
    """The module with an agent's settings; raises as :func:`find_module`."""
    return find_module(algorithm, "spec", SPEC_NAMES)


def find_module(algorithm: str, part: str, names: tuple[str, ...]) -> ModuleType:
    """The module that has one half of an agent.

    Raises:
        ModelNotFoundError: If there is no such algorithm.
        ConfigurationError: If the module cannot be imported, or lacks a name that an agent has.
    """
    home = home_of(algorithm)
    if home is None:
        raise ModelNotFoundError(algorithm, agent_names())
    if ":" in home:
        guest = guests(AGENTS)[algorithm]
        raise ConfigurationError(
            f"agent {algorithm!r}: its entry point in {guest.package} is {home!r}, and an agent is "
            f"a whole module; declare it as {home.partition(':')[0]!r}"
        )
    try:
        module = importlib.import_module(home)
        if hasattr(module, "__path__") and importlib.util.find_spec(f"{home}.{part}") is not None:
            module = importlib.import_module(f"{home}.{part}")
    except (Exception, SystemExit) as error:  # the edge: code of others may raise anything
        if algorithm in ALGORITHMS:
            raise
        raise ConfigurationError(
            f"agent {algorithm!r} cannot be imported: {_said(error)}"
        ) from error
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise ConfigurationError(
            f"agent {algorithm!r}: {module.__name__} has no {', '.join(missing)}, which an agent "
            "needs; see docs/extending/agent.md"
        )
    return module


def unknown_agent(name: str) -> ModelNotFoundError | ConfigurationError:
    """What to say of a name that leads nowhere: a nearest one, or that a module is not found."""
    algorithm, _ = split_name(name)
    names = agent_names()
    if "." in algorithm or not nearest(name, names):
        return ConfigurationError(
            f"agent {name!r}: no algorithm and no module {algorithm!r}, as seen from here; start "
            f"in the folder that holds it or set PYTHONPATH (known: {', '.join(names)})"
        )
    return ModelNotFoundError(name, names)


def home_of(algorithm: str) -> str | None:
    """The module of an algorithm: ours, an entry point's, or the one of that dotted name."""
    if algorithm in ALGORITHMS:
        return ALGORITHMS[algorithm]
    if algorithm in guests(AGENTS):
        return guests(AGENTS)[algorithm].value
    if not all(part.isidentifier() for part in algorithm.split(".")):
        return None
    try:
        return algorithm if importlib.util.find_spec(algorithm) is not None else None
    except (ImportError, ValueError):
        return None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
