"""The videos and pictures in a run's ``videos`` folder, the newest first."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

__all__ = ["TYPES", "video_path", "videos_of"]

TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".jpg": "image/jpeg"}
COMPLETE_AFTER_S = 1.0
EVALUATION = re.compile(r"eval-(\d+)-(\d+)")
IMAGINED = re.compile(r"open_loop-(.+)-(\d+)")


def videos_of(folder: Path, *, is_live: bool = True) -> list[dict[str, Any]]:
    """The newest of every kind of video first, then others by age.

    Args:
        folder: ``videos`` of a run.
        is_live: True where a video may still be being written: one of this second is left out.

    Returns:
        ``file``, ``url`` below the page, ``caption`` and ``size_bytes`` of each.
    """
    found = []
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.suffix.lower() not in TYPES or ".half." in path.name:
            continue
        try:
            stat = path.stat()
        except OSError:  # old ones are deleted
            continue
        if not is_live or time.time() - stat.st_mtime >= COMPLETE_AFTER_S:
            found.append((stat.st_mtime, path, stat.st_size))
    found.sort(key=lambda video: (-video[0], video[1].name))
    kinds = set[str]()
    first: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for _, path, size in found:
        kind, caption = _kind_and_caption(path.stem)
        facts = {
            "file": path.name,
            "url": f"videos/{path.name}",
            "caption": caption,
            "size_bytes": size,
        }
        (others if kind in kinds else first).append(facts)
        kinds.add(kind)
    return [*first, *others]


def video_path(folder: Path, name: str) -> Path | None:
    """The video of a name; None for what is none, or lies elsewhere."""
    path = folder / name
    is_plain = name == path.name and path.suffix.lower() in TYPES
    return path if is_plain and path.is_file() and not path.is_symlink() else None


def _kind_and_caption(stem: str) -> tuple[str, str]:
    """What a video shows, and in words: ``eval-000002000-0`` is of an evaluation,
    ``open_loop-image-0000012000`` of what the agent imagines; others were made by ``evaluate``, and
    have the checkpoint's name.
    """
    if match := EVALUATION.fullmatch(stem):
        episode = f", episode {int(match[2]) + 1}" if int(match[2]) else ""
        return f"evaluation {match[2]}", f"evaluation at {int(match[1]):,} env steps{episode}"
    if match := IMAGINED.fullmatch(stem):
        return f"imagined {match[1]}", f"imagined {match[1]} at {int(match[2]):,} env steps"
    return "other", stem
