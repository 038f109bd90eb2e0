"""The published results by name: what is run, where it ends, and which published curve it stands
beside. No torch.

The settings are those of a preset of ``worldloom_dist.run.benchmarks``, and what the published
result had otherwise. Sources: the configs and results of DreamerV3's authors
(github.com/danijar/dreamerv3) and of TD-MPC2's (github.com/nicklashansen/tdmpc2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom_dist.plot.reference import Published, find_published
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.presets import find_preset, smoke_settings, with_settings

__all__ = ["MACHINE", "TARGETS", "Target", "find_target", "flags"]

Measured = Literal["evaluation", "training"]
MACHINE = "one core of a server CPU of 2023"
"""Where the expected hours were taken."""
SMOKE_DECISIONS = 600
"""Enough for an episode of DMControl, so that a curve has a point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A published result and how it is run here.

    Attributes:
        name: As it is typed: ``tdmpc2/cup-catch``.
        settings: Names of flags -> values; ``preset`` is the first.
        measured: Episodes that are compared: those of evaluations, or those of training.
        published: Whose curve it is in ``plot/published.json``; empty where no one has published
            one for this task.
        task: Name of its task there.
        goal: Return that counts as solved, where a task has one; Gymnasium's registry says it.
        hours: Expected for one seed on :data:`MACHINE`; None where that would take days.
        differs: What is otherwise than in the published runs; a sentence, may be empty.
    """

    name: str
    settings: Mapping[str, Any]
    measured: Measured
    published: str = ""
    task: str = ""
    goal: float | None = None
    hours: float | None = None
    differs: str = ""

    @property
    def env_steps(self) -> int:
        """Where it ends."""
        return int(self.settings["env_steps"])

    @property
    def algorithm(self) -> str:
        """Its folder below ``worldloom.algorithms``."""
        return str(self.settings["agent"]).partition(":")[0]

    def config(self) -> RunConfig:
        """The run, without a seed and a folder."""
        rest = {name: value for name, value in self.settings.items() if name != "preset"}
        return with_settings(find_preset(str(self.settings["preset"])), rest)

    def curve(self) -> Published | None:
        """The published curve; None where there is none."""
        if not self.published:
            return None
        found = [one for one in find_published(self.task) if one.by == self.published]
        return found[0]

    def last_compared(self) -> int | None:
        """Index of the last point of the published curve that a whole run is compared at; None
        where there is none.
        """
        published = self.curve()
        if published is None:
            return None
        ends = published.curve.steps if published.windows is None else published.windows[:, 1]
        reached = [i for i, end in enumerate(ends) if end <= self.env_steps]
        return reached[-1] if reached else None

    def ending_at(self, env_steps: int) -> Target:
        """With another end: the hours in proportion, and a replay that evicts no row of a longer
        run, whose curve would lack episodes.
        """
        settings = {**self.settings, "env_steps": env_steps}
        made = self.config()
        decisions = env_steps // (made.env.resolved().action_repeat or 1)
        rows = decisions + decisions // 10  # the first row of an episode is one more
        if env_steps > self.env_steps and rows > made.replay.capacity_steps:
            settings["replay.capacity_steps"] = rows
        hours = self.hours
        if hours is not None and env_steps != self.env_steps:
            hours = float(f"{hours * env_steps / self.env_steps:.2g}")
        return dataclasses.replace(self, settings=settings, hours=hours)

    def smaller(self) -> Target:
        """The same path through the system, in a minute or two."""
        repeat = self.config().env.resolved().action_repeat or 1
        less = {**self.settings, **smoke_settings(self.algorithm, repeat)}
        less["env_steps"] = SMOKE_DECISIONS * repeat
        return dataclasses.replace(self, settings=less)


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command line."""
    words = []
    for name, value in settings.items():
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        words += [f"--{name.replace('_', '-')}", shown]
    return words


_ALONE = {
    "workers": 1,
    "runtime": "local",
    "learner.threads": 1,
    "replay.shards": 1,
    "learner.checkpoint_every_steps": 2_000,
    "eval_every": 0,
    "eval_episodes": 10,
}
"""All roles in one process with one thread, in lock-step: exact, and exactly resumed."""


_RUNNING = "windows also from the running episode (theirs: complete ones)"
_BY_CHUNKS = "64 decisions, then the updates that they make due (theirs: after each)"
_REMOTE = "roles apart, so that who acts has weights that are seconds old"


def _tdmpc2(task: str, env: str) -> Target:
    return Target(
        name=f"tdmpc2/{task}",
        settings={
            "preset": "tdmpc2-dmc",
            "env": env,
            "agent": "tdmpc2:1m",
            "env_steps": 100_000,
            **_ALONE,
        },
        measured="evaluation",
        published="tdmpc2",
        task=f"dmc/{task}",
        hours=4.5,
        differs=f"1 million parameters (theirs: 5 million); {_BY_CHUNKS}; {_RUNNING}",
    )


