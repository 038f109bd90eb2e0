"""The videos and pictures in a run's ``videos`` folder, the newest first."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from worldloom.core.plain_files import lies_here
from worldloom_dist.metrics.media import is_half_written, subject_of

__all__ = ["TYPES", "video_path", "videos_of"]

TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".jpg": "image/jpeg"}
COMPLETE_AFTER_S = 1.0


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
        if path.suffix.lower() not in TYPES or is_half_written(path) or not lies_here(path):
            continue
        try:
            stat = path.stat()
        except OSError:  # old ones are deleted
            continue
        if not is_live or abs(time.time() - stat.st_mtime) >= COMPLETE_AFTER_S:
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
    return path if is_plain and lies_here(path) else None


def _kind_and_caption(stem: str) -> tuple[str, str]:
    """What a video shows, and in words; others than a run's have the checkpoint's name."""
    kind, which, env_steps, task = subject_of(stem)
    if kind == "evaluation":
        episode = f", episode {int(which) + 1}" if int(which) else ""
        of_task = f" of {task}" if task else ""
        return (
            f"evaluation {task} {which}",
            f"evaluation{of_task} at {env_steps:,} env steps{episode}",
        )
    if kind == "imagined":
        return f"imagined {which}", f"imagined {which} at {env_steps:,} env steps"
    return "other", stem
