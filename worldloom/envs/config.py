"""Which environment, with which settings, and how long it may take. Imports neither gymnasium nor
torch.

``EnvConfig`` is what a person types and what a run folder records; ``None`` means "what the suite
does by default". Three layers are merged, the first one that says something wins: the user's flags,
the agent's published settings for the suite (``EnvConfig.with_defaults``), the suite's own defaults
(``EnvConfig.resolved``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from worldloom.core.exceptions import ConfigurationError, nearest
from worldloom.core.fields import normalize

__all__ = [
    "NEUTRAL",
    "RENDERED",
    "SUITES",
    "TASKS_SUITE",
    "EnvConfig",
    "EnvLimits",
    "family_of",
]

TASKS_SUITE = "mt"
"""Of an ``env`` that names several: a list with commas, ``mt:SET`` or ``mt:FILE.toml``."""

SUITES: Mapping[str, Mapping[str, Any]] = {
    "gym": {},
    "mujoco": {},
    "atari": {
        "action_repeat": 4,
        "time_limit": 27_000,
        "image_size": 96,
        "grayscale": True,
        "sticky": 0.25,
        "noops": 30,
        "full_actions": True,
    },
    "dmc": {"image_size": 64},
    "crafter": {"image_size": 64},
    "toy": {},
    "rllib": {},
    "module": {},
    "rpc": {},
    TASKS_SUITE: {},
    "none": {},
}
"""Suite -> settings it runs with unless told otherwise (Atari: the settings of DreamerV3, where
27,000 decisions are 108,000 frames).
"""

FAMILIES = {"mujoco": "gym"}
"""Suites that are another spelling of the tasks of one."""

NEUTRAL: Mapping[str, Any] = {
    "action_repeat": 1,
    "grayscale": False,
    "frame_stack": 1,
    "pixels": False,
}
"""Values of settings that change nothing."""
RENDERED = ("gym", "mujoco", "dmc")
"""Suites whose envs can be observed as they are rendered."""
ATARI_ONLY = ("sticky", "noops", "full_actions", "ale_vector")
ADDRESS = re.compile(r"[^:/\s]+:\d{1,5}(/.+)?|\[[0-9a-fA-F:.]+\]:\d{1,5}(/.+)?")
"""``HOST:PORT`` and perhaps a world."""
POSITIVE = ("action_repeat", "time_limit", "image_size", "frame_stack")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvConfig:
    """An environment and its settings.

    Raises:
        ConfigurationError: Names every wrong field at once.

    Example:
        >>> EnvConfig(env="Pendulum-v1").suite
        'gym'
        >>> EnvConfig(env="atari:pong").resolved().action_repeat
        4
    """

    env: str = "gym:Pendulum-v1"
    """gym:ID, atari:GAME, dmc:TASK, mujoco:ID, toy:NAME, rpc:ADDR, module:callable, mt:SET, A,B."""
    action_repeat: int | None = None
    """Simulator steps per decision; rewards are summed; it ends with the episode."""
    time_limit: int | None = None
    """Decisions per episode; may exceed the own limit of a gym id, not that of another env."""
    image_size: int | None = None
    """Height and width to which images are resized."""
    grayscale: bool | None = None
    """Turn RGB images into one channel."""
    frame_stack: int | None = None
    """Images of this many decisions are stacked along the channels, oldest first."""
    pixels: bool | None = None
    """Observe rendered images instead of state (gym, mujoco and dmc)."""
    camera: int | None = None
    """Camera that renders pixels (dmc); by default the task's usual one."""
    sticky: float | None = None
    """Probability that Atari repeats the previous action instead of the new one."""
    noops: int | None = None
    """Largest number of random no-op frames at the start of an Atari episode."""
    full_actions: bool | None = None
    """Offer all 18 Atari actions instead of the game's minimal set."""
    ale_vector: bool | None = None
    """Step Atari in the ALE's own vector env (C++ threads; it shrinks images otherwise)."""
    tasks: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What each of several tasks is (not a flag: filled from --env A,B or mt:...)."""

    def __post_init__(self) -> None:
        problems = normalize(self, prefix="env.")
        problems = problems or [*self._name_problems(), *self._number_problems()]
        if problems:
            raise ConfigurationError("; ".join(problems))

    @property
    def suite(self) -> str:
        """The part before the colon; ``gym`` when there is none, ``module`` for
        ``package.module:callable``.
        """
        return _split(self.env)[0]

    @property
    def family(self) -> str:
        """The suite for an agent's published settings, however the task is spelled: Gymnasium's
        MuJoCo tasks are ``gym``.
        """
        return family_of(self.env)

    @property
    def name(self) -> str:
        """What the suite knows the environment by."""
        return _split(self.env)[1]

    @property
    def is_none(self) -> bool:
        """True for offline training, without an environment."""
        return self.suite == "none"

    def with_defaults(self, defaults: Mapping[str, Mapping[str, Any]]) -> EnvConfig:
        """Fill what is still open from a table family -> settings (an agent's published
        settings).
        """
        return self._filled(defaults.get(self.family, {}))

    def resolved(self) -> EnvConfig:
        """Fill what is still open from the suite's defaults. What stays None has no effect for this
        env.
        """
        return self._filled({**NEUTRAL, **SUITES[self.suite]})

    def settings(self) -> dict[str, Any]:
        """Every setting that is not None, without the name: what a checkpoint records."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if not self.tasks:  # or every checkpoint of one task would have another env than before
            del fields["tasks"]
        return {
            name: value for name, value in fields.items() if value is not None and name != "env"
        }

    def parts(self) -> tuple[EnvConfig, ...]:
        """The env of each task alone; this one where there is but one.

        What is set for the whole holds for every task that does not say otherwise.
        """
        if not self.tasks:
            return (self,)
        try:
            return tuple(
                dataclasses.replace(self, env=task["env"], **{**task["settings"], "tasks": {}})
                for task in self.tasks.values()
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"env.tasks of {self.env!r} cannot be read ({error!r}); restore config.json from "
                "a copy"
            ) from error

    @property
    def played(self) -> str:
        """The name of the env; of several tasks the names of all that are built, with commas.

        Raises:
            ConfigurationError: If it names several tasks and does not hold what they are.
        """
        if self.suite == TASKS_SUITE and not self.tasks:
            raise ConfigurationError(
                f"env {self.env!r} names several tasks, and env.tasks does not say which; restore "
                "config.json from a copy"
            )
        return ",".join(part.env for part in self.parts())

    @classmethod
    def from_settings(cls, env: str, settings: Mapping[str, Any]) -> EnvConfig:
        """Inverse of :meth:`settings`: the same wrappers for evaluation as for training.

        Raises:
            ConfigurationError: If a setting does not exist.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in settings:
            if name not in known:
                raise ConfigurationError(
                    f"env setting {name!r} does not exist{nearest(name, known)}"
                )
        return cls(env=env, **settings)

    def _filled(self, defaults: Mapping[str, Any]) -> EnvConfig:
        return dataclasses.replace(
            self, **{k: v for k, v in defaults.items() if getattr(self, k) is None}
        )

    def _name_problems(self) -> list[str]:
        suite, name = _split(self.env)
        if self.tasks and suite != TASKS_SUITE:
            return [f"env.tasks is for a list of envs, and env {self.env!r} is one; leave it out"]
        strange = [name for name, entry in self.tasks.items() if not _is_task(entry)]
        if strange:
            return [f"env.tasks: {strange[0]!r} is no task; restore config.json from a copy"]
        if suite == "none":
            return []
        if suite == "module":
            module, _, attribute = name.partition(":")
            if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
                return [
                    f"env {self.env!r}: no suite {module!r}{nearest(module, SUITES)} "
                    f"(suites: {_suite_names()})"
                ]
            return []
        if not name:
            example = "mt:dmc10" if suite == TASKS_SUITE else "gym:Pendulum-v1"
            return [f"env {self.env!r}: a name must follow the colon, for example {example}"]
        if suite == "rpc" and not ADDRESS.fullmatch(name):
            return [f"env {self.env!r}: expected rpc:HOST:PORT, or rpc:HOST:PORT/WORLD"]
        return []

    def _number_problems(self) -> list[str]:
        problems = []
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"env.{name} must be >= 1, got {value}")
        if self.sticky is not None and not 0 <= self.sticky < 1:
            problems.append(f"env.sticky must be in [0, 1), got {self.sticky}")
        if self.noops is not None and self.noops < 0:
            problems.append(f"env.noops must be >= 0, got {self.noops}")
        if self.suite != "atari":
            used = [name for name in ATARI_ONLY if getattr(self, name) is not None]
            problems += [
                f"env.{name} is for atari only, and the env is {self.env!r}; leave it out"
                for name in used
            ]
        if self.suite == TASKS_SUITE and (self.pixels or self.camera is not None):
            return [
                *problems,
                f"env.{'pixels' if self.pixels else 'camera'} is for one task, and env "
                f"{self.env!r} names several, whose observations are vectors; leave it out",
            ]
        if self.pixels and self.suite in ("toy", "rllib", "rpc", "module", "crafter"):
            problems.append(
                f"env.pixels is for {', '.join(RENDERED)} only, and the env is "
                f"{self.env!r}; leave it out"
            )
        if self.camera is not None and self.suite != "dmc":
            problems.append(
                f"env.camera is for dmc only, and the env is {self.env!r}; leave it out"
            )
        return problems


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvLimits:
    """How long an environment may take and how often it may fail."""

    step_timeout_s: float = 60.0
    """Seconds that one decision may take before a supervised env is killed."""
    reset_timeout_s: float = 120.0
    """Seconds that a reset may take."""
    start_timeout_s: float = 120.0
    """Seconds that starting an env's process, building it and its first reset may take."""
    grace_s: float = 1.0
    """Seconds after which the others go on without a late supervised env; infinite: never."""
    max_failures: int = 5
    """This many failures within the window put an env into quarantine: it is not built again."""
    failure_window_s: float = 600.0
    """Seconds after which a failure is forgotten."""
    backoff_s: float = 0.2
    """Pause before the second rebuild within a window; it doubles with each further one."""
    max_backoff_s: float = 30.0
    """Longest pause between two rebuilds."""
    memory_gb: float | None = None
    """GB (1e9 bytes) that one supervised env may hold (default: its part, when memory is short)."""
    envs_here: int | None = None
    """Envs that share this machine's memory (default: those of the vector)."""

    def __post_init__(self) -> None:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        problems = [
            f"env limit {name} must be > 0, got {value}"
            for name, value in fields.items()
            if value is not None and not value > 0
        ]
        if problems:
            raise ConfigurationError("; ".join(problems))


def family_of(env: str) -> str:
    """See :attr:`EnvConfig.family`.

    >>> family_of("HalfCheetah-v5"), family_of("gym:HalfCheetah-v5"), family_of("mujoco:Ant-v5")
    ('gym', 'gym', 'gym')
    """
    suite = _split(env)[0]
    return FAMILIES.get(suite, suite)


def _is_task(entry: Any) -> bool:
    """True for what can say which env a task is."""
    return (
        isinstance(entry, Mapping)
        and isinstance(entry.get("env"), str)
        and isinstance(entry.get("settings"), Mapping)
    )


def _split(env: str) -> tuple[str, str]:
    prefix, colon, rest = env.strip().partition(":")
    if "," in env:
        return TASKS_SUITE, env.strip()
    if prefix == "none" and not rest:
        return "none", ""
    if not colon:
        return "gym", prefix
    if prefix in SUITES and prefix not in ("module", "none"):
        return prefix, rest
    return "module", env.strip()


def _suite_names() -> str:
    return ", ".join(sorted(set(SUITES) - {"module", "none"})) + ", or package.module:callable"
