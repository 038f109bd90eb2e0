"""Checkpoints behind a URL that ``fsspec`` knows: ``s3://``, ``gs://``, ``memory://`` and others.

Object stores cannot rename a folder, so the manifest is the commit mark: it is uploaded last and removed first, and a folder
without one does not count. Everything else, checksums included, is as in :mod:`worldloom.training.checkpoints`.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from worldloom.core.exceptions import CheckpointError
from worldloom.training.checkpoints import FILES, CheckpointStore, load_tree, save_tree

__all__ = ["RemoteCheckpointStore", "open_store"]

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def open_store(place: str | Path, *, keep: int = 3) -> CheckpointStore:
    """The checkpoints at a path or URL.

    Raises:
        CheckpointError: If ``fsspec`` does not know the URL's protocol or lacks a package for it.
    """
    if "://" not in str(place):
        return CheckpointStore(Path(place), keep=keep)
    return RemoteCheckpointStore(str(place), keep=keep)


class RemoteCheckpointStore(CheckpointStore):
    """As :class:`CheckpointStore`, behind a URL; paths are names inside the URL, except for the local copy that :meth:`find` makes.

    Args:
        url: Folder that holds the checkpoint folders.
        keep: How many of the newest stay.
    """

    def __init__(self, url: str, *, keep: int = 3) -> None:
        try:
            files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise CheckpointError(f"checkpoints: {url!r} cannot be opened ({error}); install its package or name a path") from error
        super().__init__(Path(root), keep)
        self._files: Any = files
        self._root = root.rstrip("/")
        self._copies = Path(tempfile.mkdtemp(prefix="wl-checkpoint-"))
        weakref.finalize(self, shutil.rmtree, self._copies, ignore_errors=True)

    def save(self, step: int, tree: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> Path:
        """Upload a checkpoint named after ``step`` and drop those that are too old."""
        name = f"step-{step:012d}"
        with tempfile.TemporaryDirectory(prefix="wl-checkpoint-") as temporary:
            folder = Path(temporary) / name
            save_tree(folder, tree, {"step": step, **(facts or {})})
            self._remove(name)
            for file in (*FILES, MANIFEST):
                self._files.pipe_file(f"{self._root}/{name}/{file}", (folder / file).read_bytes())
        for old in self.folders()[self.keep :]:
            self._remove(old.name)
        return Path(self._root) / name

    def mark_best(self, folder: Path, score: float) -> bool:
        """Copy ``folder`` to ``best`` if its score is above that of the present one (or there is none)."""
        best = self._manifest("best")
        if best is not None and best["facts"].get("score", -np.inf) >= score:
            return False
        manifest = self._existing_manifest(folder.name)
        self._remove("best")
        for file in FILES:
            self._files.copy(f"{self._root}/{folder.name}/{file}", f"{self._root}/best/{file}")
        manifest["facts"]["score"] = score
        self._files.pipe_file(f"{self._root}/best/{MANIFEST}", json.dumps(manifest).encode())
        return True

    def folders(self) -> list[Path]:
        """Names of complete checkpoints inside the URL, newest first."""
        if not self._files.exists(self._root):
            return []
        self._files.invalidate_cache()
        found = (Path(path) for path in self._files.ls(self._root, detail=False))
        return sorted((p for p in found if p.name.startswith("step-") and self._manifest(p.name) is not None), reverse=True)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that loads, or None; a corrupt one is skipped with a warning."""
        for folder in self.folders():
            try:
                return folder, load_tree(self.find(folder.name))
            except CheckpointError as error:
                logger.warning("skipping a checkpoint: %s", error)
        return None

    def size(self, folder: Path) -> int:
        """Bytes of a checkpoint's files, without the manifest."""
        manifest = self._manifest(folder.name) or {"files": {}}
        return sum(file["bytes"] for file in manifest["files"].values())

    def facts(self, folder: Path) -> dict[str, Any]:
        """What the caller of :meth:`save` noted in the manifest.

        Raises:
            CheckpointError: If there is none.
        """
        return dict(self._existing_manifest(folder.name)["facts"])

    def find(self, name: str) -> Path:
        """A local copy of the checkpoint ``name``; it lasts as long as this store.

        Raises:
            CheckpointError: If there is none.
        """
        if self._manifest(name) is None:
            raise CheckpointError(f"{self._root}/{name} is not a checkpoint")
        target = self._copies / name
        target.mkdir(exist_ok=True)
        for file in (*FILES, MANIFEST):
            (target / file).write_bytes(self._files.cat_file(f"{self._root}/{name}/{file}"))
        return target

    def _existing_manifest(self, name: str) -> dict[str, Any]:
        manifest = self._manifest(name)
        if manifest is None:
            raise CheckpointError(f"{name}: is not a checkpoint at {self._root}")
        return manifest

    def _manifest(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._files.cat_file(f"{self._root}/{name}/{MANIFEST}"))
        except (FileNotFoundError, ValueError):
            return None
        return found

    def _remove(self, name: str) -> None:
        folder = f"{self._root}/{name}"
        if self._files.exists(f"{folder}/{MANIFEST}"):
            self._files.rm_file(f"{folder}/{MANIFEST}")
        if self._files.exists(folder):
            self._files.rm(folder, recursive=True)
