"""Rows of evaluation episodes, kept to hold the agent's model against them. No training ever sees
these episodes.

Of the first episode of each of the first envs: windows spread evenly over it, the one at its end
included, every reward and every action. One that its env breaks off counts for nothing; the env's
next one takes its place. One that the evaluation cuts counts as truncated there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldloom.core.sequence import SequenceBatch
from worldloom.core.specs import EnvSpec
from worldloom.envs.vector import EnvStep
from worldloom.evaluation.trust import IMAGINED_ROWS, SEEN_ROWS, Probes

__all__ = ["ProbeCollector"]

WINDOW_ROWS = SEEN_ROWS + IMAGINED_ROWS
MOST_EPISODES = 8
MOST_WINDOWS = 4
"""Of an episode, besides the one at its end."""

Row = dict[str, Any]


class ProbeCollector:
    """Looks on while an evaluation plays.

    Args:
        spec: Of the envs.
        num_envs: How many play.
    """

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        self._spec = spec
        self._episodes = [_Episode() for _ in range(min(num_envs, MOST_EPISODES))]

    def see(self, row: EnvStep) -> None:
        """Take the rows of the envs, before the decision in them."""
        for index, episode in enumerate(self._episodes):
            if episode.is_over:
                continue
            if not row.live[index]:
                episode.clear()
                continue
            if row.is_first[index]:
                episode.clear()
            episode.add(
                {
                    "obs": {key: value[index].copy() for key, value in row.obs.items()},
                    "reward": row.reward[index],
                    "is_first": row.is_first[index],
                    "terminated": row.terminated[index],
                    "truncated": row.truncated[index],
                }
            )

    def acted(self, action: Mapping[str, np.ndarray]) -> None:
        """Take the decisions in the rows that were seen last."""
        for index, episode in enumerate(self._episodes):
            if not episode.is_over and episode.tail:
                episode.act({key: value[index].copy() for key, value in action.items()})

    def probes(self) -> Probes | None:
        """What was kept; None when no episode fills a window."""
        whole = [e for e in self._episodes if len(e.rewards) >= WINDOW_ROWS]
        if not whole:
            return None
        windows: list[list[Row]] = []
        episode: list[int] = []
        offset: list[int] = []
        for number, one in enumerate(whole):
            end = len(one.rewards) - WINDOW_ROWS
            held = {**one.windows, end: list(one.tail)}
            windows += held.values()
            offset += held.keys()
            episode += [number] * len(held)
        return Probes(
            self._batch(windows),
            np.array(episode),
            np.array(offset),
            [np.array(one.rewards, np.float64) for one in whole],
            [bool(one.tail[-1]["terminated"]) for one in whole],
            {
                key: np.stack([action[key] for one in whole for action in one.actions])
                for key in self._spec.action
            },
        )

    def _batch(self, windows: list[list[Row]]) -> SequenceBatch:
        blank = {key: spec.zeros() for key, spec in self._spec.action.items()}

        def stacked(name: str, key: str | None = None) -> np.ndarray:
            return np.stack(
                [
                    np.stack([row[name] if key is None else row[name][key] for row in window])
                    for window in windows
                ]
            )

        for window in windows:
            for row in window:
                row.setdefault("action", blank)  # no decision follows the last row
        return SequenceBatch(
            {key: stacked("obs", key) for key in self._spec.obs},
            {key: stacked("action", key) for key in self._spec.action},
            stacked("reward"),
            stacked("is_first"),
            stacked("terminated"),
            stacked("truncated"),
        )


@dataclass(slots=True)
class _Episode:
    """The episode of one env.

    Attributes:
        tail: The newest rows.
        windows: By the place of their first row; evenly spread however long the episode becomes.
    """

    tail: deque[Row] = field(default_factory=lambda: deque(maxlen=WINDOW_ROWS))
    windows: dict[int, list[Row]] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    actions: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    stride: int = WINDOW_ROWS
    is_over: bool = False

    def clear(self) -> None:
        """Begin an episode."""
        self.tail.clear()
        self.windows.clear()
        self.rewards.clear()
        self.actions.clear()
        self.stride = WINDOW_ROWS

    def add(self, row: Row) -> None:
        """The next row."""
        self.tail.append(row)
        self.rewards.append(float(row["reward"]))
        self.is_over = bool(row["terminated"] or row["truncated"])

    def act(self, action: Mapping[str, np.ndarray]) -> None:
        """The decision in the newest row; a window that it completes is kept if its turn is."""
        self.tail[-1]["action"] = action
        self.actions.append(action)
        first = len(self.rewards) - WINDOW_ROWS
        if first < 0 or first % self.stride:
            return
        self.windows[first] = list(self.tail)
        if len(self.windows) > MOST_WINDOWS:
            self.stride *= 2
            self.windows = {at: rows for at, rows in self.windows.items() if not at % self.stride}
