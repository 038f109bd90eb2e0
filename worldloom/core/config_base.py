"""What the settings of every public world model share: fields, checks, synonyms, files. No torch.

The kinds of models are in ``worldloom.core.config``, where all of these names are meant to be
imported from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from worldloom.core.exceptions import CheckpointError, ConfigurationError, nearest
from worldloom.core.fields import NOT_NEGATIVE, POSITIVE, Bounds, normalize
from worldloom.core.files import expanded, open_together, write_json
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_open, read_plain
from worldloom.core.state_kinds import DynamicsType, LatentType

__all__ = [
    "CONFIG_CLASSES",
    "MODEL_CLASSES",
    "WorldModelConfig",
    "check_conflicts",
    "not_among",
    "sized",
    "understanding",
]

Config = TypeVar("Config")
DTYPES = ("float32", "float16", "bfloat16")
ACTION_TYPES = ("continuous", "discrete")
FILE_FACTS = ("files", "format")
"""Entries of a saved ``config.json`` beside the settings."""
CONFIG_CLASSES: dict[str, type[WorldModelConfig]] = {}
"""Which class a ``model_type`` has; filled where the classes are defined, and by
``WorldModelRegistry.register``.
"""
MODEL_CLASSES: dict[str, type] = {}
"""Which class the models of a ``model_type`` have; filled when the classes are imported, and by
``WorldModelRegistry.register``.
"""


def understanding(cls: type[Config]) -> type[Config]:
    """Let a config's constructor understand synonyms, and refuse unknown fields by naming the
    nearest one.
    """
    build = cls.__init__

    @functools.wraps(build)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        """Build with the names that the config knows."""
        build(self, *args, **self.known(kwargs))

    cls.__init__ = construct  # type: ignore[method-assign]
    return cls


@understanding
@dataclass(frozen=True)
class WorldModelConfig:
    """What every world model is told."""

    BOUNDS: ClassVar[Mapping[str, Bounds]] = {
        **dict.fromkeys(("obs_shape", "action_dim", "latent_dim", "hidden_dim"), Bounds(1)),
        **dict.fromkeys(("deter_dim", "stoch_dim", "grad_clip"), NOT_NEGATIVE),
        "learning_rate": POSITIVE,
    }
    """Which numbers the fields may hold."""

    model_type: str = "base"
    """Which model."""
    model_name: str = "unnamed"
    """Name of the preset, or of your own."""
    obs_shape: tuple[int, ...] = (3, 64, 64)
    """Shape of one observation; three axes are an image, channels first or last."""
    action_dim: int = 6
    """Components of a continuous action, or choices of a discrete one."""
    action_type: str = "continuous"
    """continuous, or discrete (integers are then accepted as actions and become one-hot codes)."""
    latent_type: str = LatentType.DETERMINISTIC
    """What a latent state is made of."""
    latent_dim: int = 256
    """Size of the latent state."""
    deter_dim: int = 256
    """Size of its deterministic part."""
    stoch_dim: int = 32
    """Size of its stochastic part."""
    dynamics_type: str = DynamicsType.MLP
    """How the latent state is carried forward."""
    hidden_dim: int = 512
    """Width of hidden layers."""
    learning_rate: float = 3e-4
    """What Trainer uses when TrainingConfig leaves its own learning rate at the default."""
    grad_clip: float = 100.0
    """What Trainer uses when TrainingConfig leaves its own gradient limit at the default."""
    device: str = "cuda"
    """Where the model is built; cuda means the CPU on a machine without CUDA, auto the same without
    a log line.
    """
    dtype: str = "float32"
    """What matrix products compute in; weights stay float32."""

    def __post_init__(self) -> None:
        if isinstance(self.obs_shape, numbers.Integral):
            self._set(obs_shape=(self.obs_shape,))
        problems = normalize(self, self.BOUNDS)
        if not problems:
            self._derive()
            problems = [text for is_wrong, text in self._checks() if is_wrong]
        if problems:
            name = self.model_name
            raise ConfigurationError("; ".join(problems), name if isinstance(name, str) else None)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _derive(self) -> None:
        """Fill in what follows from other fields."""

    def _checks(self) -> list[tuple[bool, str]]:
        """Whether each rule is broken, and the sentence that says so."""
        own = [
            name
            for name, kind in CONFIG_CLASSES.items()
            if kind is not WorldModelConfig and isinstance(self, kind)
        ]
        is_foreign = (
            type(self) in CONFIG_CLASSES.values()
            and bool(own)
            and self.model_type.lower() not in own
        )
        kind = type(self).__name__
        return [
            (
                not self.obs_shape,
                "obs_shape must have at least one axis, got (); pass the shape of "
                "one observation, e.g. (4,)",
            ),
            (
                is_foreign,
                f"model_type of a {kind} must be one of {', '.join(own)}, got "
                f"{self.model_type!r}; drop it",
            ),
            not_among(self, "action_type", ACTION_TYPES),
            not_among(self, "dtype", DTYPES),
        ]

    @property
    def is_image(self) -> bool:
        """True when an observation has three axes."""
        return len(self.obs_shape) == 3

    @property
    def obs_size(self) -> int:
        """Numbers in one observation."""
        return math.prod(self.obs_shape)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            name: list(v) if isinstance(v, tuple) else v
            for name, v in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`; documented synonyms are understood.

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
        """The same settings under the fields' own names; refuses unknown ones."""
        return cls.merged({}, data)

    @classmethod
    def merged(cls, fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with others put over them, under the fields' own names; refuses unknown ones.

        What a saved ``config.json`` says about its files is no setting and is passed over.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        result = dict(fields)
        for name, value in changes.items():
            if name in FILE_FACTS:
                continue
            own = name if name in names else cls.synonyms().get(name, name)
            if own not in names:
                hint = nearest(name, names)
                raise ConfigurationError(
                    f"{cls.__name__} has no field {name!r}, got {value!r}{hint}; "
                    "remove or rename it"
                )
            result[own] = tuple(value) if isinstance(value, list) else value
        return result

    @classmethod
    def synonyms(cls) -> dict[str, str]:
        """Other documented spellings of fields."""
        return {}

    def replaced(self, **changes: Any) -> Self:
        """A copy with fields changed, checked like a new one."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return type(self)(**self.merged(own, changes))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fields as JSON; a folder gets a ``config.json``."""
        target = expanded(path)
        target = target / "config.json" if target.is_dir() or not target.suffix else target
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, self.to_dict())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> WorldModelConfig:
        """Read a file or folder of :meth:`save`; ``model_type`` decides the class.

        Raises:
            CheckpointError: If the file is missing or not such a file.
        """
        source = expanded(path)
        source = source / "config.json" if source.is_dir() or not source.suffix else source
        try:
            with open_together(source.parent, [source.name]) as files:
                text = read_open(files[source.name], source) if files else read_plain(source)
        except OSError as error:
            raise CheckpointError(f"{source}: not a readable config.json ({error})") from error
        return cls.parsed(text, source)

    @classmethod
    def parsed(cls, text: bytes, source: Path) -> WorldModelConfig:
        """The config that the text of a file of :meth:`save` holds; ``source`` is how messages call
        it.

        Raises:
            CheckpointError: If it is not such a text.
        """
        try:
            data = parse_json(text)
            if not isinstance(data, dict):
                raise CheckpointError(
                    f"{source}: expected a JSON object, got {type(data).__name__}"
                )
        except ValueError as error:
            raise CheckpointError(f"{source}: not a readable config.json ({error})") from error
        kind = CONFIG_CLASSES.get(str(data.get("model_type")).lower(), cls)
        try:
            return kind.from_dict(data)
        except (ConfigurationError, TypeError, ValueError) as error:
            raise CheckpointError(f"{source}: does not describe a model ({error})") from error


