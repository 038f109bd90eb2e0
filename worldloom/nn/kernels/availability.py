"""Whether the fused kernels are used: asked once per device, and answered by trying them."""

from __future__ import annotations

import functools
import importlib
import itertools
import logging
import os

import torch

from worldloom.core.exceptions import ConfigurationError
from worldloom.nn.kernels.ops import LAUNCHES
from worldloom.nn.kernels.trial import USED, Sizes, cases, difference

__all__ = ["SWITCH", "has_kernels", "kernel_problem"]

logger = logging.getLogger(__name__)

SWITCH = "WORLDLOOM_KERNELS"
"""Environment variable; ``off`` leaves torch's own operators in their place."""
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest difference from the definitions."""


def has_kernels(device: torch.device) -> bool:
    """True where the kernels run, compute what is expected of them, and are not switched off.

    On CUDA they are tried before their first use, which waits for the device: the first update and
    the first decision are never being recorded. On ``meta`` they are there, as on a GPU. What
    torch compiles is fused by its own compiler.

    Raises:
        ConfigurationError: If the environment variable says neither ``on`` nor ``off``.
    """
    if device.type == "cpu" or torch.compiler.is_compiling():
        return False
    asked = os.environ.get(SWITCH, "on")
    if asked not in ("on", "off"):
        raise ConfigurationError(f"{SWITCH} must be on or off, got {asked!r}")
    if asked == "off":
        return False
    return device.type == "meta" or (device.type == "cuda" and try_kernels(device))


@functools.cache
def try_kernels(device: torch.device) -> bool:
    """Compile, run and compare every kernel once on ``device``; one line in the log says why they
    are not used.
    """
    problem = kernel_problem(device)
    if problem:
        logger.warning(
            "fused kernels are not used on %s: %s; updates run on torch's own operators",
            device,
            problem,
        )
    return not problem


@torch.no_grad()
def kernel_problem(device: torch.device) -> str:
    """What keeps the kernels from being used on ``device``; empty where nothing does."""
    try:
        launches = importlib.import_module(LAUNCHES)
        for (dtype, bound), sizes in itertools.product(BOUNDS.items(), (Sizes(), USED)):
            for case in cases(device, dtype, sizes):
                found = difference(case, getattr(launches, case.name))
                if not found <= bound:
                    return f"{case.name} in {dtype} is wrong by {found:.1e}"
    except Exception as error:  # a missing compiler, a driver, a version: whatever it is
        return f"{type(error).__name__}: {error}".split("\n")[0]
    return ""
