"""Saved models: a folder with ``config.json``, ``model.safetensors`` and ``model.pt``. Loading
never runs code from a file.

``config.json`` holds the config and size and sha256 of both weight files, so that a file that was
cut, changed or swapped is told apart before it is read. Folders without these facts (0.1 wrote
none) are still read, with a check of size and names. The three files change as one: whenever a
writer dies, and beside one that is at work, a folder holds the old model or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldloom.algorithms.configs import WorldModelConfig
from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError
from worldloom.core.files import (
    expanded,
    open_together,
    path_of_open,
    replacing_together,
    write_json,
)
from worldloom.core.json_text import parse_json
from worldloom.core.plain_files import read_open, read_plain
from worldloom.nn.tensor_files import Allowance, read_tensors

__all__ = [
    "SavedModel",
    "allowance_of",
    "load_weights",
    "open_model",
    "save_model",
]

CONFIG_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "model.pt")
SLACK_BYTES = 1 << 20
BUILDING_COPIES = 8
BUILDING_BYTES = 64 << 20
"""What building a network takes beside its weights: initial values, and copies of them."""
FORMAT = "worldloom-0.2"
OLD_PREFIXES = ("rssm.", "_encoder.", "_decoder.", "_dynamics.", "reward_head.", "q_ensemble.")
"""How parameters of the public 0.1 begin."""


@dataclass(frozen=True)
class SavedModel:
    """A saved model whose files are open and of one version.

    Attributes:
        folder: Where it is, for messages.
        config: Its settings.
        facts: Size and checksum of the weight files as ``config.json`` states them; empty for
            folders of 0.1.
        weights: The weight files that are there, by name, the preferred one first.
    """

    folder: Path
    config: WorldModelConfig
    facts: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, BufferedReader]


def save_model(
    folder: str | PathLike[str], config: WorldModelConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Write a model folder; other files in it stay. When saving fails, what was there before is as
    it was.

    Raises:
        CheckpointError: If it cannot be written there, or the config cannot be written as JSON.
    """
    target = expanded(folder)
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        with replacing_together(target) as staging:
            safe, torch_file = (staging / name for name in WEIGHT_FILES)
            save_file(plain, safe, metadata={"format": "pt"})
            with torch_file.open("wb") as file:
                torch.save(plain, file)
            facts = {path.name: _facts_of(path) for path in (safe, torch_file)}
            write_json(staging / CONFIG_FILE, config.to_dict() | {"format": FORMAT, "files": facts})
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{target}: the model could not be saved ({_reason(error)}); what was "
            "there before is unchanged"
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of what the system said, where a library hides it behind an error of its own;
    else of the error.
    """
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    text = str(link or error)
    return text.splitlines()[0] if text else type(error).__name__


@contextlib.contextmanager
def open_model(folder: str | PathLike[str]) -> Iterator[SavedModel]:
    """The files of a saved model, all of one version also while another process saves there.

    Raises:
        CheckpointError: If there is no ``config.json`` that describes a model.
    """
    source = expanded(folder)
    with contextlib.ExitStack() as stack:
        try:
            files = stack.enter_context(open_together(source, [CONFIG_FILE, *WEIGHT_FILES]))
            text = (
                read_open(files[CONFIG_FILE], source / CONFIG_FILE)
                if CONFIG_FILE in files
                else read_plain(source / CONFIG_FILE)
            )
        except OSError as error:
            raise CheckpointError(f"{source}: cannot be read ({error})") from error
        config = WorldModelConfig.parsed(text, source / CONFIG_FILE)
        weights = {name: files[name] for name in WEIGHT_FILES if name in files}
        yield SavedModel(source, config, _stated_facts(text, source / CONFIG_FILE), weights)


def _stated_facts(text: bytes, source: Path) -> Mapping[str, Mapping[str, Any]]:
    try:
        files = parse_json(text).get("files", {})
        return {
            name: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
            for name, entry in files.items()
        }
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source}: cannot be read ({type(error).__name__} {error})"
        ) from error


def allowance_of(saved: SavedModel) -> Allowance:
    """What the network of a saved model may take while it is built, by the size of its weights.

    Raises:
        CheckpointError: If there are no weights.
    """
    if not saved.weights:
        raise CheckpointError(
            f"{saved.folder}: has neither {' nor '.join(WEIGHT_FILES)}; save the model again"
        )
    size = max(os.fstat(file.fileno()).st_size for file in saved.weights.values())
    return Allowance(
        BUILDING_COPIES * size + BUILDING_BYTES,
        f"{saved.folder / CONFIG_FILE}: describes a network that is far larger than its weights, "
        f"which have {size} bytes; it was changed, or is foreign",
    )


def load_weights(saved: SavedModel, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The saved tensors, after checking that they are those of a model with the tensors
    ``expected``.

    Raises:
        CheckpointError: If no weight file is there, or one is cut, changed, oversized, foreign, or
            of another architecture.
    """
    limit = sum(t.numel() * t.element_size() for t in expected.values())
    for name, file in saved.weights.items():
        _check_file(saved.folder / name, file, saved.facts.get(name), 2 * limit + SLACK_BYTES)
    name, file = next(iter(saved.weights.items()))
    tensors = _read(saved.folder / name, file)
    _check_names(saved.folder / name, tensors, expected)
    return tensors


def _check_file(
    path: Path, file: BufferedReader, facts: Mapping[str, Any] | None, limit: int
) -> None:
    size = os.fstat(file.fileno()).st_size
    if facts is None:
        if size > limit:
            raise CheckpointError(
                f"{path}: has {size} bytes, this model needs at most {limit}; it is "
                "oversized or foreign"
            )
        return
    if size != facts["bytes"]:
        how = "truncated" if size < facts["bytes"] else "oversized"
        raise CheckpointError(
            f"{path}: {how}, has {size} bytes, config.json says {facts['bytes']}; "
            "save the model again"
        )
    if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
        raise CheckpointError(
            f"{path}: corrupt, its sha256 is not the one in config.json; save the model again"
        )
    file.seek(0)


def _read(path: Path, file: BufferedReader) -> dict[str, Tensor]:
    with reading(path, "cannot be read as weights, it is corrupt or foreign"):
        if path.suffix == ".safetensors":
            return load_file(path_of_open(file))
        tensors = read_tensors(path, file)
    if not isinstance(tensors, dict) or not all(
        isinstance(value, Tensor) for value in tensors.values()
    ):
        raise CheckpointError(
            f"{path}: expected a dict of tensors, got {type(tensors).__name__}; it is foreign"
        )
    return tensors


def _check_names(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if any(name.startswith(OLD_PREFIXES) for name in tensors):
        raise CheckpointError(
            f"{path}: was trained with WorldLoom 0.1, whose networks differ; load the "
            ".npz data it was trained on and train again"
        )
    for name in sorted(tensors.keys() | expected.keys()):
        shapes = [
            tuple(group[name].shape) if name in group else None for group in (expected, tensors)
        ]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{path}: tensor {name!r}: expected shape {shapes[0]}, got "
                f"{shapes[1]}; it is of another model"
            )


def _facts_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }
