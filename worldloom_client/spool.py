"""Chunks on disk until they are stored: a folder that outlives the process, with a bound.

    SPOOL/lock                    held by the one process that uses it
    SPOOL/NAME/secret             what allows to push these chunks
    SPOOL/NAME/SEQ-ENV.rows       one chunk, as it travels

Every process begins a folder of its own, because a chunk's name (secret, env, seq) must never be
used for other rows; what it finds of others is pushed first. A file is written whole or not at all
when a process dies; nothing is synced, so a power cut may take the last ones.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from worldloom_client.errors import ClientError

__all__ = ["Spool", "SpoolFolder", "SpooledChunk"]

SUFFIX = ".rows"
REFUSED = "refused"


class SpooledChunk(NamedTuple):
    """One chunk in its file."""

    env: int
    seq: int
    size: int
    path: Path


class SpoolFolder:
    """The chunks of one secret, oldest first; made by :class:`Spool`.

    Args:
        path: Of the folder.
        secret: Allows to push them.
    """

    def __init__(self, path: Path, secret: bytes) -> None:
        self.path = path
        self.secret = secret
        self.chunks: deque[SpooledChunk] = deque()


class Spool:
    """Used by the thread that makes rows and the one that pushes them.

    Args:
        path: The folder; made if it is not there.
        max_bytes: Most bytes of chunks in it.

    Raises:
        ClientError: If it cannot be used, or another process uses it.
    """

    def __init__(self, path: str | Path, max_bytes: int) -> None:
        self._path = Path(path)
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._folders: list[SpoolFolder] = []
        self._bytes = 0
        self._is_over = False
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._path / "lock")
            self._load()
        except OSError as error:
            raise ClientError(f"spool: {path} cannot be used ({error.strerror})") from error

    @property
    def waiting_bytes(self) -> int:
        """Bytes of chunks that are not stored yet."""
        with self._changed:
            return self._bytes

    def begin(self, secret: bytes) -> SpoolFolder:
        """The folder of this process's own chunks.

        Raises:
            ClientError: If the disk takes it not.
        """
        path = self._path / hashlib.sha256(secret).hexdigest()[:16]
        try:
            path.mkdir(exist_ok=True)
            file = os.open(path / "secret", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(file, "wb") as stream:
                stream.write(secret)
        except OSError as error:
            raise ClientError(f"spool: {path} cannot be written ({error.strerror})") from error
        folder = SpoolFolder(path, secret)
        with self._changed:
            self._folders.append(folder)
        return folder

    def put(self, folder: SpoolFolder, env: int, seq: int, data: bytes) -> bool:
        """Keep a chunk; False when there is no room for it, or the disk takes no more."""
        with self._changed:
            if self._bytes + len(data) > self._max_bytes:
                return False
        path = folder.path / f"{seq:012d}-{env:04d}{SUFFIX}"
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            return False
        with self._changed:
            folder.chunks.append(SpooledChunk(env, seq, len(data), path))
            self._bytes += len(data)
            self._changed.notify_all()
        return True

    def wake(self) -> None:
        """Nothing more comes: waiting ends."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def next_folder(self, within_s: float) -> SpoolFolder | None:
        """The oldest folder with chunks in it; waits a while for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._first() or self._is_over, within_s)
            return self._first()

    def ahead(self, folder: SpoolFolder, number: int) -> SpooledChunk | None:
        """The chunk at a place of a folder, if there is one."""
        with self._changed:
            return folder.chunks[number] if number < len(folder.chunks) else None

    def wait_ahead(self, folder: SpoolFolder, within_s: float) -> bool:
        """Wait a while for a chunk in a folder; False when none came."""
        with self._changed:
            self._changed.wait_for(lambda: folder.chunks or self._is_over, within_s)
            return bool(folder.chunks)

    def stored(self, folder: SpoolFolder) -> None:
        """The oldest chunk of a folder is stored."""
        self._pop(folder).path.unlink(missing_ok=True)

    def refused(self, folder: SpoolFolder) -> Path:
        """The oldest chunk of a folder will never be stored; it is put aside, and counts no
        more.
        """
        chunk = self._pop(folder)
        aside = self._path / REFUSED
        aside.mkdir(exist_ok=True)
        target = aside / f"{folder.path.name}-{chunk.path.name}"
        os.replace(chunk.path, target)
        return target

    def give_up(self, folder: SpoolFolder) -> None:
        """No chunk of a folder can be pushed; they stay where they are."""
        with self._changed:
            self._folders.remove(folder)
            self._changed.notify_all()

    def wait_empty(self, within_s: float) -> int:
        """Wait until every chunk is stored; returns the bytes that are not."""
        with self._changed:
            self._changed.wait_for(lambda: self._first() is None, within_s)
            return self._bytes

    def close(self) -> None:
        """Let another process have it; folders without chunks are taken away."""
        for folder in self._folders:
            if not folder.chunks:
                (folder.path / "secret").unlink(missing_ok=True)
                folder.path.rmdir()
        os.close(self._lock)

    def _first(self) -> SpoolFolder | None:
        return next((folder for folder in self._folders if folder.chunks), None)

    def _pop(self, folder: SpoolFolder) -> SpooledChunk:
        with self._changed:
            chunk = folder.chunks.popleft()
            self._bytes -= chunk.size
            self._changed.notify_all()
            return chunk

    def _load(self) -> None:
        found = [path for path in self._path.iterdir() if (path / "secret").is_file()]
        for path in sorted(found, key=lambda path: (path / "secret").stat().st_mtime_ns):
            folder = SpoolFolder(path, (path / "secret").read_bytes())
            for file in path.glob("*.tmp"):
                file.unlink()
            for file in sorted(path.glob(f"*{SUFFIX}")):
                seq, _, env = file.stem.partition("-")
                chunk = SpooledChunk(int(env), int(seq), file.stat().st_size, file)
                folder.chunks.append(chunk)
                self._bytes += chunk.size
            self._folders.append(folder)


def _locked(path: Path) -> int:
    """A lock that ends with its process; where the system has none, two processes must not share a
    folder.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl: Any = __import__("fcntl")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except BlockingIOError as error:
        os.close(file)
        raise ClientError(
            f"spool: {path.parent} is used by another process; name another folder"
        ) from error
    return file
