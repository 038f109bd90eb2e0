"""Selectors as people write them: ``uniform``, ``prioritised:0.6``, ``recency:1.0``, and mixtures
``0.5*uniform+0.5*recency``; ``source:human`` draws windows that begin where a person chose the
action, as long as there are any.

``balanced`` draws several tasks equally often.

``online`` in front (``online+uniform``) serves each new window once, in order, before anything is
drawn. ``agent`` stands for what the agent was published with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import FRACTION, Bounds
from worldloom.data.selectors import (
    SOURCES,
    Balanced,
    Mixture,
    Prioritised,
    Recency,
    Selector,
    Source,
    Uniform,
)

__all__ = ["AGENTS_OWN", "SelectorSpec", "parse_selector"]

AGENTS_OWN = "agent"
KINDS: dict[str, Callable[[int, float, int], Selector]] = {
    "uniform": lambda size, _, __: Uniform(size),
    "prioritised": lambda size, exponent, _: Prioritised(size, exponent),
    "recency": lambda size, power, _: Recency(size, power),
    "source": lambda size, number, _: Source(size, int(number)),
    "balanced": lambda size, _, tasks: Balanced(size, tasks),
}
"""Kind -> a selector of this many slots, with this parameter, for this many tasks."""
PLAIN = ("uniform", "balanced")
"""Kinds without a parameter."""
DEFAULTS = {"source": 0.0, "uniform": 0.0, "balanced": 0.0, "prioritised": 0.6, "recency": 1.0}
"""Parameter of each kind: none, the exponent of arXiv:1511.05952v4, and 1 / age."""
ALLOWED = {
    "source": Bounds(1, len(SOURCES)),
    "uniform": Bounds(0, 0),
    "balanced": Bounds(0, 0),
    "prioritised": Bounds(0, 4),
    "recency": Bounds(0, 100),
}
"""Parameters: a priority is a float32 number, and its power must fit into double precision; a
higher power of the age draws nothing but the newest window.
"""


@dataclass(frozen=True, slots=True)
class SelectorSpec:
    """A parsed selector.

    Attributes:
        parts: Kind, parameter and share of each part; shares sum to 1.
        online: Serve new windows first; None leaves that to the agent.
    """

    parts: tuple[tuple[str, float, float], ...] = (("uniform", 0.0, 1.0),)
    online: bool | None = None

    @property
    def uses_priorities(self) -> bool:
        """True when windows have priorities, which someone must write back."""
        return any(kind == "prioritised" for kind, _, _ in self.parts)

    @property
    def uses_tasks(self) -> bool:
        """True when it tells tasks apart, of which there must be several."""
        return any(kind == "balanced" for kind, _, _ in self.parts)

    def build(self, size: int, tasks: int = 0) -> Selector:
        """A selector over ``size`` slots of rows of ``tasks`` tasks (0: of one, which has no
        number).
        """
        made = [
            (KINDS[kind](size, parameter, tasks), share) for kind, parameter, share in self.parts
        ]
        return made[0][0] if len(made) == 1 else Mixture(made)


def parse_selector(text: str, *, has_tasks: bool = False) -> SelectorSpec:
    """Read a selector.

    Args:
        text: As people write it.
        has_tasks: The rows are of several tasks: the agent's own then is ``balanced``.

    Raises:
        ConfigurationError: If a part is unknown, a number is out of range, or shares do not sum to
            1.

    Example:
        >>> parse_selector("online+0.5*uniform+0.5*recency:2").parts
        (('uniform', 0.0, 0.5), ('recency', 2.0, 0.5))
    """
    if text == AGENTS_OWN:
        return SelectorSpec((("balanced", 0.0, 1.0),)) if has_tasks else SelectorSpec()
    terms = [term.strip() for term in text.split("+")]
    online = "online" in terms
    parts = [_part(term, text) for term in terms if term != "online"]
    if online and not parts:
        parts = [("uniform", 0.0, 1.0)]
    total = sum(share for _, _, share in parts)
    if abs(total - 1.0) > 1e-9:
        raise ConfigurationError(
            f"replay.selector: shares of {text!r} sum to {total:g}, not to 1 as in "
            "0.5*uniform+0.5*recency"
        )
    return SelectorSpec(tuple(parts), online)


def _part(term: str, text: str) -> tuple[str, float, float]:
    share, star, rest = term.rpartition("*")
    kind, colon, parameter = rest.partition(":")
    if kind == "source":
        if parameter not in SOURCES:
            raise ConfigurationError(
                f"replay.selector: {term!r} in {text!r} names no source; say source: and one of "
                f"{', '.join(SOURCES)}, as in 0.5*source:human+0.5*uniform"
            )
        parameter = str(SOURCES[parameter])
    if kind not in KINDS or (colon and kind in PLAIN):
        raise ConfigurationError(
            f"replay.selector: cannot read {term!r} in {text!r}; use agent, online, "
            "uniform, balanced, prioritised[:EXPONENT], "
            "recency[:POWER], source:NAME, or a mixture like 0.5*uniform+0.5*prioritised"
        )
    try:
        result = (
            kind,
            float(parameter) if colon else DEFAULTS[kind],
            float(share) if star else 1.0,
        )
    except ValueError as error:
        raise ConfigurationError(
            f"replay.selector: {term!r} in {text!r} needs numbers, as in 0.5*prioritised:0.6"
        ) from error
    if result[1] not in ALLOWED[kind] or result[2] not in FRACTION:
        raise ConfigurationError(
            f"replay.selector: {term!r} needs a parameter {ALLOWED[kind]} and a share "
            f"{FRACTION}, got {result[1]} and {result[2]}"
        )
    return result
