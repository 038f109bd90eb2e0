"""A nested dict of tensors, arrays and JSON values as a folder or as one file, whole or not at all.

    step-000012000/
      tensors.safetensors   every tensor and array, keyed by its path in the tree
      tree.json             the rest of the tree, with a mark where a tensor belongs
      manifest.json         format version, sha256 and size of the files above, the caller's facts

A small tree can be one file instead (:func:`save_tree_file`): safetensors layout with the rest of
the tree, the facts and a sha256 of everything in its metadata.

The files of a folder change as one, whenever a writer dies and beside a reader. Nothing is ever
unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError
from worldloom.core.files import open_together, path_of_open, replacing, replacing_together, sync
from worldloom.core.json_text import finite_json, parse_json
from worldloom.core.plain_files import open_plain, read_open
from worldloom.training.manifests import (
    FILES,
    FORMAT,
    MANIFEST,
    parsed_manifest,
    write_manifest,
    writing,
)
from worldloom.training.trees import join_tree, split_tree

__all__ = ["load_tree", "load_tree_file", "save_tree", "save_tree_file"]

Tree = Mapping[str, Any]


def save_tree(folder: Path, tree: Tree, facts: Mapping[str, Any] | None = None) -> None:
    """Write ``tree`` as a checkpoint folder; an existing one of that name is replaced.

    Args:
        folder: Final name.
        tree: Nested dicts, lists and tuples of tensors, numpy arrays, and JSON scalars.
        facts: JSON values for the manifest (counters, scores) that can be read without loading the
            tree.

    Raises:
        CheckpointError: If the tree holds something that cannot be stored without pickle (names
            where), or it cannot be written.
    """
    skeleton, tensors = split_tree(tree)
    with writing(folder), replacing_together(folder) as staging:
        save_file(_own(tensors), staging / FILES[0])
        (staging / FILES[1]).write_text(json.dumps(skeleton, allow_nan=False))
        files = {
            name: {"sha256": _sha256(staging / name), "bytes": (staging / name).stat().st_size}
            for name in FILES
        }
        write_manifest(staging, {"format": FORMAT, "files": files, "facts": dict(facts or {})})


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host that share no memory, as a file needs them."""
    return {path: value.to("cpu").contiguous().clone() for path, value in tensors.items()}


def load_tree(folder: Path) -> dict[str, Any]:
    """Read a checkpoint folder after checking every checksum.

    Raises:
        CheckpointError: If a file is missing, truncated, corrupt, or of another format.
    """
    with (
        reading(folder, "cannot be read"),
        open_together(folder, (MANIFEST, *FILES)) as files,
    ):
        manifest = parsed_manifest(folder, files.get(MANIFEST))
        for name, expected in manifest["files"].items():
            _check_contents(folder / name, files.get(name), expected)
        tensors = load_file(path_of_open(files[FILES[0]]))
        return _restored(folder, parse_json(read_open(files[FILES[1]], folder / FILES[1])), tensors)


def _check_contents(path: Path, file: BufferedReader | None, expected: Mapping[str, Any]) -> None:
    is_whole = file is not None and os.fstat(file.fileno()).st_size == expected["bytes"]
    if (
        file is None
        or not is_whole
        or hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]
    ):
        raise CheckpointError(
            f"{path}: missing, truncated or changed since it was written; use an earlier checkpoint"
        )
    file.seek(0)


def save_tree_file(path: Path, tree: Tree, facts: Mapping[str, Any] | None = None) -> None:
    """Write ``tree`` as one file, whole or not at all; an existing one is replaced.

    Raises:
        CheckpointError: If the tree holds something that cannot be stored without pickle (names
            where), or it cannot be written.
    """
    skeleton, tensors = split_tree(tree)
    with writing(path):
        facts = finite_json(dict(facts or {}))
        texts = {
            "tree": json.dumps(skeleton, allow_nan=False),
            "facts": json.dumps(facts, allow_nan=False),
        }
        tensors = _own(tensors)
        metadata = {"worldloom": str(FORMAT), **texts, "sha256": _contents_sha256(texts, tensors)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
            sync(temporary)


def load_tree_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tree and facts of a file of :func:`save_tree_file`; nothing in it is executed.

    Raises:
        CheckpointError: If it is missing, truncated, corrupt, or something else.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; name a file in it, e.g. checkpoint_final.pt")
    with reading(path, "is not a readable checkpoint, it is missing, truncated or foreign"):
        with open_plain(path) as opened, safe_open(path_of_open(opened), "pt") as file:
            metadata = file.metadata() or {}
            if "worldloom" not in metadata:
                raise CheckpointError(
                    f"{path}: is no checkpoint; weights of a saved model are loaded "
                    "by create_world_model(folder)"
                )
            if metadata["worldloom"] != str(FORMAT):
                raise CheckpointError(
                    f"{path}: format {metadata['worldloom']!r}, this version reads {FORMAT}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        texts = {name: metadata[name] for name in ("tree", "facts")}
        if _contents_sha256(texts, tensors) != metadata["sha256"]:
            raise CheckpointError(
                f"{path}: changed since it was written; use an earlier checkpoint"
            )
        facts = parse_json(texts["facts"])
        if not isinstance(facts, dict):
            raise CheckpointError(f"{path}: has no facts; use an earlier checkpoint")
        return _restored(path, parse_json(texts["tree"]), tensors), facts


def _contents_sha256(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256("".join(texts[name] for name in sorted(texts)).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _restored(source: Path, node: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    tree = join_tree(node, tensors)
    if not isinstance(tree, dict):
        raise CheckpointError(f"{source}: holds no tree of tensors; use an earlier checkpoint")
    return tree


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
