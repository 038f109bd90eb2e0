"""What a world model says of windows whose outcome is known. Numpy alone.

Legend: B windows, W rows that the model sees, K rows after them that it imagines from the actions
that were taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Foresight"]

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """Predictions beside what came; see
    :meth:`worldloom.core.protocol.PredictsAhead.predict_ahead`.

    Attributes:
        latent: ``[B, K, L]`` imagined, and as the model has it when it sees those rows.
        obs: Per key of numbers ``[B, K, F]`` decoded and seen, each number in a unit of its own;
            empty for a model that reconstructs nothing.
        pixels: Per image likewise, all of one unit.
        reward: ``[B, K]`` expected on arrival at the imagined rows.
        goes_on: ``[B, K]`` probability that an episode goes on there; None without such a head.
        value: ``[B, W + K]`` expected sum of discounted rewards after every row, all rows seen.
        discount: Per decision, of that sum.
        disagreement: ``[B, K]`` of the model with itself about the imagined rows, as a share of the
            spread between rows: 0 where it agrees, near 1 where its answers are as far apart as
            rows of different moments.
    """

    latent: Pair
    obs: Mapping[str, Pair] = field(default_factory=dict)
    pixels: Mapping[str, Pair] = field(default_factory=dict)
    reward: np.ndarray
    goes_on: np.ndarray | None = None
    value: np.ndarray
    discount: float
    disagreement: np.ndarray