def _dreamerv3(task: str) -> Target:
    return Target(
        name=f"dreamerv3/{task}",
        settings={
            "preset": "dmc-proprio",
            "env": f"dmc:{task}",
            "env.action_repeat": 2,
            "train_ratio": 512.0,
            "env_steps": 65_000,  # the window of the point at 50,000
            **_ALONE,
        },
        measured="training",
        published="dreamerv3",
        task=f"dmc/{task}",
        hours=3.3,
        differs=f"size1m and one env (theirs: 12 million parameters); {_BY_CHUNKS}",
    )


_ALL = (
    _tdmpc2("cup-catch", "dmc:ball_in_cup-catch"),
    _tdmpc2("cartpole-swingup", "dmc:cartpole-swingup"),
    _tdmpc2("cartpole-balance", "dmc:cartpole-balance"),
    _tdmpc2("walker-stand", "dmc:walker-stand"),
    _dreamerv3("cartpole-swingup"),
    _dreamerv3("walker-stand"),
    Target(
        name="dreamerv3/walker-stand-pixels",
        settings={
            "preset": "dmc-vision",
            "env": "dmc:walker-stand",
            "agent": "dreamerv3:size1m",
            "env.action_repeat": 2,
            "env_steps": 60_000,
            **_ALONE,
        },
        measured="training",
        published="dreamerv3-pixels",
        task="dmc/walker-stand",
        hours=4.2,
        differs=f"size1m and one env (theirs: about 8, and no size is said); {_BY_CHUNKS}",
    ),
    Target(
        name="gym/cartpole",
        settings={"preset": "gym-control", "env": "gym:CartPole-v1", "eval_episodes": 20},
        measured="evaluation",
        goal=475.0,
        hours=0.4,
    ),
    Target(
        name="gym/pendulum",
        settings={"preset": "quick", "env": "gym:Pendulum-v1", "eval_videos": 0},
        measured="evaluation",
        hours=0.1,
    ),
    Target(
        name="dreamerv3/pong",
        settings={"preset": "atari100k", "env": "atari:pong", "env_steps": 400_000},
        measured="training",
        published="dreamerv3-atari100k",
        task="atari/pong",
        differs=f"{_REMOTE}; train ratio 256, as in the authors' configs (the paper: 128)",
    ),
    Target(
        name="dreamerv3/breakout",
        settings={
            "preset": "atari100k",
            "env": "atari:breakout",
            "agent": "dreamerv3:size50m",
            "env_steps": 210_000,
        },
        measured="training",
        published="dreamerv3-atari100k",
        task="atari/breakout",
        differs="size50m (the published runs: 200 million parameters); train ratio 256, as in the "
        f"authors' configs (the paper: 128); {_REMOTE}",
    ),
    Target(
        name="dreamerv3/walker-walk",
        settings={
            "preset": "dmc-proprio",
            "env": "dmc:walker-walk",
            "agent": "dreamerv3:size25m",
            "env.action_repeat": 2,
            "train_ratio": 512.0,
            "env_steps": 500_000,
        },
        measured="training",
        published="dreamerv3",
        task="dmc/walker-walk",
        differs=f"size25m (the published runs: 12 million parameters); 16 workers; {_REMOTE}",
    ),
    Target(
        name="tdmpc2/walker-walk",
        settings={"preset": "tdmpc2-dmc", "env": "dmc:walker-walk", "env_steps": 1_000_000},
        measured="evaluation",
        published="tdmpc2",
        task="dmc/walker-walk",
        differs=f"{_REMOTE}; {_RUNNING}",
    ),
    Target(
        name="tdmpc2/halfcheetah",
        settings={"preset": "mujoco", "env": "gym:HalfCheetah-v5", "agent": "tdmpc2:19m"},
        measured="evaluation",
        differs=f"its authors published nothing for this task; {_REMOTE}; {_RUNNING}",
    ),
)


def _whole(target: Target) -> Target:
    """With the end that its preset has, where it names none."""
    made = find_preset(str(target.settings["preset"]))
    known = {"env_steps": made.env_steps, "agent": made.agent}
    return dataclasses.replace(target, settings={**known, **target.settings})


TARGETS: Mapping[str, Target] = {target.name: _whole(target) for target in _ALL}
"""By name, in the order in which they are listed."""


def find_target(name: str) -> Target:
    """The published result of a name.

    Raises:
        ConfigurationError: If there is none; offers the nearest one.
    """
    if name not in TARGETS:
        raise ConfigurationError(
            f"TASK: there is no published result {name!r}{nearest(name, TARGETS)} (there are: "
            f"{', '.join(TARGETS)})"
        )
    return TARGETS[name]
