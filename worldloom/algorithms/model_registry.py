"""Which world models exist: types, presets, aliases, and how a name or a folder becomes a config or
a model. No torch.

Model classes are named here as text and imported when one is needed; more can be registered.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from worldloom.algorithms.configs import DreamerV3Config, MLPConfig, TDMPC2Config, WorldModelConfig
from worldloom.algorithms.dreamerv3 import config as dreamerv3
from worldloom.algorithms.mlp import config as mlp
from worldloom.algorithms.tdmpc2 import config as tdmpc2
from worldloom.core.config_base import CONFIG_CLASSES, MODEL_CLASSES
from worldloom.core.exceptions import ConfigurationError, ModelNotFoundError, nearest
from worldloom.core.files import expanded

__all__ = [
    "TYPE_ALIASES",
    "AutoConfig",
    "AutoWorldModel",
    "UnknownModelError",
    "WorldModelRegistry",
    "refuse_file",
]

TYPE_ALIASES: dict[str, str] = {
    "dreamerv3": "dreamer",
    "dreamer": "dreamer",
    "tdmpc2": "tdmpc2",
    "tdmpc": "tdmpc2",
}
"""Spellings of the two published model types."""
BUILT_IN: dict[str, str] = {
    "dreamer": "worldloom.algorithms.dreamerv3.world_model:DreamerV3WorldModel",
    "tdmpc2": "worldloom.algorithms.tdmpc2.world_model:TDMPC2WorldModel",
    "mlp": "worldloom.algorithms.mlp.world_model:MLPWorldModel",
}


class UnknownModelError(ModelNotFoundError):
    """A name is not among those that exist.

    Args:
        problem: First words of the message.
        model_name, available: See :class:`ModelNotFoundError`.
    """

    def __init__(self, problem: str, model_name: str, available: Any = ()) -> None:
        super().__init__(model_name, available)
        self.problem = problem
        self.args = (problem, model_name, self.available)

    def __str__(self) -> str:
        hint = nearest(self.model_name, self.available)
        if not self.available:
            return self.problem
        return f"{self.problem} {self.model_name!r}{hint} (available: {', '.join(self.available)})"


def refuse_file(path: Path) -> None:
    """Say what to give instead of a file, where a model is asked for.

    Raises:
        ConfigurationError: If ``path`` is a file.
    """
    if not path.is_file():
        return
    if (path.parent / "config.json").is_file():
        way_out = f"give its folder, {str(path.parent)!r}"
    else:
        way_out = (
            "give a folder that save_pretrained wrote; a Trainer's checkpoint is "
            "read by Trainer(model, config).load_checkpoint, "
            "and model.save_pretrained then writes such a folder"
        )
    raise ConfigurationError(
        "model must be a preset such as 'mlp:small' or a folder, got the file "
        f"{str(path)!r}; {way_out}"
    )


class WorldModelRegistry:
    """Types of world models and their presets.

    Example:
        >>> from worldloom.core.config import WorldModelConfig
        >>> @WorldModelRegistry.register("mine", WorldModelConfig)
        ... class Mine:
        ...     def __init__(self, config):
        ...         self.config = config
        >>> WorldModelRegistry.register_preset("mine:tiny", {"latent_dim": 8})
        >>> WorldModelRegistry.from_pretrained("mine:tiny").config.latent_dim
        8
        >>> WorldModelRegistry.unregister("mine")
    """

    _config_registry: ClassVar[dict[str, type[WorldModelConfig]]] = {
        "dreamer": DreamerV3Config,
        "tdmpc2": TDMPC2Config,
        "mlp": MLPConfig,
    }
    _model_registry: ClassVar[dict[str, Any]] = dict(BUILT_IN)
    _presets: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "dreamer": dict(dreamerv3.PUBLIC_PRESETS),
        "tdmpc2": dict(tdmpc2.PUBLIC_PRESETS),
        "mlp": dict(mlp.PUBLIC_PRESETS),
    }

    @classmethod
    def register(
        cls, model_type: str, config_class: type[WorldModelConfig]
    ) -> Callable[[type], type]:
        """Class decorator that makes a model known under ``model_type`` (case does not matter)."""

        def add(model_class: type) -> type:
            """Register the decorated class."""
            cls._config_registry[model_type.lower()] = CONFIG_CLASSES[model_type.lower()] = (
                config_class
            )
            cls._model_registry[model_type.lower()] = MODEL_CLASSES[model_type.lower()] = (
                model_class
            )
            cls._presets.setdefault(model_type.lower(), {})
            return model_class

        return add

    @classmethod
    def unregister(cls, model_type: str) -> None:
        """Forget a registered type; the built-in ones cannot be forgotten."""
        if model_type.lower() in BUILT_IN:
            raise ConfigurationError(
                f"model type {model_type!r} is built in and cannot be unregistered; "
                "register another name"
            )
        tables: tuple[dict[str, Any], ...] = (
            cls._config_registry,
            cls._model_registry,
            cls._presets,
            CONFIG_CLASSES,
            MODEL_CLASSES,
        )
        for table in tables:
            table.pop(model_type.lower(), None)

    @classmethod
    def register_preset(cls, name: str, settings: Mapping[str, Any]) -> None:
        """Make ``type:size`` mean these settings."""
        kind, _, size = name.partition(":")
        kind = cls.resolve_type(kind)
        if not size:
            raise ConfigurationError(f"preset {name!r} must be written type:size, e.g. {kind}:mine")
        cls._presets[kind][size] = cls._config_registry[kind].known(
            {"model_name": size, **settings}
        )

    @classmethod
    def resolve_type(cls, name: str) -> str:
        """The type's own name.

        Raises:
            UnknownModelError: If there is none.
        """
        kind = TYPE_ALIASES.get(name.lower(), name.lower())
        if kind not in cls._config_registry:
            raise UnknownModelError(
                "Unknown model type", name, sorted({*cls._config_registry, *TYPE_ALIASES})
            )
        return kind

    @classmethod
    def list_models(cls) -> dict[str, list[str]]:
        """Every type, with its sizes; ``worldloom.list_models`` lists the presets for users."""
        return {kind: list(sizes) for kind, sizes in cls._presets.items()}

    @classmethod
    def _names(cls) -> list[str]:
        return [f"{kind}:{size}" for kind, sizes in cls.list_models().items() for size in sizes]

    @classmethod
    def config(cls, name: str, **changes: Any) -> WorldModelConfig:
        """The config of ``type:size`` with fields changed.

        Raises:
            UnknownModelError: If the type or the size does not exist.
        """
        kind, _, size = name.partition(":")
        kind = cls.resolve_type(kind)
        presets = cls._presets[kind]
        if size.lower() not in presets:
            raise UnknownModelError("Unknown size", size, sorted(presets))
        config_class = cls._config_registry[kind]
        named = {"model_type": kind, "model_name": size.lower(), **presets[size.lower()]}
        return config_class(**config_class.merged(named, changes))

    @classmethod
    def model_class(cls, kind: str) -> Any:
        """The class of a type; imports it."""
        entry = cls._model_registry[cls.resolve_type(kind)]
        if not isinstance(entry, str):
            return entry
        module, _, name = entry.partition(":")
        return getattr(importlib.import_module(module), name)

    @classmethod
    def build(cls, config: WorldModelConfig) -> Any:
        """A new model of a config."""
        return cls.model_class(config.model_type)(config)

    @classmethod
    def from_pretrained(cls, name_or_path: str | PathLike[str], **kwargs: Any) -> Any:
        """A saved model from a folder, or a new one from ``type:size``."""
        path = expanded(name_or_path, "name_or_path")
        refuse_file(path)
        if path.is_dir():
            config = WorldModelConfig.load(path)
            return cls.model_class(config.model_type).from_pretrained(path, **kwargs)
        if ":" not in str(name_or_path):
            raise UnknownModelError("Invalid model identifier", str(name_or_path), cls._names())
        return cls.build(cls.config(str(name_or_path), **kwargs))


class AutoWorldModel:
    """Builds or loads whatever model a name or folder asks for."""

    @staticmethod
    def from_pretrained(name_or_path: str | PathLike[str], **kwargs: Any) -> Any:
        """See :meth:`WorldModelRegistry.from_pretrained`."""
        return WorldModelRegistry.from_pretrained(name_or_path, **kwargs)


class AutoConfig:
    """Finds the config that a name or folder asks for."""

    @staticmethod
    def from_pretrained(name_or_path: str | PathLike[str], **kwargs: Any) -> WorldModelConfig:
        """The config of a folder or of ``type:size``; an unknown type gives a base config named
        after the size.

        Raises:
            ConfigurationError: If there is neither a folder nor a colon.
        """
        path = expanded(name_or_path, "name_or_path")
        if path.is_dir() or path.is_file():
            return WorldModelConfig.load(path).replaced(**kwargs)
        kind, colon, size = str(name_or_path).partition(":")
        if not colon:
            raise ConfigurationError(
                f"Invalid config identifier {str(name_or_path)!r}: expected type:size "
                "or an existing folder"
            )
        known = TYPE_ALIASES.get(kind.lower(), kind.lower()) in WorldModelRegistry._config_registry
        if not known:
            return WorldModelConfig(**({"model_type": kind, "model_name": size} | kwargs))
        return WorldModelRegistry.config(str(name_or_path), **kwargs)
