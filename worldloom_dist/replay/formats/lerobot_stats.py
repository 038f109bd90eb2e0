"""What ``meta/stats.json`` and the columns ``stats/...`` of ``meta/episodes`` say of a LeRobot
dataset: the ends, mean, spread and quantiles of every column, images per channel in [0, 1].

LeRobot normalises by them. Quantiles of several episodes are bounds, as LeRobot joins them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["joined_stats", "stats_of"]

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def stats_of(columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Numbers of one episode's columns ``[n, ...]``, as nested lists."""
    return {name: _stats(value) for name, value in columns.items()}


def _stats(value: np.ndarray) -> dict[str, Any]:
    count = len(value)
    if value.ndim == 4:
        flat = np.moveaxis(value, -1, 0).reshape(value.shape[-1], -1).T / 255.0  # [rows, C]
        shape: tuple[int, ...] = (value.shape[-1], 1, 1)
    else:
        flat = value.reshape(count, -1).astype(np.float64)
        shape = (flat.shape[1],)
    found = {
        "min": flat.min(axis=0),
        "max": flat.max(axis=0),
        "mean": flat.mean(axis=0),
        "std": flat.std(axis=0),
        **{name: np.quantile(flat, share, axis=0) for name, share in QUANTILES.items()},
    }
    return {**{name: one.reshape(shape).tolist() for name, one in found.items()}, "count": [count]}


def joined_stats(episodes: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Numbers of all episodes together."""
    names = episodes[0] if episodes else ()
    return {name: _joined([episode[name] for episode in episodes]) for name in names}


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    arrays = {name: np.array([part[name] for part in parts], np.float64) for name in parts[0]}
    counts = arrays["count"].reshape(-1, *(1,) * (arrays["mean"].ndim - 1))
    total = counts.sum()
    mean = (arrays["mean"] * counts).sum(axis=0) / total
    spread = arrays["std"] ** 2 + (arrays["mean"] - mean) ** 2
    joined = {
        "min": arrays["min"].min(axis=0),
        "max": arrays["max"].max(axis=0),
        "mean": mean,
        "std": np.sqrt((spread * counts).sum(axis=0) / total),
        **{
            name: (np.min if share <= 0.5 else np.max)(arrays[name], axis=0)
            for name, share in QUANTILES.items()
        },
    }
    return {**{name: one.tolist() for name, one in joined.items()}, "count": [int(total)]}
