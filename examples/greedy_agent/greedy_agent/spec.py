"""Settings, and what the system must know. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.protocol import AgentSpec, SamplingSpec
from worldloom.core.specs import EnvSpec

__all__ = [
    "ARCHITECTURE",
    "DEFAULT_PRESET",
    "ENV_DEFAULTS",
    "PRESETS",
    "GreedyConfig",
    "make_spec",
]


@dataclass(frozen=True, kw_only=True)
class GreedyConfig:
    """Each field is a flag, ``--agent.FIELD``."""

    name: str = "greedy:small"
    """Filled in by ``--agent``."""
    width: int = 64
    """Width of the reward model."""
    candidates: int = 64
    """Random actions that are compared."""
    noise: float = 0.2
    """Standard deviation of the noise on actions while exploring."""
    lr: float = 3e-3
    """Learning rate."""
    batch_size: int = 64
    """Transitions per update."""

    def __post_init__(self) -> None:
        wrong = [
            f"agent.{name} must be >= 1, got {getattr(self, name)}"
            for name in ("width", "candidates", "batch_size")
            if getattr(self, name) < 1
        ]
        if not self.lr > 0:
            wrong.append(f"agent.lr must be > 0, got {self.lr}")
        if self.noise < 0:
            wrong.append(f"agent.noise must be >= 0, got {self.noise}")
        if wrong:
            raise ConfigurationError("; ".join(wrong))


def _wide() -> GreedyConfig:
    return GreedyConfig(width=256, candidates=256)


PRESETS: Mapping[str, Callable[[], GreedyConfig]] = {"small": GreedyConfig, "wide": _wide}
DEFAULT_PRESET = "small"
ENV_DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
"""Settings of envs that it was published with, by suite."""
ARCHITECTURE = frozenset({"width"})
"""Settings that decide the shape of the weights; a resumed run keeps them."""


def make_spec(config: GreedyConfig, env: EnvSpec) -> AgentSpec:
    """Windows of two rows, one update per agent step.

    Raises:
        ConfigurationError: If an action is not continuous.
    """
    if not env.has_continuous_actions_only:
        raise ConfigurationError(f"agent {config.name} acts in continuous spaces only: {env.name}")
    return AgentSpec(
        name=config.name,
        sampling=SamplingSpec(batch_size=config.batch_size, length=1, bootstrap=1),
        train_ratio=config.batch_size,
        prefill_agent_steps=200,
    )
