"""Checkpoints: a nested dict of tensors, arrays and JSON values in a folder that appears whole or not at all.

    step-000012000/
      tensors.safetensors   every tensor and array, keyed by its path in the tree
      tree.json             the rest of the tree, with a mark where a tensor belongs
      manifest.json         format version, sha256 and size of the files above, and the caller's own facts

A small checkpoint can be one file instead (:func:`save_tree_file`): safetensors layout with the rest of the tree, the facts and a
sha256 of everything in its metadata.

A folder is written under a temporary name, flushed, and renamed. Nothing is ever unpickled. A folder whose manifest or checksum
does not fit is skipped by :meth:`CheckpointStore.newest`, with a warning that says what is wrong.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldloom.core.exceptions import CheckpointError
from worldloom.core.files import sync, write_json

__all__ = ["CheckpointStore", "load_tree", "load_tree_file", "read_manifest", "save_tree", "save_tree_file"]

logger = logging.getLogger(__name__)

FORMAT = 1
TENSOR, ARRAY, TUPLE = "__tensor__", "__array__", "__tuple__"
FILES = ("tensors.safetensors", "tree.json")
Tree = Mapping[str, Any]


def save_tree(folder: Path, tree: Tree, facts: Mapping[str, Any] | None = None) -> None:
    """Write ``tree`` as a checkpoint folder; an existing one of that name is replaced.

    Args:
        folder: Final name.
        tree: Nested dicts, lists and tuples of tensors, numpy arrays, and JSON scalars.
        facts: JSON values for the manifest (counters, scores) that can be read without loading the tree.

    Raises:
        CheckpointError: If the tree holds something that cannot be stored without pickle; names where.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _strip(tree, "", tensors)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(tensors, temporary / FILES[0])
    (temporary / FILES[1]).write_text(json.dumps(skeleton))
    files = {name: {"sha256": _sha256(temporary / name), "bytes": (temporary / name).stat().st_size} for name in FILES}
    write_json(temporary / "manifest.json", {"format": FORMAT, "files": files, "facts": dict(facts or {})})
    for path in temporary.iterdir():
        sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    sync(folder.parent)


