"""Runs as experiments: those that differ in their seed alone are seeds of one experiment, and their
curves become one with an interval.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.json_text import read_object
from worldloom.evaluation.seeds import bootstrap_interval, iqm
from worldloom_dist.plot.tasks import histories_of_tasks, history_of_scores
from worldloom_dist.run.config import LearnerConfig, ReplayConfig, RunConfig
from worldloom_dist.run.curves import AXES, Curve, History
from worldloom_dist.run.view import read_records, status_of

__all__ = ["Experiment", "Run", "combine", "experiments_of", "read_run"]

GRID_POINTS = 200
MOST_OF_A_SETTING = 60
"""Characters of one in a label."""
COUNTS = ("env_steps", "train_steps", "wall_time_s")
LARGEST = 1e15
"""Of what a summary counts."""
ABREAST = 0.9
"""Share of the furthest run's way from which on a run's end is compared with its end."""
MAKES_AN_EXPERIMENT = (
    "env",
    "agent_overrides",
    "train_ratio",
    "runtime",
    "barrier",
    "workers",
    "envs_per_worker",
    "inference",
    "init_from",
    "learners",
    "eval_max_steps",
    "offline_steps",
)
"""Settings that make two runs of one agent two experiments, with those of
:data:`REPLAY_MAKES_AN_EXPERIMENT` and :data:`LEARNER_MAKES_AN_EXPERIMENT`, and whether clients of a
gateway play; others, as where a run is written or how often it is evaluated, do not.
"""
LEARNER_MAKES_AN_EXPERIMENT = ("tf32", "weights_dtype")
REPLAY_MAKES_AN_EXPERIMENT = (
    "capacity_gb",
    "capacity_steps",
    "load",
    "offline_share",
    "selector",
    "stride",
)


@dataclass(frozen=True, eq=False)
class Run:
    """One run, read from its folder.

    Attributes:
        folder: Its folder.
        agent, env, seed: What it trains, where, and with which seed; of an offline run ``env`` is
            its data.
        settings: What makes an experiment, flat.
        is_offline: True where there is no env.
        history: What it has recorded.
        summary: ``summary.json``, empty before the first.
        status: As in the summary, or ``died`` when it says running and no process runs it.
        tasks: Each of its tasks alone, over the env steps of that task; empty where there is but
            one.
        scores: The mean score over its tasks; None where there is none.
        measure: What its evaluations and training episodes are.
    """

    folder: Path
    agent: str
    env: str
    seed: int
    settings: Mapping[str, Any]
    is_offline: bool
    history: History
    summary: Mapping[str, Any]
    status: str
    tasks: tuple[Run, ...] = ()
    scores: History | None = None
    measure: str = "return"

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.absolute().name

    @property
    def experiment(self) -> str:
        """Agent and env."""
        return f"{self.agent} on {self.env}"

    @property
    def axis(self) -> str:
        """What its curves are over unless told otherwise."""
        return "updates" if self.is_offline else "env_steps"

    def scored(self) -> Run:
        """With the mean score over its tasks in place of their mean return, where there is one."""
        if self.scores is None:
            return self
        return dataclasses.replace(self, history=self.scores, measure="mean score, 0 to 100")

    def curve(self, name: str, axis: str | None = None) -> Curve | None:
        """A curve by its name in the history; None where there is no point of it."""
        if name not in self.history.names:
            return None
        found = self.history.curve(name, axis or self.axis)
        return found if len(found.steps) else None


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in their seed alone.

    Attributes:
        label: The agent, and of its settings those in which it differs from other experiments of
            that agent.
        runs: Its seeds.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def env(self) -> str:
        """Where it plays."""
        return self.runs[0].env

    @cached_property
    def curve_names(self) -> list[str]:
        """Of all of its runs."""
        return list(dict.fromkeys(name for run in self.runs for name in run.history.names))

    def curves(self, name: str, axis: str | None = None) -> list[Curve]:
        """One per run that has such a curve."""
        found = (run.curve(name, axis) for run in self.runs)
        return [curve for curve in found if curve is not None]

    def abreast(self, name: str) -> dict[Run, Curve]:
        """The runs whose curve goes nearly as far as the furthest: only their last points can be
        compared.
        """
        found = {run: curve for run in self.runs if (curve := run.curve(name)) is not None}
        furthest = max((curve.steps[-1] for curve in found.values()), default=0.0)
        return {r: curve for r, curve in found.items() if curve.steps[-1] >= ABREAST * furthest}

    def counted(self, name: str, runs: Collection[Run] | None = None) -> str:
        """Over how many seeds a curve is, in words: ``3 seeds``, ``1 of 3 seeds`` where not every
        run has it, and ``3 runs, seed 7 twice`` where one seed was made more than once.

        Args:
            name: Of the curve.
            runs: Those that count (default: all that have it).
        """
        having = [run for run in self.runs if run.curve(name) is not None]
        seeds = [run.seed for run in having if runs is None or run in runs]
        doubled = {seed: count for seed, count in Counter(seeds).items() if count > 1}
        of_all = f" of {len(self.runs)}" if len(seeds) < len(self.runs) else ""
        word = "runs" if doubled else "seeds" if len(self.runs) > 1 else "seed"
        often = [f", seed {seed} {_times(count)}" for seed, count in doubled.items()]
        return f"{len(seeds)}{of_all} {word}{''.join(often)}"


def read_run(folder: Path) -> Run:
    """A run from its folder.

    Raises:
        ConfigurationError: If the folder holds no run, or one that has written no metrics yet.
    """
    try:
        run = read_object(folder / "config.json")["run"]
        is_offline = run["env"]["env"] == "none"
        env = f"{run['replay']['load']}, offline" if is_offline else run["env"]["env"]
        flat = _making(run, MAKES_AN_EXPERIMENT, RunConfig())
        flat["replay"] = _making(run.get("replay", {}), REPLAY_MAKES_AN_EXPERIMENT, ReplayConfig())
        learner = run.get("learner", {})
        flat["learner"] = _making(learner, LEARNER_MAKES_AN_EXPERIMENT, LearnerConfig())
        flat["gateway"] = None if run.get("gateway_port") is None else "with clients"
        facts = {
            "agent": run["agent"],
            "env": env,
            "seed": run.get("seed", 0),
            "settings": _flat(flat),
        }
        facts["settings"].pop("env.env")  # which is `env`
        tasks = {
            name: _Task(str(task["env"]), dict(task.get("settings") or {}), task.get("score"))
            for name, task in (run["env"].get("tasks") or {}).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{folder} holds no run ({type(error).__name__}); give a folder that a run writes to"
        ) from error
    try:
        history = History(is_offline=is_offline).add_all(read_records(folder / "metrics.jsonl"))
    except OSError as error:
        raise ConfigurationError(
            f"{folder}/metrics.jsonl cannot be read ({error.strerror}); give a folder that you may "
            "read, of a run"
        ) from error
    if not history.names:
        raise ConfigurationError(
            f"{folder} has no metrics yet; a run writes the first ones after about ten seconds"
        )
    try:
        path = folder / "summary.json"
        summary = read_object(path) if path.exists() else {}
        for name in COUNTS:
            value = summary.get(name) or 0
            if not isinstance(value, int | float) or not 0 <= value < LARGEST:
                raise ValueError(f"{name} is {value!r:.40}, which is no count")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{folder}/summary.json cannot be read ({error})") from error
    whole = Run(
        folder,
        is_offline=is_offline,
        history=history,
        summary=summary,
        status=status_of(folder, summary),
        **facts,
    )
    return _with_tasks(whole, tasks) if tasks else whole


@dataclass(frozen=True)
class _Task:
    """One of several, as ``config.json`` has it."""

    env: str
    settings: dict[str, Any]
    score: Any


def _with_tasks(run: Run, tasks: Mapping[str, _Task]) -> Run:
    """A run of several tasks: with each of them as a run alone, under its own settings."""
    settings = {k: v for k, v in run.settings.items() if not k.startswith("env.tasks.")}
    settings["tasks"] = ", ".join(tasks)
    of_all = {name: task.settings | {"score": task.score} for name, task in tasks.items()}
    path = run.folder / "metrics.jsonl"
    histories = histories_of_tasks(read_records(path), tasks)
    parts = tuple(
        dataclasses.replace(
            run,
            env=task.env,
            settings=settings | _flat({"env": task.settings}),
            history=histories[name],
        )
        for name, task in tasks.items()
    )
    scores = history_of_scores(read_records(path))
    return dataclasses.replace(
        run,
        settings=settings | _flat({"tasks": of_all}),
        tasks=parts,
        scores=scores if scores.evaluations else None,
        measure="mean return",
    )


def experiments_of(runs: Sequence[Run]) -> dict[str, list[Experiment]]:
    """Env -> its experiments, both in the order in which they first come."""
    grouped: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        settings = json.dumps(run.settings, sort_keys=True, default=str)
        grouped.setdefault((run.env, run.agent, settings), []).append(run)
    found: dict[str, list[Experiment]] = {}
    for (env, agent, _), members in grouped.items():
        plays = _plays(members[0])
        others = [
            ms[0] for (_, a, _), ms in grouped.items() if a == agent and plays & _plays(ms[0])
        ]
        label = agent + _differences(members[0], others)
        found.setdefault(env, []).append(Experiment(label, tuple(members)))
    return found


def _plays(run: Run) -> set[str]:
    return {run.env, *(task.env for task in run.tasks)}


def combine(curves: Sequence[Curve]) -> Curve | None:
    """Several seeds as one curve, over the steps that all of them have reached: the interquartile
    mean with its 95 % interval (:mod:`worldloom.evaluation.seeds`); linear between points. A single
    curve stays as it is. Where every seed has one point, these are combined at their mean step;
    others that share no step have no curve together, so the result is None.
    """
    if len(curves) == 1:
        return curves[0]
    first = max(curve.steps[0] for curve in curves)
    last = min(curve.steps[-1] for curve in curves)
    if last < first and all(len(curve.steps) == 1 for curve in curves):
        ends = np.stack([curve.values for curve in curves])
        low, high = bootstrap_interval([ends])
        return Curve(np.mean([curve.steps for curve in curves], axis=0), iqm(ends), low, high)
    if last < first:  # a seed has only just begun
        return None
    own = np.unique(np.concatenate([curve.steps for curve in curves]))
    grid = own[(own >= first) & (own <= last)]
    grid = grid if len(grid) <= GRID_POINTS else np.linspace(first, last, GRID_POINTS)
    values = np.stack([np.interp(grid, curve.steps, curve.values) for curve in curves])
    low, high = bootstrap_interval([values])
    return Curve(grid, iqm(values), low, high)


def check_axis(axis: str | None) -> None:
    """Refuse what curves cannot be over.

    Raises:
        ConfigurationError: Names the axes.
    """
    if axis is not None and axis not in AXES:
        raise ConfigurationError(f"x must be one of {', '.join(AXES)}, got {axis!r}")


def _making(
    settings: Mapping[str, Any],
    names: Sequence[str],
    defaults: RunConfig | ReplayConfig | LearnerConfig,
) -> dict[str, Any]:
    """Settings by name; one that an earlier version did not know is as it is without the flag."""
    return {
        name: settings[name] if name in settings else getattr(defaults, name)
        for name in names
        if name in settings or not dataclasses.is_dataclass(getattr(defaults, name))
    }


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_OF_A_SETTING else f"{text[:MOST_OF_A_SETTING]}..."


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{path}{'agent' if name == 'agent_overrides' else name}.")
        else:
            found[path + name] = value
    return found


def _differences(run: Run, others: Sequence[Run]) -> str:
    """Settings in which experiments differ, as they are in one of them, in brackets."""
    names = sorted({name for other in others for name in other.settings})
    parts = []
    for name in names:
        values = [other.settings.get(name) for other in others]
        if any(value != values[0] for value in values):
            own = str(run.settings.get(name, "default" if name != "tasks" else "this one alone"))
            parts.append(f"{name} {'default' if own == 'None' else _shortened(own)}")
    return f" ({', '.join(parts)})" if parts else ""
