"""Rendering without a screen."""

from __future__ import annotations

import ctypes.util
import logging
import os

__all__ = ["set_up_headless"]

logger = logging.getLogger(__name__)


def set_up_headless() -> bool:
    """Set ``MUJOCO_GL`` when it is unset, which is told; must run before mujoco is imported.

    OSMesa renders on the CPU and is preferred where it is installed: several EGL renderers on one
    GPU have been seen to block each other for ever (google-deepmind/mujoco#3444).
    """
    if os.environ.get("MUJOCO_GL"):
        return False
    backend = "osmesa" if ctypes.util.find_library("OSMesa") else "egl"
    os.environ["MUJOCO_GL"] = backend
    logger.warning("MUJOCO_GL was not set; rendering without a screen through %s", backend)
    return True
