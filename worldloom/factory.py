"""From a name to a world model: presets, aliases, saved folders. Needs torch only when a model is
built.

A saved model is named by its folder (what a run trained, by the run folder), or by a folder's name
below ``WORLDLOOM_CACHE_DIR`` (``~/.cache/worldloom`` by default): what was saved there once is
found from any working directory. Nothing is ever downloaded.
"""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import Any

from worldloom.algorithms.configs import WorldModelConfig
from worldloom.algorithms.model_registry import (
    TYPE_ALIASES,
    UnknownModelError,
    WorldModelRegistry,
    refuse_file,
)
from worldloom.algorithms.registry import agent_names
from worldloom.core.config_base import check_conflicts
from worldloom.core.exceptions import CheckpointError, ConfigurationError, nearest
from worldloom.core.files import expanded
from worldloom.training.runs import find_run

__all__ = [
    "MODEL_ALIASES",
    "MODEL_CATALOG",
    "cache_dir",
    "create_world_model",
    "get_config",
    "get_model_info",
    "list_models",
]

MODEL_ALIASES: dict[str, str] = {
    "dreamer": "dreamerv3:size12m",
    "dreamerv3": "dreamerv3:size12m",
    "dreamer-small": "dreamerv3:size12m",
    "dreamer-medium": "dreamerv3:size50m",
    "dreamer-large": "dreamerv3:size200m",
    "tdmpc": "tdmpc2:5m",
    "tdmpc2": "tdmpc2:5m",
    "tdmpc-small": "tdmpc2:5m",
    "tdmpc-medium": "tdmpc2:48m",
    "tdmpc-large": "tdmpc2:317m",
}
"""Short names of presets."""
FURTHER_ALIASES: dict[str, str] = {"mlp": "mlp:small"}

