"""Fused kernels for CUDA: the pointwise and row-wise work between the matrix products of an update
of DreamerV3, one launch where torch has three to eight.

:func:`has_kernels` is the one place that decides whether they are used. ``definitions`` says what
each computes, ``triton_cell`` and ``triton_losses`` compute it, ``launches`` cuts it into programs,
``ops`` makes operators of them, ``trial`` tries them.
"""

from worldloom.nn.kernels.availability import has_kernels
from worldloom.nn.kernels.grids import cdiv, rows_per_program
from worldloom.nn.kernels.ops import kernel

__all__ = ["cdiv", "has_kernels", "kernel", "rows_per_program"]
