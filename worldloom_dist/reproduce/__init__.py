"""``worldloom reproduce NAME``: a published result by its name, with the settings it was published
with, an end that is fixed before, and its numbers beside the published ones.
"""

from __future__ import annotations

from worldloom_dist.reproduce.command import main
from worldloom_dist.reproduce.targets import TARGETS, Target, find_target

__all__ = ["TARGETS", "Target", "find_target", "main"]
