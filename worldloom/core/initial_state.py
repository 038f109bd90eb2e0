"""What an agent can begin with: what another one learned, and what became of each part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from worldloom.core.specs import EnvSpec

__all__ = ["InitialState", "TrainedState"]


@dataclass(frozen=True, kw_only=True)
class TrainedState:
    """What an agent learned elsewhere.

    Attributes:
        state: As its ``state_dict`` has it, as far as it is known.
        env: In which spaces and tasks it learned.
        config: Settings of the agent.
        skipped: Entries of the file that it came from and that are left out -> why.
    """

    state: Mapping[str, Any]
    env: EnvSpec
    config: Any
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InitialState:
    """A whole state for an untrained agent, and where it comes from.

    Attributes:
        state: For ``load_state_dict``.
        loaded: Names of the entries that were taken.
        skipped: Names of those that were not -> why; together with ``loaded`` all there were.
        fresh: What is new, because there was nothing for it.
        notes: What else happened, one sentence each.
    """

    state: Mapping[str, Any]
    loaded: tuple[str, ...]
    skipped: Mapping[str, str]
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self, place: str) -> tuple[str, ...]:
        """For people: how many entries were taken, which were not and why, and what is new.

        Args:
            place: Where the entries come from.

        Example:
            >>> loaded = ("encoder.0.weight", "encoder.0.bias", "pi.weight")
            >>> found = InitialState(state={}, loaded=loaded, skipped={"rng": "not ours"})
            >>> found.lines("a.pt")
            ('a.pt: 3 of 4 entries loaded (encoder 2, pi 1)', 'left out: 1 rng (not ours)')
        """
        parts: dict[str, int] = {}
        for name in self.loaded:
            part = name.partition(".")[0]
            parts[part] = parts.get(part, 0) + 1
        said = ", ".join(f"{part} {count}" for part, count in parts.items())
        total = len(self.loaded) + len(self.skipped)
        found = [f"{place}: {len(self.loaded)} of {total} entries loaded ({said})"]
        if self.skipped:
            reasons: dict[str, dict[str, int]] = {}
            for name, why in self.skipped.items():
                counts = reasons.setdefault(why, {})
                part = name.partition(".")[0]
                counts[part] = counts.get(part, 0) + 1
            groups = [
                ", ".join(f"{count} {part}" for part, count in counts.items()) + f" ({why})"
                for why, counts in reasons.items()
            ]
            found.append("left out: " + ", ".join(groups))
        if self.fresh:
            found.append("new: " + ", ".join(self.fresh))
        return (*found, *self.notes)
