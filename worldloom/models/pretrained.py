"""Saved models: a folder with ``config.json``, ``model.safetensors`` and ``model.pt``. Loading never runs code from a file.

``config.json`` holds the config and size and sha256 of both weight files, so that a file that was cut, changed or swapped is
told apart before it is read. Folders without these facts (0.1 wrote none) are still read, with a check of size and names.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldloom.core.config import WorldModelConfig
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.core.files import write_json

__all__ = ["check_conflicts", "load_weights", "read_facts", "save_model"]

WEIGHT_FILES = ("model.safetensors", "model.pt")
SLACK_BYTES = 1 << 20
FORMAT = "worldloom-0.2"
OLD_PREFIXES = ("rssm.", "_encoder.", "_decoder.", "_dynamics.", "reward_head.", "q_ensemble.")
"""How parameters of the public 0.1 begin."""
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError),
)


def save_model(folder: str | PathLike[str], config: WorldModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write a model folder; each file is whole or absent, and ``config.json`` comes last."""
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target}: is a file; save_pretrained needs a folder")
    target.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    safe, torch_file = (target / name for name in WEIGHT_FILES)
    save_file(plain, _temporary(safe), metadata={"format": "pt"})
    torch.save(plain, _temporary(torch_file))
    for path in (safe, torch_file):
        os.replace(_temporary(path), path)
    facts = {name: _facts(target / name) for name in WEIGHT_FILES}
    write_json(target / "config.json", config.to_dict() | {"format": FORMAT, "files": facts})


def read_facts(folder: Path) -> Mapping[str, Any]:
    """Size and checksum of the weight files as ``config.json`` states them; empty for folders of 0.1."""
    try:
        data = json.loads((folder / "config.json").read_text())
        files = data.get("files", {})
        return {name: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in files.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}/config.json: cannot be read ({type(error).__name__} {error})") from error


def check_conflicts(folder: Path, config: WorldModelConfig, wanted: Mapping[str, Any]) -> None:
    """Refuse settings that a saved model does not have.

    Raises:
        ConfigurationError: Names field, saved and wanted value.
    """
    for name, value in config.known(wanted).items():
        saved = getattr(config, name)
        if value not in (saved, "auto"):
            raise ConfigurationError(
                f"{name}: the model in {folder} was saved with {saved!r}, got {value!r}; drop the argument, or create a new model"
            )


def load_weights(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The saved tensors, after checking that they are those of a model with the tensors ``expected``.

    Raises:
        CheckpointError: If no weight file is there, or one is cut, changed, oversized, foreign, or of another architecture.
    """
    present = [folder / name for name in WEIGHT_FILES if (folder / name).exists()]
    if not present:
        raise CheckpointError(f"{folder}: has neither {' nor '.join(WEIGHT_FILES)}; save the model again")
    facts = read_facts(folder)
    limit = sum(t.numel() * t.element_size() for t in expected.values())
    for path in present:
        _check_file(path, facts.get(path.name), 2 * limit + SLACK_BYTES)
    tensors = _read(present[0])
    _check_names(present[0], tensors, expected)
    return tensors


def _check_file(path: Path, facts: Mapping[str, Any] | None, limit: int) -> None:
    size = path.stat().st_size
    if facts is None:
        if size > limit:
            raise CheckpointError(f"{path}: has {size} bytes, this model needs at most {limit}; it is oversized or foreign")
        return
    if size != facts["bytes"]:
        how = "truncated" if size < facts["bytes"] else "oversized"
        raise CheckpointError(f"{path}: {how}, has {size} bytes, config.json says {facts['bytes']}; save the model again")
    if _facts(path)["sha256"] != facts["sha256"]:
        raise CheckpointError(f"{path}: corrupt, its sha256 is not the one in config.json; save the model again")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as weights, it is corrupt or foreign ({first})") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path}: expected a dict of tensors, got {type(tensors).__name__}; it is foreign")
    return tensors


def _check_names(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if any(name.startswith(OLD_PREFIXES) for name in tensors):
        raise CheckpointError(
            f"{path}: was trained with WorldLoom 0.1, whose networks differ; load the .npz data it was trained on and train again"
        )
    for name in sorted(tensors.keys() | expected.keys()):
        shapes = [tuple(group[name].shape) if name in group else None for group in (expected, tensors)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"{path}: tensor {name!r}: expected shape {shapes[0]}, got {shapes[1]}; it is of another model")


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
