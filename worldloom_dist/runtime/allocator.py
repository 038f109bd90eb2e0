"""Let a process keep the memory it frees, and what it has built.

Every chunk, batch and gradient is a new block of 100 kB to some 10 MB. By default glibc gives such
blocks back to the system as soon as they are freed, and the next one is faulted in page by page,
which takes longer than filling it: encoding a chunk of 64 noisy 64x64x3 frames takes four times as
long (0.62 ms instead of 0.16 on a virtual machine, ``benchmarks/replay.py allocator``). The price
is that a process stays as large as its largest moment.

A process that trains is worth more of it: each update on the CPU allocates the same hundreds of
megabytes, in blocks beyond the 32 MiB up to which glibc can be asked to keep them, so it serves all
blocks from its heap and never shrinks it. Only processes of roles are configured so (``launch``
and the ``runtime`` package call this); the library never changes the allocator of its caller.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys

__all__ = ["freeze_objects", "keep_freed_memory"]

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
"""Parameters of mallopt(3)."""
KEPT_BYTES = 256 << 20
LARGEST_MMAP_THRESHOLD = 32 << 20
"""What glibc accepts; larger blocks go back, unless none is mapped on its own."""
EVERY_BYTE = 2**31 - 1


def keep_freed_memory(*, is_training: bool = False) -> bool:
    """Ask the allocator of this process to keep up to 256 MiB that are free, or with
    ``is_training`` all that is free; variables ``MALLOC_*`` of the user win.

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
    if is_training:
        settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: EVERY_BYTE}
    else:
        settings = {
            M_MMAP_THRESHOLD: LARGEST_MMAP_THRESHOLD,
            M_TRIM_THRESHOLD: KEPT_BYTES,
        }
    return all(bool(mallopt(name, value)) for name, value in settings.items())


def freeze_objects() -> None:
    """Leave everything that there is now out of garbage collections: what imports and a policy
    consist of stays, and to look at all of it again takes tens of milliseconds, in which a process
    answers no one.
    """
    gc.collect()
    gc.freeze()
