"""Random keys that are kept in a file of their owner."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from worldloom.core.plain_files import read_plain

__all__ = ["KEY_BYTES", "load_key"]

logger = logging.getLogger(__name__)

KEY_BYTES = 32


def load_key(path: Path) -> bytes:
    """The key of a file, readable by its owner only. It is made when it is not there yet; one that
    is cut short, of another user, or that others could have read is replaced. Of several processes
    that make it at once the first one counts for all.

    Raises:
        OSError: If it can be neither read nor made.
    """
    is_there = path.is_file()
    if is_there and not _is_secret(path):
        logger.warning("%s is no key that only you know: a new one takes its place", path)
        path.unlink(missing_ok=True)
        is_there = False
    if not is_there:
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(file, secrets.token_bytes(KEY_BYTES))
            os.fsync(file)
        finally:
            os.close(file)
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
    return read_plain(path)


def _is_secret(path: Path) -> bool:
    facts = path.stat()
    is_mine = facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
    return is_mine and facts.st_size == KEY_BYTES
