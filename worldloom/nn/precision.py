"""In which precision the matrix products of an update are made; weights, losses and optimizer
states stay float32.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

__all__ = ["autocast", "single"]


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """A context for forward passes.

    Args:
        device: Where they run.
        precision: ``float32``, ``bfloat16``, or ``default`` and ``auto``: bfloat16 on CUDA,
            float32 elsewhere; a run that measures puts what it found in the place of ``auto``.
    """
    follows_device = precision in ("default", "auto")
    half = precision == "bfloat16" or (follows_device and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext()


def single(x: Tensor) -> Tensor:
    """Numbers in half precision as float32, others as they are: for what is summed, exponentiated
    or compared after a product.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
