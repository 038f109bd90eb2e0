"""Files that are whole or absent: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["sync", "write_json", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Replace a file so that a reader sees the old content or the new one, never half of one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file as :func:`write_text` does."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
