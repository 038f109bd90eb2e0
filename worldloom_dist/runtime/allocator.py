"""Let a process keep the memory it frees.

Every chunk, batch and gradient is a new block of 100 kB to some 10 MB. By default glibc gives such
blocks back to the system as soon as they are freed, and the next one is faulted in page by page,
which takes longer than filling it: encoding a chunk of 64 noisy 64x64x3 frames takes four times as
long (0.62 ms instead of 0.16 on a virtual machine, ``benchmarks/replay.py allocator``). The price
is that a process stays as large as its largest moment.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Parameters of mallopt(3)."""
KEPT_BYTES = 256 << 20
LARGEST_MMAP_THRESHOLD = 32 << 20
"""What glibc accepts; larger blocks always go back."""


def keep_freed_memory() -> bool:
    """Ask the allocator of this process to keep up to 256 MiB that are free; variables
    ``MALLOC_*_THRESHOLD_`` of the user win.

    Returns:
        False where there is no such setting (another libc than glibc), or where the user has
        chosen.
    """
    if not sys.platform.startswith("linux") or any(
        name.startswith("MALLOC_") for name in os.environ
    ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)) and bool(
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    )
