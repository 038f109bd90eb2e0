"""From seed sequences to the seeds that other generators take. numpy only."""

from __future__ import annotations

import numpy as np

__all__ = ["seed_of"]


def seed_of(sequence: np.random.SeedSequence) -> int:
    """63 bits of a sequence as a seed that torch, Ray and JSON take.

    Example:
        >>> seed_of(np.random.SeedSequence(0)) < 2**63
        True
    """
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1
