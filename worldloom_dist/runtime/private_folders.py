"""Folders of private clusters, which hold a token: made, held by a lock while their launcher lives,
and removed by a later launcher where one was killed before it could do so. The lock goes last: what
a dying process of Ray wrote into a folder that was being removed is found by it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["make_held", "release", "sweep"]

logger = logging.getLogger(__name__)

PREFIX = "wl-"
LOCK = "launcher.lock"
OF_RAY = "ray"
"""What Ray writes into; a folder of this alone is none that a launcher is making."""
_held: dict[Path, int] = {}


def make_held(place: str) -> Path:
    """A folder that no one else can read, held as long as this process lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            _held[folder] = file
            return folder
        os.close(file)  # another launcher swept it away before it was held


def release(folder: Path) -> None:
    """Remove a folder of this process."""
    _remove(folder)
    file = _held.pop(folder, None)
    if file is not None:
        os.close(file)


def sweep(places: Iterable[str], end: Callable[[Path], None]) -> None:
    """Remove this user's folders whose launcher is dead.

    Args:
        places: Where such folders are made.
        end: Ends what still runs of the cluster of a folder.
    """
    for folder in {folder for place in places for folder in Path(place).glob(f"{PREFIX}*")}:
        with contextlib.suppress(OSError):  # without a lock it is not ours, or another was faster
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            is_rest = [entry.name for entry in folder.iterdir()] == [OF_RAY]
            how = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if is_rest else 0)
            file = os.open(folder / LOCK, how, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                end(folder)
                _remove(folder)
                logger.info("removed %s, which a launcher that was killed had left", folder)
            finally:
                os.close(file)


def _remove(folder: Path) -> None:
    """Remove a folder, its lock only when nothing else is left of it."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK:
                entry.unlink()
        if [entry.name for entry in folder.iterdir()] == [LOCK]:
            shutil.rmtree(folder, ignore_errors=True)