CATALOG_TYPES = {"dreamer": "dreamerv3"}
"""How the catalog calls a type that has another name in its config."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "dreamerv3": {"obs_shape": (3, 64, 64), "action_dim": 4},
    "tdmpc2": {"obs_shape": (39,), "action_dim": 6},
    "mlp": {"obs_shape": (7,), "action_dim": 3},
}
"""Shapes of a model that is created without them."""


def cache_dir() -> Path:
    """Where models are looked for by name: ``WORLDLOOM_CACHE_DIR``, or ``~/.cache/worldloom``."""
    named = os.environ.get("WORLDLOOM_CACHE_DIR")
    return Path(os.path.expanduser(named or "~/.cache/worldloom"))  # as it is, without a home


def _check_device(device: Any) -> None:
    if device is None:
        raise ConfigurationError(
            "device must be auto, cpu, cuda or cuda:N, got None; leave it out for the CPU"
        )


def _folder_of(model: str | PathLike[str]) -> Path | None:
    """The folder of a saved model: the path itself, or below the cache; None when there is
    neither.
    """
    path = expanded(model, "model")
    refuse_file(path)
    if path.is_dir():
        if not (path / "config.json").exists() and find_run(path) is None:
            raise CheckpointError(
                f"{path} is neither a saved model nor a run (no config.json in it); give a folder "
                "that save_pretrained wrote, a run folder, or RUN/checkpoints/NAME"
            )
        return path
    kept = cache_dir() / path
    return (
        kept
        if not path.is_absolute() and ".." not in path.parts and (kept / "config.json").is_file()
        else None
    )


def _neighbour(path: Path) -> str:
    """Names in the same folder that a path may have meant."""
    beside = [p for p in path.parent.glob("*") if p.is_dir()] if path.parent.is_dir() else []
    hint = nearest(path.name, [p.name for p in beside])
    return hint or (
        f"; there are {', '.join(sorted(p.name for p in beside))}"
        if path.parent.name == "checkpoints" and beside
        else ""
    )


def _entry(kind: str, description: str, params: int) -> dict[str, Any]:
    return {
        "description": description,
        "params": params,
        "type": kind,
        "default_obs": DEFAULTS[kind]["obs_shape"],
    }


MODEL_CATALOG: dict[str, dict[str, Any]] = {
    "dreamerv3:size12m": _entry("dreamerv3", "DreamerV3, small and fast", 8_849_091),
    "dreamerv3:size25m": _entry("dreamerv3", "DreamerV3, balanced", 19_842_211),
    "dreamerv3:size50m": _entry("dreamerv3", "DreamerV3, standard", 35_214_467),
    "dreamerv3:size100m": _entry("dreamerv3", "DreamerV3, large", 79_096_387),
    "dreamerv3:size200m": _entry("dreamerv3", "DreamerV3, very large", 140_494_851),
    "tdmpc2:5m": _entry("tdmpc2", "TD-MPC2, small and fast", 4_964_458),
    "tdmpc2:19m": _entry("tdmpc2", "TD-MPC2, balanced", 18_077_802),
    "tdmpc2:48m": _entry("tdmpc2", "TD-MPC2, large", 47_235_178),
    "tdmpc2:317m": _entry("tdmpc2", "TD-MPC2, very large", 312_656_857),
    "mlp:small": _entry("mlp", "Plain latent MLP, the sizes of the guide", 400_393),
    "mlp:base": _entry("mlp", "Plain latent MLP, five members", 2_001_965),
    "mlp:medium": _entry("mlp", "Plain latent MLP, twice as wide", 1_587_209),
    "mlp:large": _entry("mlp", "Plain latent MLP, four times as wide", 6_320_137),
}
"""Presets and the trained numbers that a model of the default shapes has (counted; actor and critic
are not part of it).
"""


def create_world_model(
    model: str | PathLike[str],
    *,
    obs_shape: tuple[int, ...] | None = None,
    action_dim: int | None = None,
    device: str = "cpu",
    **kwargs: Any,
) -> Any:
    """A new world model of a preset, a saved one, or the one that a run of ``worldloom_dist``
    trained.

    Args:
        model: ``type:size``, an alias of it, a folder that ``save_pretrained`` wrote, or such a
            folder's name below ``WORLDLOOM_CACHE_DIR``; or a run folder (its newest checkpoint), or
            ``RUN/checkpoints/NAME`` (``best``, or a folder's name).
        obs_shape: Shape of one observation; ``(3, 64, 64)`` for DreamerV3, ``(39,)`` for TD-MPC2,
            ``(7,)`` for mlp by default.
        action_dim: Action components; 4, 6 and 3 by default.
        device: cpu, cuda, cuda:N, or auto.
        **kwargs: Fields of the model's config.

    Raises:
        ModelNotFoundError: If nothing has this name; offers the nearest one.
        ConfigurationError: If a field does not exist, its value is not allowed, or it contradicts a
            saved model or a run; if a run's env has what a public model cannot read.
        CheckpointError: If the files of a saved model or of a run are missing or damaged, or the
            run has no checkpoint yet.
    """
    wanted = {
        name: value
        for name, value in (("obs_shape", obs_shape), ("action_dim", action_dim))
        if value is not None
    }
    _check_device(device)
    folder = _folder_of(model)
    run = None if folder is None else find_run(folder)
    if run is not None:
        return run.load(device, wanted | kwargs)
    if folder is not None:
        return WorldModelRegistry.from_pretrained(folder, device=device, **wanted, **kwargs)
    is_path = "/" in str(model)
    if is_path and (hint := _neighbour(expanded(model, "model"))):
        raise UnknownModelError(f"no saved model and no run at {str(model)!r}{hint}", str(model))
    problem = (
        "Invalid model identifier, nor is there a saved model or a run at"
        if is_path
        else "Invalid model identifier"
    )
    return WorldModelRegistry.build(
        _preset(str(model), wanted | kwargs | {"device": device}, problem)
    )


def get_config(
    model: str | PathLike[str],
    *,
    obs_shape: tuple[int, ...] | None = None,
    action_dim: int | None = None,
    **kwargs: Any,
) -> WorldModelConfig:
    """The config that :func:`create_world_model` would use; the arguments are the same.

    Raises:
        ModelNotFoundError: If nothing has this name.
        ConfigurationError: If a field does not exist, its value is not allowed, or it contradicts a
            saved model or a run.
        CheckpointError: If the folder's config is missing or damaged.
    """
    device = kwargs.pop("device", "cpu")
    _check_device(device)
    wanted = {
        name: value
        for name, value in (("obs_shape", obs_shape), ("action_dim", action_dim))
        if value is not None
    }
    folder = _folder_of(model)
    if folder is not None:
        run = find_run(folder)
        saved = WorldModelConfig.load(folder) if run is None else run.config(device)
        check_conflicts(folder, saved, wanted | kwargs)
        return saved.replaced(device=device)
    return _preset(str(model), wanted | kwargs | {"device": device})


def list_models(verbose: bool = False) -> list[str] | dict[str, dict[str, Any]]:
    """Names of the presets, or with ``verbose`` what is known about each: description, params,
    type, default_obs.
    """
    return (
        {name: dict(entry) for name, entry in MODEL_CATALOG.items()}
        if verbose
        else list(MODEL_CATALOG)
    )


def get_model_info(model: str) -> dict[str, Any]:
    """What is known about a preset: the catalog's entry, ``model_id``, and ``alias`` (None when its
    own name was given).

    Raises:
        ModelNotFoundError: If nothing has this name.
    """
    name = _resolve(model)
    if name not in MODEL_CATALOG:
        raise UnknownModelError("Unknown model", model, [*MODEL_CATALOG, *MODEL_ALIASES])
    return {**MODEL_CATALOG[name], "model_id": name, "alias": model if name != model else None}


def _resolve(model: str) -> str:
    """Aliases to presets; a type's other spellings to its own name."""
    name = (MODEL_ALIASES | FURTHER_ALIASES).get(model.lower(), model)
    kind, colon, size = name.partition(":")
    own = TYPE_ALIASES.get(kind.lower(), kind.lower())
    return f"{CATALOG_TYPES.get(own, own)}:{size.lower()}" if colon else name


def _preset(
    model: str, fields: dict[str, Any], problem: str = "Invalid model format"
) -> WorldModelConfig:
    name = _resolve(model)
    if ":" not in name or "/" in name:
        raise UnknownModelError(problem, model, [*MODEL_CATALOG, *MODEL_ALIASES])
    try:
        kind = WorldModelRegistry.resolve_type(name.partition(":")[0])
    except UnknownModelError as error:
        if name not in agent_names():
            raise
        raise UnknownModelError(
            f"{model!r} is an agent, and no model of the public API; train it with "
            f"worldloom train --agent {name} or worldloom.Agent",
            model,
        ) from error
    defaults = DEFAULTS.get(CATALOG_TYPES.get(kind, kind), {})
    return WorldModelRegistry.config(name, **(defaults | fields))
