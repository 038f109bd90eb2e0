"""Published curves, to be drawn beside a run's: ``published.json`` has their numbers and where they
come from.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom_dist.run.curves import Curve

__all__ = ["Published", "find_published", "published_tasks"]


@dataclass(frozen=True)
class Published:
    """A curve that authors have published.

    Attributes:
        task: As ``suite/task``.
        by: Key of its source: ``tdmpc2``, ``dreamerv3-pixels``.
        label: Whose it is.
        source: Where the numbers come from, and what they are.
        has_pixels: True where the agents saw images.
        curve: Mean over seeds over env steps, with a band of one standard deviation where it is
            known.
        windows: [points, 2] env steps between which the training episodes of each point ended;
            None where the numbers are of evaluations.
    """

    task: str
    by: str
    label: str
    source: str
    has_pixels: bool
    curve: Curve
    windows: np.ndarray | None


@cache
def _data() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def published_tasks() -> list[str]:
    """Every task with a curve, as ``suite/task``."""
    return list(_data()["curves"])


def find_published(task: str) -> list[Published]:
    """The published curves of a task.

    Args:
        task: ``dmc/walker-walk``, or as an env is named: ``dmc:walker-walk``, ``atari:pong``.

    Raises:
        ConfigurationError: If there is none; offers the nearest name.
    """
    by_key = {task_key(name): name for name in published_tasks()}
    name = by_key.get(task_key(task))
    if name is None:
        close = nearest(task.replace(":", "/"), published_tasks())
        suites = sorted({known.partition("/")[0] for known in published_tasks()})
        raise ConfigurationError(
            f"reference: no published curve of {task!r} is known{close} (there are "
            f"{len(published_tasks())} tasks of {' and '.join(suites)})"
        )
    found = []
    for entry in _data()["curves"][name]:
        by = entry["by"]
        source = _data()["sources"][by]
        mean = np.array(entry["return_mean"], float)
        spread = np.array([np.nan if s is None else s for s in entry["return_std"]], float)
        steps = np.array(entry["env_steps"], float)
        curve = Curve(steps, mean, mean - spread, mean + spread)
        windows = _windows(source, entry["env_steps"])
        facts = (source["label"], source["source"], source["pixels"], curve, windows)
        found.append(Published(name, by, *facts))
    return found


def _windows(source: dict[str, Any], env_steps: list[int]) -> np.ndarray | None:
    """``window`` is around every point, but for those that ``windows`` names."""
    if "window" not in source:
        return None
    before, behind = source["window"]
    odd = source["windows"]
    return np.array([odd.get(str(s), (s + before, s + behind)) for s in env_steps], float)


def task_key(name: str) -> str:
    """A task's name without what spellings differ in: ``dmc:ball_in_cup-catch`` is
    ``dmc/cup-catch``.
    """
    return re.sub(r"[^a-z0-9]", "", name.lower()).replace("ballincup", "cup")
