"""What 0.1 had here: the head of ``worldloom.nn.dense``, and symlog with its inverse for use
outside the networks.
"""

from __future__ import annotations

from torch import Tensor

from worldloom.nn import functional
from worldloom.nn.dense import Head
from worldloom.nn.functional import symlog

__all__ = ["Head", "symexp", "symlog"]

LARGEST = 88.0
"""exp of this is still a float32."""


def symexp(x: Tensor) -> Tensor:
    """Inverse of symlog for use outside the networks: finite for every finite number."""
    return functional.symexp(x.clamp(-LARGEST, LARGEST))