def load_tree(folder: Path) -> dict[str, Any]:
    """Read a checkpoint folder after checking every checksum.

    Raises:
        CheckpointError: If a file is missing, truncated, corrupt, or of another format.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path}: missing, truncated or changed since it was written; use an earlier checkpoint")
    try:
        tensors = load_file(folder / FILES[0])
        tree: dict[str, Any] = _restore(json.loads((folder / FILES[1]).read_text()), tensors)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error})") from error
    return tree


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder.

    Raises:
        CheckpointError: If it is missing or of another format.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT or set(manifest["files"]) != set(FILES):
            raise CheckpointError(f"{folder}: format {manifest['format']!r}, this version reads {FORMAT}")
        if not all({"sha256", "bytes"} <= set(entry) for entry in manifest["files"].values()):
            raise CheckpointError(f"{folder}: its manifest has no sha256 or size of a file; use an earlier checkpoint")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: is not a checkpoint ({error})") from error
    return manifest


def save_tree_file(path: Path, tree: Tree, facts: Mapping[str, Any] | None = None) -> None:
    """Write ``tree`` as one file, whole or not at all; an existing one is replaced.

    Raises:
        CheckpointError: If the tree holds something that cannot be stored without pickle; names where.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _strip(tree, "", tensors)
    texts = {"tree": json.dumps(skeleton), "facts": json.dumps(dict(facts or {}))}
    metadata = {"worldloom": str(FORMAT), **texts, "sha256": _contents_sha256(texts, tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata=metadata)
    sync(temporary)
    os.replace(temporary, path)


def load_tree_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tree and facts of a file of :func:`save_tree_file`; nothing in it is executed.

    Raises:
        CheckpointError: If it is missing, truncated, corrupt, or something else.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("worldloom") != str(FORMAT):
                raise CheckpointError(f"{path}: format {metadata.get('worldloom')!r}, this version reads {FORMAT}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        texts = {name: metadata[name] for name in ("tree", "facts")}
        if _contents_sha256(texts, tensors) != metadata["sha256"]:
            raise CheckpointError(f"{path}: changed since it was written; use an earlier checkpoint")
        return _restore(json.loads(texts["tree"]), tensors), json.loads(texts["facts"])
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: is not a readable checkpoint, it is missing, truncated or foreign ({error})") from error


def _contents_sha256(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256("".join(texts[name] for name in sorted(texts)).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _strip(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by marks; what remains is JSON."""
    if isinstance(node, Tensor | np.ndarray):
        value = node.detach().to("cpu") if isinstance(node, Tensor) else torch.from_numpy(np.array(node))
        tensors[path] = value.contiguous().clone()
        return {TENSOR if isinstance(node, Tensor) else ARRAY: path}
    if isinstance(node, Mapping):
        if not all(isinstance(key, str | int) for key in node):
            raise CheckpointError(f"checkpoint: keys of {path or 'the tree'} must be text or integers, got {list(node)[:3]}")
        return {"__int__" + str(k) if isinstance(k, int) else k: _strip(v, f"{path}/{k}", tensors) for k, v in node.items()}
    if isinstance(node, list | tuple):
        items = [_strip(item, f"{path}/{index}", tensors) for index, item in enumerate(node)]
        return {TUPLE: items} if isinstance(node, tuple) else items
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, np.generic):
        return node.item()
    raise CheckpointError(f"checkpoint: {path} is a {type(node).__name__}, which cannot be stored without pickle")


def _restore(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if TENSOR in node:
            return tensors[node[TENSOR]]
        if ARRAY in node:
            return tensors[node[ARRAY]].numpy()
        if TUPLE in node:
            return tuple(_restore(item, tensors) for item in node[TUPLE])
        return {int(k[7:]) if k.startswith("__int__") else k: _restore(v, tensors) for k, v in node.items()}
    return [_restore(item, tensors) for item in node] if isinstance(node, list) else node


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class CheckpointStore:
    """The checkpoints of one run: the newest ``keep`` and the best one.

    Args:
        root: Folder that holds the checkpoint folders; made when first written to.
        keep: How many of the newest stay.
    """

    root: Path
    keep: int = 3

    def save(self, step: int, tree: Tree, facts: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint named after ``step``; drop those that are too old, and what a killed writer left half done."""
        folder = self.root / f"step-{step:012d}"
        save_tree(folder, tree, {"step": step, **(facts or {})})
        for old in [*self.folders()[self.keep :], *self.root.glob("step-*.tmp")]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def mark_best(self, folder: Path, score: float) -> bool:
        """Keep a copy of ``folder`` as ``best`` if its score is above that of the present one (or there is none)."""
        best = self.root / "best"
        if best.exists() and read_manifest(best)["facts"].get("score", -np.inf) >= score:
            return False
        temporary = self.root / "best.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(folder, temporary, copy_function=os.link)
        manifest = read_manifest(folder)
        manifest["facts"]["score"] = score
        (temporary / "manifest.json").unlink()
        write_json(temporary / "manifest.json", manifest)
        shutil.rmtree(best, ignore_errors=True)
        os.replace(temporary, best)
        return True

    def folders(self) -> list[Path]:
        """Checkpoint folders, newest first; unfinished ones are not among them."""
        return sorted((p for p in self.root.glob("step-*") if p.suffix != ".tmp"), reverse=True)

    def size(self, folder: Path) -> int:
        """Bytes of a checkpoint's files, without the manifest."""
        return sum(file["bytes"] for file in read_manifest(folder)["files"].values())

    def facts(self, folder: Path) -> dict[str, Any]:
        """What the caller of :meth:`save` noted in the manifest.

        Raises:
            CheckpointError: If there is none.
        """
        return dict(read_manifest(folder)["facts"])

    def find(self, name: str) -> Path:
        """The folder of the checkpoint ``name`` (``best``, or a folder's name).

        Raises:
            CheckpointError: If there is none.
        """
        path = self.root / name
        if not path.is_dir():
            known = sorted(p.name for p in self.root.glob("*") if p.is_dir())
            raise CheckpointError(f"{path} does not exist; there are {', '.join(known) or 'no checkpoints'}")
        return path

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that loads, or None; a corrupt one is skipped with a warning."""
        for folder in self.folders():
            try:
                tree = load_tree(folder)
            except CheckpointError as error:
                logger.warning("skipping a checkpoint: %s", error)
            else:
                return folder, tree
        return None
