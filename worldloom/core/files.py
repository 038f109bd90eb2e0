"""Files that are whole or absent, and several files that change together. No torch.

One file is written in a folder of its own and moved to its name (:func:`replacing`). Several files
of a folder are written into a folder of their own, which one rename declares valid
(:func:`replacing_together`):

    model/.replacement.1f3a.tmp/  being written; means nothing, and a later writer removes it
    model/.replacement/           valid from the rename on: its files count instead of their
                                  namesakes in model/
    model/                        then they are moved here one by one, by this writer or, if it is
                                  killed, by the next

Whatever moment a writer is killed at, a reader that looks in both places (:func:`current`,
:func:`open_together`) finds all of the old files or all of the new ones. Nothing else in the folder
is touched, and nothing but the folder need be writable. Writers to one folder take turns by a lock,
which the system releases when a process dies; readers never wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from io import BufferedReader
from os import PathLike
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.json_text import to_json
from worldloom.core.plain_files import check_plain, open_plain

__all__ = [
    "current",
    "expanded",
    "inside",
    "open_together",
    "path_of_open",
    "remove_folder",
    "replacing",
    "replacing_together",
    "staging_folder",
    "sync",
    "turn",
    "write_json",
    "write_text",
]

REPLACEMENT = ".replacement"
OPEN_ATTEMPTS = 1000
"""How often a reader opens a set of files again because a writer changed it in between; each takes
microseconds.
"""


def expanded(path: str | PathLike[str], name: str = "path") -> Path:
    """A path that a user gave, with ``~`` as the home folder; ``name`` is how an error calls it.

    Raises:
        ConfigurationError: If it is no path, or names the home of no user.
    """
    try:
        return Path(os.fsdecode(path)).expanduser()
    except (TypeError, RuntimeError) as error:
        raise ConfigurationError(
            f"{name} must be a text or a Path that leads somewhere, got {path!r} ({error})"
        ) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to: it takes the place of ``path`` when the block ends well, and is deleted
    when it does not.

    A symbolic link stays, and the file that it names is replaced. Of two writers each has a name of
    its own, and the one that ends last counts.

    Raises:
        OSError: If it cannot be written, or ``path`` is a folder, a pipe, a socket or a device: of
            ``/dev/null`` a file would be made.
    """
    path = path.resolve() if path.is_symlink() else path
    with contextlib.suppress(FileNotFoundError):
        check_plain(path)
    with staging_folder(path.parent, path.name) as staging:
        temporary = staging / path.name
        yield temporary
        if (path.parent / REPLACEMENT).is_dir():
            with turn(path.parent):
                _move_in(path.parent)
        os.replace(temporary, path)
        staging.rmdir()


def inside(folder: Path, name: str) -> Path:
    """The path of a name in a folder, perhaps a received one, to be written although no one has
    typed it.

    Raises:
        ConfigurationError: If it is a link, which could lead to any file of the user.
    """
    path = folder / name
    if path.is_symlink():
        raise ConfigurationError(
            f"output: {path} is a link, perhaps to a file of yours; remove it, or name another "
            "place"
        )
    return path


@contextlib.contextmanager
def replacing_together(folder: Path) -> Iterator[Path]:
    """A folder to write files to: when the block ends well, they take the place of their namesakes
    in ``folder`` all at once.

    Files are flushed to the disk first. When the block or the disk fails, ``folder`` is as it was.
    A folder that does not exist appears whole; one that does keeps its other files.

    Raises:
        NotADirectoryError: If ``folder`` is a file, or leads nowhere.
        IsADirectoryError: If a name to be replaced is a folder.
        OSError: If something cannot be written.
    """
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is a file or a link to nowhere, a folder is needed")
    is_new = not folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    place, stem = (folder.parent, folder.name) if is_new else (folder, REPLACEMENT)
    with staging_folder(place, stem) as staging:
        yield staging
        for path in staging.iterdir():
            sync(path)
        sync(staging)
        _commit(staging, folder)


