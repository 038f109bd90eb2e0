"""A run's lock in the hands of another process, as a launcher holds it."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CODE = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
    "print(1, flush=True); input()"
)


@contextlib.contextmanager
def holding(lock: Path) -> Iterator[None]:
    """Hold the lock inside: it is invisible to the process that holds it."""
    command = [sys.executable, "-c", CODE, str(lock)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield
    finally:
        holder.communicate(b"\n")
