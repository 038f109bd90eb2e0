"""Probabilities beside what happened. Numpy alone."""

from __future__ import annotations

import numpy as np

__all__ = ["calibration"]


def calibration(probability: np.ndarray, outcome: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: |mean probability - frequency| per bin of probability, weighted
    by the bin's share.
    """
    flat = probability.reshape(-1)
    happened = outcome.reshape(-1)
    place = np.minimum((flat * bins).astype(int), bins - 1)
    gaps = [
        abs(flat[place == b].mean() - happened[place == b].mean()) * np.mean(place == b)
        for b in np.unique(place)
    ]
    return float(np.sum(gaps))
