"""Settings of offline training. No torch."""

from __future__ import annotations

import dataclasses
import os.path
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, ClassVar

from worldloom.core.config_base import not_among, understanding
from worldloom.core.devices import resolve_device
from worldloom.core.exceptions import CheckpointError, ConfigurationError, nearest
from worldloom.core.fields import NOT_NEGATIVE, POSITIVE, Bounds, normalize
from worldloom.core.files import expanded, write_json
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_plain

__all__ = ["TrainingConfig"]

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("none", "constant", "linear", "cosine")


@understanding
@dataclass(frozen=True)
class TrainingConfig:
    """What a :class:`worldloom.training.Trainer` is told."""

    BOUNDS: ClassVar[Mapping[str, Bounds]] = {
        **dict.fromkeys(
            ("total_steps", "batch_size", "sequence_length", "prefetch_factor", "eval_batches"),
            Bounds(1),
        ),
        **dict.fromkeys(("log_interval", "eval_interval", "save_interval"), Bounds(1)),
        **dict.fromkeys(
            (
                "warmup_steps",
                "num_workers",
                "weight_decay",
                "grad_clip",
                "eval_episodes_every",
                "seed",
            ),
            NOT_NEGATIVE,
        ),
        "learning_rate": POSITIVE,
        "ema_decay": Bounds(above=0, below=1),
    }
    """Which numbers the fields may hold."""

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
    """Step size over the run: none and constant keep it, linear and cosine lower it to zero at
    total_steps.
    """
    ema_decay: float | None = None
    """Keep a running average of the weights with this decay; it is evaluated and returned in place
    of the last ones.
    """
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    eval_batches: int = 4
    """Batches per evaluation."""
    eval_episodes_every: int = 10
    """Every n-th episode is held out for evaluation; 0 holds out none."""
    model_overrides: dict[str, Any] = field(default_factory=dict)
    """Settings of the model to change before training, of those that do not decide its networks."""

    def __post_init__(self) -> None:
        problems = normalize(self, self.BOUNDS)
        if not problems:
            object.__setattr__(self, "output_dir", os.path.expanduser(self.output_dir))
            rules = (
                not_among(self, "optimizer", OPTIMIZERS),
                not_among(self, "scheduler", SCHEDULES),
                self._lone_fold(),
            )
            problems = [text for is_wrong, text in rules if is_wrong]
        if problems:
            raise ConfigurationError("; ".join(problems), "training")

    def _lone_fold(self) -> tuple[bool, str]:
        text = (
            "eval_episodes_every must be 0 (hold out none) or >= 2, got 1; with 1 "
            "nothing would be left to train on"
        )
        return self.eval_episodes_every == 1, text

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigurationError: If a field does not exist; names the nearest one.
        """
        if not isinstance(data, Mapping):
            kind = type(data).__name__
            raise ConfigurationError(
                f"the settings of a {cls.__name__} must be a dict, got {kind}; pass "
                "what to_dict gives"
            )
        return cls(**data)

    @classmethod
    def known(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The same settings; refuses unknown ones."""
        names = {f.name for f in dataclasses.fields(cls)}
        for name in data:
            if name not in names:
                raise ConfigurationError(
                    f"TrainingConfig has no field {name!r}{nearest(name, names)}; "
                    "remove or rename it"
                )
        return dict(data)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fields as JSON."""
        target = expanded(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, self.to_dict())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> TrainingConfig:
        """Read a file of :meth:`save`.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        try:
            data = parse_json(read_plain(expanded(path)))
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
        return resolve_device(self.device)
