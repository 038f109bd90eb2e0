"""Checkpoints: a nested dict of tensors, arrays and JSON values in a folder that appears whole or
not at all.

    step-000012000/
      tensors.safetensors   every tensor and array, keyed by its path in the tree
      tree.json             the rest of the tree, with a mark where a tensor belongs
      manifest.json         format version, sha256 and size of the files above, the caller's facts

A small checkpoint can be one file instead (:func:`save_tree_file`): safetensors layout with the
rest of the tree, the facts and a sha256 of everything in its metadata.

The files of a folder change as one, whenever a writer dies and beside a reader. Nothing is ever
unpickled. A folder whose manifest or checksum does not fit is skipped by
:meth:`CheckpointStore.newest`, with a warning that says what is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldloom.core.damage import reading
from worldloom.core.exceptions import CheckpointError
from worldloom.core.files import (
    current,
    open_together,
    path_of_open,
    remove_folder,
    replacing,
    replacing_together,
    sync,
    write_json,
)
from worldloom.core.json_text import finite_json, parse_json
from worldloom.core.plain_files import names_in, open_plain, read_open
from worldloom.training.trees import join_tree, split_tree

__all__ = [
    "CheckpointStore",
    "load_tree",
    "load_tree_file",
    "read_manifest",
    "save_tree",
    "save_tree_file",
]

logger = logging.getLogger(__name__)

FORMAT = 1
SCORED = "scored.tmp"
"""Where a best checkpoint is written, before it is ``best``."""
FILES = ("tensors.safetensors", "tree.json")
MANIFEST = "manifest.json"
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
    with _told(folder), replacing_together(folder) as staging:
        save_file(_own(tensors), staging / FILES[0])
        (staging / FILES[1]).write_text(json.dumps(skeleton, allow_nan=False))
        files = {
            name: {"sha256": _sha256(staging / name), "bytes": (staging / name).stat().st_size}
            for name in FILES
        }
        _write_manifest(staging, {"format": FORMAT, "files": files, "facts": dict(facts or {})})


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host that share no memory, as a file needs them."""
    return {path: value.to("cpu").contiguous().clone() for path, value in tensors.items()}


@contextlib.contextmanager
def _told(place: Path) -> Iterator[None]:
    """Say what could not be written; what was there before is still there then."""
    try:
        yield
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{place}: could not be written ({error}); what was there before is unchanged"
        ) from error


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_json(folder / MANIFEST, manifest)


def load_tree(folder: Path) -> dict[str, Any]:
    """Read a checkpoint folder after checking every checksum.

    Raises:
        CheckpointError: If a file is missing, truncated, corrupt, or of another format.
    """
    with (
        reading(folder, "cannot be read"),
        open_together(folder, (MANIFEST, *FILES)) as files,
    ):
        manifest = _parsed_manifest(folder, files.get(MANIFEST))
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder.

    Raises:
        CheckpointError: If it is missing or of another format.
    """
    with (
        reading(folder, "is not a checkpoint"),
        open_together(folder, [MANIFEST]) as files,
    ):
        return _parsed_manifest(folder, files.get(MANIFEST))


def _parsed_manifest(folder: Path, file: BufferedReader | None) -> dict[str, Any]:
    if file is None:
        raise CheckpointError(f"{folder}: is not a checkpoint (it has no {MANIFEST})")
    with reading(folder, "is not a checkpoint"):
        manifest: dict[str, Any] = parse_json(read_open(file, folder / MANIFEST))
        if manifest["format"] != FORMAT or set(manifest["files"]) != set(FILES):
            raise CheckpointError(
                f"{folder}: format {manifest['format']!r}, this version reads {FORMAT}"
            )
        if not all({"sha256", "bytes"} <= set(entry) for entry in manifest["files"].values()):
            raise CheckpointError(
                f"{folder}: its manifest has no sha256 or size of a file; use an earlier checkpoint"
            )
        if not isinstance(manifest.get("facts"), dict):
            raise CheckpointError(f"{folder}: its manifest has no facts; use an earlier checkpoint")
    return manifest


def save_tree_file(path: Path, tree: Tree, facts: Mapping[str, Any] | None = None) -> None:
    """Write ``tree`` as one file, whole or not at all; an existing one is replaced.

    Raises:
        CheckpointError: If the tree holds something that cannot be stored without pickle (names
            where), or it cannot be written.
    """
    skeleton, tensors = split_tree(tree)
    with _told(path):
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


def _link(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _always(facts: Mapping[str, Any]) -> bool:
    return True


@dataclass
class CheckpointStore:
    """The checkpoints of one run: the newest ``keep`` and the best one.

    Args:
        root: Folder that holds the checkpoint folders; made when first written to.
        keep: How many of the newest stay.
        compares: Whether the score of a best checkpoint with these facts compares with new ones;
            one that does not is replaced by any.
    """

    root: Path
    keep: int = 3
    compares: Callable[[Mapping[str, Any]], bool] = _always

    def save(self, step: int, tree: Tree, facts: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint named after ``step``; drop those that are too old, and what a killed
        writer left half done.
        """
        folder = self.root / f"step-{step:012d}"
        save_tree(folder, tree, {"step": step, **(facts or {})})
        saved = [path for path in self.folders() if path.name <= folder.name]  # later ones: damaged
        for old in saved[self.keep :]:
            remove_folder(old)
        for abandoned in self.root.glob("*.tmp"):
            shutil.rmtree(abandoned, ignore_errors=True)
        return folder

    def save_best(self, tree: Tree, facts: Mapping[str, Any], score: float) -> bool:
        """Keep as ``best`` what no checkpoint was written of, if its score is above that of the
        present one. It is not among :meth:`folders`: nothing goes on from it.
        """
        if not math.isfinite(score) or score <= self.best_score():
            return False
        folder = self.root / SCORED
        save_tree(folder, tree, facts)
        is_best = self.mark_best(folder, score)
        remove_folder(folder)
        return is_best

    def mark_best(self, folder: Path, score: float) -> bool:
        """Keep a copy of ``folder`` as ``best`` if its score is above that of the present one (or
        there is no whole one).
        """
        if not math.isfinite(score):
            logger.warning("%s: its score is %s, which cannot be the best", folder, score)
            return False
        if score <= self.best_score():
            return False
        manifest = read_manifest(folder)
        manifest["facts"]["score"] = score
        with _told(self.root / "best"), replacing_together(self.root / "best") as staging:
            for name in FILES:
                _link(current(folder, name), staging / name)
            _write_manifest(staging, manifest)
        return True

    def best_score(self) -> float:
        """Score of the present best checkpoint; minus infinity when there is none, or it is
        damaged or no comparison.
        """
        try:
            facts = self.facts(self.find("best"))
        except CheckpointError:
            return -math.inf
        score = facts.get("score") if self.compares(facts) else None
        return -math.inf if score is None else float(score)

    def folders(self) -> list[Path]:
        """Checkpoint folders, newest first; unfinished ones are not among them.

        Raises:
            CheckpointError: If there may be some, but the folder that they are in cannot be listed.
        """
        try:
            names = names_in(self.root)
        except OSError as error:
            raise CheckpointError(
                f"{self.root} cannot be listed ({error.strerror}), so its checkpoints are not "
                "known; give the rights to read it, or bring back the disk that it leads to"
            ) from error
        found = (name for name in names if name.startswith("step-") and not name.endswith(".tmp"))
        return [self.root / name for name in reversed(list(found))]

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
            raise CheckpointError(
                f"{path} does not exist; there are {', '.join(known) or 'no checkpoints'}"
            )
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
