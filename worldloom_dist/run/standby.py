"""Whether a run keeps a standby learner: a second learner process that follows the first, and goes
on where that was when it is killed. Decided before anything is started; needs no torch.
"""

from __future__ import annotations

import os

from worldloom.core.devices import has_gpu_driver
from worldloom.core.memory import memory_left
from worldloom_dist.run.config import RunConfig

__all__ = ["describe_standby", "keep_standby", "mirror_limit"]

NEEDED_BYTES = 1.5e9
"""Left of this machine's memory, beside what the other roles may take: a standby with torch and a
small model of its own takes a third of it.
"""
MIRROR_SHARE = 4
"""At most one in this many bytes that are left holds the states that a standby follows."""


def keep_standby(config: RunConfig, others_bytes: float = 0) -> tuple[bool, str]:
    """Whether the run keeps a standby learner, and why in a few words.

    Args:
        config: Of the run, without problems.
        others_bytes: What its other roles may take of this machine's memory.
    """
    wanted = config.learner.standby
    reason = config.standby_obstacle
    if not reason and config.learner.device == "auto" and has_gpu_driver():
        reason = "a second learner would take a part of the GPU"
    if not reason and not hasattr(os, "memfd_create"):
        reason = "this system shares no memory without a name"
    if reason or wanted != "auto":
        return not reason and wanted == "on", reason or f"--learner.standby {wanted}"
    left = memory_left() - others_bytes
    if left < NEEDED_BYTES:
        return False, (
            f"{max(left, 0) / 1e9:.1f} GB of memory are left, and it wants {NEEDED_BYTES / 1e9:g}"
        )
    return True, f"{left / 1e9:.1f} GB of memory are left"


def describe_standby(decision: tuple[bool, str]) -> str:
    """One line for people."""
    is_kept, why = decision
    if is_kept:
        return f"a second learner follows the first, and goes on when that dies ({why})"
    return f"none: a learner that dies is started again from its newest checkpoint ({why})"


def mirror_limit() -> int:
    """Bytes that the states which a standby follows may take now."""
    return int(memory_left() / MIRROR_SHARE)
