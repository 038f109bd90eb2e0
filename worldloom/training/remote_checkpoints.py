"""Checkpoints behind a URL that ``fsspec`` knows: ``s3://``, ``gs://``, ``memory://`` and others.

Object stores cannot rename a folder, but they replace one object as a whole. So the manifest
decides: data lie under names made of their checksums, which never change; the manifest that names
them is uploaded after them, and only then is what it no longer names removed. A writer that dies
leaves the old checkpoint or the new one. A folder without a manifest does not count. Everything
else, checksums included, is as in :mod:`worldloom.training.tree_files`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import CheckpointError
from worldloom.core.files import expanded
from worldloom.core.json_text import parse_json
from worldloom.training.checkpoints import CheckpointStore, score_of
from worldloom.training.manifests import FILES, MANIFEST

__all__ = ["RemoteCheckpointStore", "open_store"]

logger = logging.getLogger(__name__)


class _AwayError(CheckpointError):
    """The place itself cannot be used: this says nothing of what is in it."""


READ_ATTEMPTS = 5
"""How often a checkpoint is read again because another one took its place meanwhile."""


def open_store(place: str | Path, *, keep: int = 3) -> CheckpointStore:
    """The checkpoints at a path or URL.

    Raises:
        CheckpointError: If ``fsspec`` does not know the URL's protocol or lacks a package for it.
    """
    if "://" not in str(place):
        return CheckpointStore(expanded(place), keep=keep)
    files, root = _file_system(str(place))
    if isinstance(files, LocalFileSystem):
        return CheckpointStore(Path(root), keep=keep)
    return RemoteCheckpointStore(str(place), keep=keep)


def _file_system(url: str) -> tuple[Any, str]:
    try:
        files, root = fsspec.core.url_to_fs(url)
    except Exception as error:  # of any kind, by protocol
        raise CheckpointError(
            f"checkpoints: {url!r} cannot be opened ({error}); install its package or name a path"
        ) from error
    return files, root


class RemoteCheckpointStore(CheckpointStore):
    """As :class:`CheckpointStore`, behind a URL; paths are names inside the URL, except for the
    local copy that :meth:`find` makes.

    Args:
        url: Folder that holds the checkpoint folders.
        keep: How many of the newest stay.
    """

    def __init__(self, url: str, *, keep: int = 3) -> None:
        files, root = _file_system(url)
        super().__init__(Path(root), keep)
        self.files = files
        self._url = url
        self._root = root.rstrip("/")
        self._copies = Path(tempfile.mkdtemp(prefix="wl-checkpoint-"))
        weakref.finalize(self, shutil.rmtree, self._copies, ignore_errors=True)

    def save(
        self, step: int, tree: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> Path:
        """Upload a checkpoint named after ``step``; drop those that are too old, and what an upload
        that failed has left.

        Raises:
            CheckpointError: If the place cannot be used, as in all methods.
        """
        name = f"step-{step:012d}"
        self._upload(name, tree, {"step": step, **(facts or {})})
        saved = [path.name for path in self.folders() if path.name <= name]  # later ones: damaged
        kept = saved[: self.keep]
        for old in self._names():
            if old.startswith("step-") and old < name and old not in kept:
                self._remove(old)
        return Path(self._root) / name

    def save_best(self, tree: Mapping[str, Any], facts: Mapping[str, Any], score: float) -> bool:
        """See :meth:`CheckpointStore.save_best`."""
        is_best = math.isfinite(score) and score > self.best_score()
        if is_best:
            self._upload("best", tree, {**facts, "score": score})
        return is_best

    def _upload(self, name: str, tree: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        from worldloom.training.tree_files import save_tree

        with tempfile.TemporaryDirectory(prefix="wl-checkpoint-") as temporary:
            folder = Path(temporary) / name
            save_tree(folder, tree, facts)
            manifest: dict[str, Any] = parse_json((folder / MANIFEST).read_bytes())
            for file, entry in manifest["files"].items():
                entry["at"] = _stored_name(file, entry["sha256"])
                with self._told():
                    self.files.pipe_file(
                        f"{self._root}/{name}/{entry['at']}", (folder / file).read_bytes()
                    )
        self._publish(name, manifest)

    def mark_best(self, folder: Path, score: float) -> bool:
        """Copy ``folder`` to ``best`` if its score is above that of the present one (or there is
        none).
        """
        if not math.isfinite(score):
            logger.warning("%s: its score is %s, which cannot be the best", folder, score)
            return False
        if score <= self.best_score():
            return False
        manifest = self._existing_manifest(folder.name)
        for file, entry in manifest["files"].items():
            source = Path(entry.get("at", file)).name
            entry["at"] = _stored_name(file, entry["sha256"])
            with self._told():
                self.files.copy(
                    f"{self._root}/{folder.name}/{source}", f"{self._root}/best/{entry['at']}"
                )
        manifest["facts"]["score"] = score
        self._publish("best", manifest)
        return True

    def best_score(self) -> float:
        """Score of the present best checkpoint; minus infinity when there is none, or it is no
        comparison.
        """
        facts = (self._manifest("best") or {}).get("facts") or {}
        return score_of(facts) if self.compares(facts) else -math.inf

    def _publish(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Let a manifest count from now on, and remove what it does not name."""
        text = json.dumps(manifest, allow_nan=False)
        named = {MANIFEST, *(entry["at"] for entry in manifest["files"].values())}
        with self._told():
            self.files.pipe_file(f"{self._root}/{name}/{MANIFEST}", text.encode())
            self.files.invalidate_cache()
            for path in self.files.ls(f"{self._root}/{name}", detail=False):
                if path.rstrip("/").rpartition("/")[2] not in named:
                    self.files.rm_file(path)

    def folders(self) -> list[Path]:
        """Names of complete checkpoints inside the URL, newest first."""
        found = (Path(self._root) / name for name in self._names() if name.startswith("step-"))
        return sorted((p for p in found if self._manifest(p.name) is not None), reverse=True)

    def _names(self) -> list[str]:
        """Of all folders; none where there is nothing yet. ``exists`` of many file systems takes a
        place that is away for an empty one.
        """
        with self._told():
            self.files.invalidate_cache()
            try:
                paths = self.files.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        return [path.rstrip("/").rpartition("/")[2] for path in paths]

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that loads, or None; a corrupt one is skipped with a warning."""
        from worldloom.training.tree_files import load_tree

        for folder in self.folders():
            try:
                return folder, load_tree(self.find(folder.name))
            except _AwayError:
                raise
            except CheckpointError as error:
                logger.warning("skipping a checkpoint: %s", error)
        return None

    def size(self, folder: Path) -> int:
        """Bytes of a checkpoint's files, without the manifest."""
        manifest = self._manifest(folder.name) or {}
        sizes = (_entry(manifest, file).get("bytes") for file in FILES)
        return sum(size for size in sizes if isinstance(size, int))

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
        target = self._copies / name
        target.mkdir(exist_ok=True)
        for _ in range(READ_ATTEMPTS):
            manifest = self._manifest(name)
            if manifest is None:
                raise CheckpointError(f"{self._root}/{name} is not a checkpoint")
            stored = {file: Path(str(_entry(manifest, file).get("at", file))) for file in FILES}
            contents = {file: self._read(f"{name}/{stored[file].name}") for file in FILES}
            if None in contents.values():
                continue  # another one has taken its place: look again
            for file, content in contents.items():
                (target / file).write_bytes(content or b"")
            (target / MANIFEST).write_text(json.dumps(manifest))
            return target
        raise CheckpointError(
            f"{self._root}/{name}: a file that its manifest names is missing; use an "
            "earlier checkpoint"
        )

    def _existing_manifest(self, name: str) -> dict[str, Any]:
        manifest = self._manifest(name)
        if manifest is None:
            raise CheckpointError(f"{name}: is not a checkpoint at {self._root}")
        return manifest

    def _manifest(self, name: str) -> dict[str, Any] | None:
        text = self._read(f"{name}/{MANIFEST}")
        try:
            found = None if text is None else parse_json(text)
        except ValueError:
            return None
        parts = [found.get(name) for name in ("files", "facts")] if isinstance(found, dict) else []
        return found if parts and all(isinstance(part, dict) for part in parts) else None

    def _read(self, name: str) -> bytes | None:
        """A file inside the URL; None where there is none."""
        with self._told():
            try:
                content: bytes = self.files.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None
        return content

    def _remove(self, name: str) -> None:
        with self._told():
            for path in (f"{self._root}/{name}/{MANIFEST}", f"{self._root}/{name}"):
                with contextlib.suppress(FileNotFoundError):
                    self.files.rm(path, recursive=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever a file system raises in the block, as one sentence."""
        try:
            yield
        except Exception as error:  # of any kind, by protocol
            raise _AwayError(
                f"checkpoints: {self._url} cannot be used ({type(error).__name__}: "
                f"{first_line(error)}); look whether it can be reached, and with which rights"
            ) from error


def _entry(manifest: Mapping[str, Any], file: str) -> Mapping[str, Any]:
    """What a manifest, perhaps a foreign one, says of a file."""
    files = manifest.get("files")
    entry = files.get(file) if isinstance(files, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}


def _stored_name(file: str, sha256: str) -> str:
    """Where a file's contents lie: other contents have another name."""
    stem, dot, suffix = file.partition(".")
    return f"{stem}-{sha256[:16]}{dot}{suffix}"
