"""In which precision the matrix products of an update are made; weights, losses and optimizer
states stay float32.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

__all__ = ["autocast"]


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """A context for forward passes.

    Args:
        device: Where they run.
        precision: ``float32``, ``bfloat16``, or ``auto`` (bfloat16 on CUDA, float32 elsewhere).
    """
    half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext()
