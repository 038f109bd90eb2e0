"""Reading files that may have been put there by others: what is no regular file, or is larger than
its reader expects, is an ``OSError`` at once. A pipe would be waited for without end, and a device
or a hole of terabytes would fill the memory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from os import PathLike
from pathlib import Path

__all__ = [
    "MOST_BYTES",
    "check_plain",
    "check_size",
    "lies_in",
    "names_in",
    "open_plain",
    "plain_lines",
    "read_open",
    "read_plain",
    "read_tail",
]

MOST_BYTES = 2**26
"""Of a file that is read as a whole: settings, summaries, trees of checkpoints."""
LINE_BYTES = 2**24
"""Of a line of a file of any length."""
NO_FILE = "is a pipe, a socket or a device; a file is needed"


def open_plain(path: str | PathLike[str]) -> BufferedReader:
    """Open a file for reading, without waiting for anything.

    Raises:
        OSError: If it cannot be opened, or is no regular file.
    """
    # O_NONBLOCK: a pipe without a writer opens at once; reads of regular files are as ever
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def check_plain(path: str | PathLike[str]) -> None:
    """Refuse what :func:`open_plain` refuses, for a reader that opens files by their names.

    Raises:
        OSError: If it is missing or no regular file.
    """
    _check_mode(path, os.stat(path).st_mode)


def _check_mode(path: str | PathLike[str], mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, NO_FILE, os.fspath(path))


def lies_in(folder: Path, path: Path) -> bool:
    """True for a regular file below ``folder`` to which no link in it leads. What is shown or
    shared of a folder that was received lies in it: a link, of a file or of a folder on the way,
    could lead to any file of whom it is shown by.
    """
    try:
        return path.is_file() and path.resolve() == folder.resolve() / path.relative_to(folder)
    except OSError:  # a name that is too long for any file
        return False


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where there is no folder.

    ``Path.glob`` finds nothing in a folder that it may not list, as if nothing were there.

    Raises:
        OSError: If it cannot be listed, is no folder, or is a link that leads nowhere: a disk that
            is away.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        if folder.is_symlink():
            raise
        return []


def read_plain(path: str | PathLike[str], most: int = MOST_BYTES) -> bytes:
    """The bytes of a file.

    Args:
        path: Of the file.
        most: Bytes that it may have.

    Raises:
        OSError: As :func:`open_plain`, or if it is larger.
    """
    with open_plain(path) as file:
        return read_open(file, path, most)


def read_open(file: BufferedReader, path: str | PathLike[str], most: int = MOST_BYTES) -> bytes:
    """What is left to read of an open file; ``path`` is how an error calls it.

    Raises:
        OSError: If the file has more than ``most`` bytes.
    """
    size = os.fstat(file.fileno()).st_size
    check_size(path, size, most)
    data = file.read(size + 1)  # room for so much is made at once; one more says that it has grown
    check_size(path, len(data), most)
    return data


def check_size(path: str | PathLike[str], size: int, most: int) -> None:
    """Refuse a file of more than ``most`` bytes.

    Raises:
        OSError: If it is larger.
    """
    if size > most:
        text = f"has {size:,} bytes, and such a file has at most {most:,}"
        raise OSError(errno.EFBIG, text, os.fspath(path))


def plain_lines(path: str | PathLike[str], start: int = 0) -> Iterator[bytes]:
    """The lines of a file from an offset on, each with its end; the last one may have none.

    Raises:
        OSError: As :func:`open_plain`, or if a line is longer than any that is written.
    """
    with open_plain(path) as file:
        file.seek(start)
        while line := file.readline(LINE_BYTES + 1):
            if len(line) > LINE_BYTES:
                text = f"has a line of more than {LINE_BYTES:,} bytes"
                raise OSError(errno.EFBIG, text, os.fspath(path))
            yield line


def read_tail(path: Path, count: int) -> bytes:
    """The last ``count`` bytes of a file, or all of a shorter one.

    Raises:
        OSError: As :func:`open_plain`.
    """
    with open_plain(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - count))
        return file.read(count)
