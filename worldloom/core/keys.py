"""Random keys that are kept in a file of their owner."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from worldloom.core.plain_files import read_plain

__all__ = ["KEY_BYTES", "load_key"]

KEY_BYTES = 32


def load_key(path: Path) -> bytes:
    """The key of a file, which is made when it is not there yet; readable by its owner only. Of
    several processes that make it at once the first one counts for all.

    Raises:
        OSError: If it can be neither read nor made.
    """
    if not path.is_file():
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(file, secrets.token_bytes(KEY_BYTES))
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