@contextlib.contextmanager
def staging_folder(place: Path, stem: str) -> Iterator[Path]:
    """A new folder in ``place`` for one writer, which moves it or what is in it; removed when the
    block fails, and by a later writer of the same ``stem`` when this one is killed.
    """
    _remove_abandoned(place, stem)
    with contextlib.ExitStack() as alive:
        while True:
            staging = place / f"{stem}.{secrets.token_hex(4)}.tmp"
            staging.mkdir()
            # the lock tells other writers that this one is alive; one that came before it removed
            # the folder
            with contextlib.suppress(FileNotFoundError):
                alive.enter_context(turn(staging))
                if staging.exists():
                    break
        try:
            yield staging
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def current(folder: Path, name: str) -> Path:
    """Where the valid file of a name is: usually ``folder / name``, whether it exists or not."""
    committed = folder / REPLACEMENT / name
    return committed if committed.exists() else folder / name


@contextlib.contextmanager
def open_together(folder: Path, names: Iterable[str]) -> Iterator[dict[str, BufferedReader]]:
    """Files of a folder, open for reading: all of one version, also beside a writer. Missing ones
    are left out.

    Raises:
        OSError: If one cannot be read, or the files never stayed the same for the moment that
            opening takes.
    """
    names = list(names)
    for _ in range(OPEN_ATTEMPTS):
        with contextlib.ExitStack() as stack:
            files = {}
            for name in names:
                file = _opened(folder, name)
                if file is not None:
                    files[name] = stack.enter_context(file)
            if all(_identity(folder, name) == _identity_of(files.get(name)) for name in names):
                yield files
                return
    raise OSError(f"{folder}: its files change all the time; stop what writes to it")


def path_of_open(file: BufferedReader) -> str:
    """A name that leads to the very file that is open, though another may have taken its place; its
    own where there is none.
    """
    name = f"/dev/fd/{file.fileno()}"
    return name if os.path.exists(name) else file.name


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is whole or gone; what a killed process leaves of it ends in
    ``.tmp``.
    """
    abandoned = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
    os.rename(folder, abandoned)
    shutil.rmtree(abandoned, ignore_errors=True)


def _opened(folder: Path, name: str) -> BufferedReader | None:
    for path in (folder / REPLACEMENT / name, folder / name):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return open_plain(path)
    return None


def _identity(folder: Path, name: str) -> tuple[int, int] | None:
    for path in (folder / REPLACEMENT / name, folder / name):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = path.stat()
            return status.st_dev, status.st_ino
    return None


def _identity_of(file: BufferedReader | None) -> tuple[int, int] | None:
    if file is None:
        return None
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _commit(staging: Path, folder: Path) -> None:
    """Declare the files valid and move them in; a folder that is not there takes the name of the
    staged one.
    """
    if not folder.is_dir():
        try:
            os.rename(staging, folder)
        except OSError:
            if not folder.is_dir():  # else another writer made it meanwhile
                raise
        else:
            sync(folder.parent)
            return
    with turn(folder):
        _move_in(folder)
        blocked = [path.name for path in staging.iterdir() if (folder / path.name).is_dir()]
        if blocked:
            raise IsADirectoryError(
                f"{folder / blocked[0]}: is a folder, and a file of that name is to "
                "be written; move it away"
            )
        os.rename(staging, folder / REPLACEMENT)
        sync(folder)
        _move_in(folder)
        sync(folder)


def _move_in(folder: Path) -> None:
    """Move a valid replacement to its place; the caller has the folder's lock."""
    committed = folder / REPLACEMENT
    if not committed.is_dir():
        return
    for path in committed.iterdir():
        os.replace(path, folder / path.name)
        # two names of one file: renaming one to the other does nothing
        path.unlink(missing_ok=True)
    committed.rmdir()


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; where there are no locks, writers are trusted to be alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(place: Path, stem: str) -> None:
    """Remove what killed writers left unfinished: staging folders whose lock no one holds."""
    pattern = re.compile(re.escape(stem) + r"\.[0-9a-f]{8}\.tmp")
    with contextlib.suppress(OSError):
        for path in [path for path in place.iterdir() if pattern.fullmatch(path.name)]:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            except OSError:
                continue
            finally:
                os.close(descriptor)


def write_text(path: Path, text: str, *, is_synced: bool = False) -> None:
    """Replace a file so that a reader sees the old content or the new one, never half of one; with
    ``is_synced`` the new one is on the disk when this returns.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if is_synced:
            sync(temporary)
    if is_synced:
        sync(path.parent)


def write_json(path: Path, data: Any, *, is_synced: bool = False) -> None:
    """Replace a JSON file as :func:`write_text` does; NaN and infinity become null."""
    write_text(path, to_json(data, indent=2) + "\n", is_synced=is_synced)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