def check_conflicts(folder: Path, config: WorldModelConfig, wanted: Mapping[str, Any]) -> None:
    """Refuse settings that a saved model does not have.

    Raises:
        ConfigurationError: Names field, saved and wanted value.
    """
    for name, value in config.known(wanted).items():
        saved = getattr(config, name)
        # what cannot be is told below, beside what is
        with contextlib.suppress(ConfigurationError):
            value = getattr(config.replaced(**{name: value}), name)
        if value not in (saved, "auto"):
            raise ConfigurationError(
                f"{name}: the model in {folder} was saved with {saved!r}, got "
                f"{value!r}; drop the argument, or create a new model"
            )


def not_among(config: Any, name: str, allowed: tuple[str, ...]) -> tuple[bool, str]:
    """The rule that a field is one of several words."""
    value = getattr(config, name)
    return value not in allowed, f"{name} must be one of {', '.join(allowed)}, got {value!r}"


def sized(
    cls: Any, sizes: Mapping[str, Mapping[str, Any]], size: str, changes: Mapping[str, Any]
) -> Any:
    """The config of a size with fields changed."""
    if size not in sizes:
        raise ConfigurationError(
            f"Unknown size {size!r}{nearest(size, sizes)}; available: {', '.join(sizes)}"
        )
    return cls(**cls.merged({"model_name": size, **sizes[size]}, changes))
