"""``--replay.offline-share``: which share of every batch begins at rows of ``--replay.load``, while
the run makes rows of its own.

    0.5                half of each batch, always
    1.0:0.1@20000      all of it at first, falling to a tenth at 20,000 env steps, in a line

The share is a function of the env steps that are stored, so a resumed run has it exactly. Of a
batch the whole number below or above its share is drawn, by chance, so that the mean is exact.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.fields import FRACTION

__all__ = ["OfflineShare", "parse_share"]

FORM = re.compile(r"([0-9.e+-]+)(?::([0-9.e+-]+)@([0-9_]+))?")


@dataclass(frozen=True, slots=True)
class OfflineShare:
    """A share of each batch, constant or falling or rising in a line.

    Attributes:
        first, last: Shares at the beginning and from ``until_env_steps`` on.
        until_env_steps: Env steps at which ``last`` is reached; 0 for a constant share.
        action_repeat: Env steps of one agent step.
    """

    first: float
    last: float
    until_env_steps: int = 0
    action_repeat: int = 1

    def at(self, agent_steps: int) -> float:
        """The share when this many agent steps are stored."""
        env_steps = agent_steps * self.action_repeat
        if env_steps >= self.until_env_steps:
            return self.last
        return self.first + (self.last - self.first) * env_steps / self.until_env_steps

    def windows(self, total: int, agent_steps: int, rng: np.random.Generator) -> int:
        """How many of ``total`` windows begin at rows from files."""
        exact = total * self.at(agent_steps)
        whole = math.floor(exact)
        return whole + int(rng.random() < exact - whole)


def parse_share(text: str, action_repeat: int = 1) -> OfflineShare:
    """Read a share.

    Raises:
        ConfigurationError: If it is none, or a number is no share.

    Example:
        >>> parse_share("1.0:0.1@20000").at(10_000)
        0.55
    """
    found = FORM.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        first = float(found[1])
        last = float(found[2] or first)
        until = int(found[3] or 0)
        if first not in FRACTION or last not in FRACTION or (found[2] and until < 1):
            raise ValueError
    except ValueError:
        raise ConfigurationError(
            "replay.offline_share must be a share of each batch from 0 to 1, or "
            f"FIRST:LAST@ENV_STEPS, got {text!r}; say for example 0.5, or 1.0:0.1@20000"
        ) from None
    return OfflineShare(first, last, until, action_repeat)
