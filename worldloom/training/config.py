"""Settings of offline training. No torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from worldloom.core.config_base import understanding
from worldloom.core.exceptions import CheckpointError, ConfigurationError, nearest
from worldloom.core.files import write_json

__all__ = ["TrainingConfig"]

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("none", "constant", "linear", "cosine")


@understanding
@dataclass(frozen=True)
class TrainingConfig:
    """What a :class:`worldloom.training.Trainer` is told."""

    total_steps: int = 100_000
    """Updates in all, those before a resume included."""
    batch_size: int = 16
    """Windows per update."""
    sequence_length: int = 50
    """Transitions per window."""
    learning_rate: float = 3e-4
    """Step size after the warm-up; at this default the model's own setting is used."""
    grad_clip: float = 100.0
    """Largest global gradient norm, 0 for none; at this default the model's own setting is used."""
    weight_decay: float = 0.0
    """Weight decay of the optimizer."""
    warmup_steps: int = 0
    """Updates over which the step size rises linearly."""
    log_interval: int = 100
    """Updates between log lines."""
    eval_interval: int = 1000
    """Updates between evaluations on held-out windows; each span is an epoch for callbacks."""
    save_interval: int = 10000
    """Updates between checkpoints."""
    output_dir: str = "./outputs"
    """Where checkpoints and logs go."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    seed: int = 42
    """Root of every draw: batches, latents, dropout."""
    mixed_precision: bool = False
    """Compute in bfloat16; weights stay float32."""
    num_workers: int = 0
    """Threads that draw batches ahead; the batches do not depend on it."""
    prefetch_factor: int = 2
    """Batches that each thread keeps ready."""
    optimizer: str = "adamw"
    """adamw, adam or sgd."""
    scheduler: str = "none"
    """Step size over the run: none and constant keep it, linear and cosine lower it to zero at total_steps."""
    ema_decay: float | None = None
    """Keep a running average of the weights with this decay; it is evaluated and returned in place of the last ones."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    eval_batches: int = 4
    """Batches per evaluation."""
    eval_episodes_every: int = 10
    """Every n-th episode is held out for evaluation; 0 holds out none."""
    model_overrides: dict[str, Any] = field(default_factory=dict)
    """Settings of the model to change before training, of those that do not decide its networks."""

    def __post_init__(self) -> None:
        problems = [f"{name} must be {rule}, got {getattr(self, name)!r}" for name, rule, is_right in self._rules() if not is_right]
        if problems:
            raise ConfigurationError("; ".join(problems), "training")

    def _rules(self) -> list[tuple[str, str, bool]]:
        counts = (
            "total_steps",
            "batch_size",
            "sequence_length",
            "log_interval",
            "eval_interval",
            "save_interval",
            "prefetch_factor",
        )
        floors = ("warmup_steps", "num_workers", "weight_decay", "grad_clip", "eval_episodes_every")
        return [
            *((name, "an integer >= 1", _is_count(getattr(self, name), 1)) for name in (*counts, "eval_batches")),
            *((name, "a number >= 0", _is_at_least(getattr(self, name), 0)) for name in floors),
            ("eval_episodes_every", "0 or >= 2", self.eval_episodes_every != 1),
            ("learning_rate", "a number > 0", _is_at_least(self.learning_rate, 0) and self.learning_rate > 0),
            ("optimizer", f"one of {', '.join(OPTIMIZERS)}", self.optimizer in OPTIMIZERS),
            ("scheduler", f"one of {', '.join(SCHEDULES)}", self.scheduler in SCHEDULES),
            (
                "ema_decay",
                "None or in (0, 1)",
                self.ema_decay is None or (_is_at_least(self.ema_decay, 0) and 0 < self.ema_decay < 1),
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigurationError: If a field does not exist; names the nearest one.
        """
        return cls(**data)

    @classmethod
    def known(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The same settings; refuses unknown ones."""
        names = {f.name for f in dataclasses.fields(cls)}
        for name in data:
            if name not in names:
                raise ConfigurationError(f"TrainingConfig has no field {name!r}{nearest(name, names)}; remove or rename it")
        return dict(data)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fields as JSON."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> TrainingConfig:
        """Read a file of :meth:`save`.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        try:
            data = json.loads(Path(path).read_text())
            if not isinstance(data, dict):
                raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not a readable training config ({error})") from error
        return cls.from_dict(data)

    def with_updates(self, **changes: Any) -> TrainingConfig:
        """A copy with fields changed."""
        return self.from_dict(self.to_dict() | changes)

    def resolve_device(self) -> str:
        """``device``, with auto resolved to cuda where there is one and cpu elsewhere."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"


def _is_at_least(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= least


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
