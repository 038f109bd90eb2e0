"""Keep freed memory inside the process, so that large tensors of every update reuse pages instead
of asking for new ones.

By default glibc returns every block above a threshold to the kernel, which zeroes the pages again
at the next allocation. For an update that allocates the same hundreds of megabytes each time this
costs more than the arithmetic on them.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tell the C library to serve large blocks from its heap and never to shrink it; True if it
    understood.

    Holds for the whole process and lasts; resident memory then stays at its peak. Does nothing
    where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return (
        mallopt is not None
        and bool(mallopt(M_MMAP_MAX, 0))
        and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    )
