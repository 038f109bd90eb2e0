"""Processes that a test starts end with it, whatever becomes of it."""

import contextlib
import subprocess
from collections.abc import Iterator

__all__ = ["ended"]


@contextlib.contextmanager
def ended(*processes: subprocess.Popen) -> Iterator[None]:
    """Kill what of the processes is left at the end."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
