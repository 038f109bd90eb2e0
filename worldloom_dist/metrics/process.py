"""What a process and its machine use: memory, CPU, open files, disk. Read from ``/proc``; left out
where there is none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

from worldloom.core.metrics import Last, MetricMap, Sum

__all__ = ["NodeMeter", "ProcessMeter"]

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class ProcessMeter:
    """Memory, CPU time and open files of this process and its children (the env processes of a
    worker).

    Example:
        >>> "process_resident_memory_bytes" in ProcessMeter().drain() or sys.platform != "linux"
        True
    """

    def __init__(self) -> None:
        self._cpu_s: dict[int, float] = {}

    def drain(self) -> MetricMap:
        """Memory and files now, CPU seconds since the last call; empty where there is no
        ``/proc``.
        """
        if sys.platform != "linux":
            return {}
        resident = 0
        files = 0
        spent = 0.0
        seen = {}
        for pid in _family(os.getpid()):
            with contextlib.suppress(OSError, ValueError, IndexError):  # a child may end meanwhile
                fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
                seen[pid] = (int(fields[11]) + int(fields[12])) / TICKS
                resident += int(fields[21]) * PAGE
                files += len(os.listdir(PROC / str(pid) / "fd"))
        spent = sum(max(0.0, cpu_s - self._cpu_s.get(pid, 0.0)) for pid, cpu_s in seen.items())
        self._cpu_s = seen
        return {
            "process_resident_memory_bytes": Last(resident),
            "process_open_fds": Last(files),
            "process_cpu_seconds_total": Sum(spent),
        }


class NodeMeter:
    """Free disk, memory and CPU of this machine.

    Args:
        folder: On the disk in question.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cpu = (0, 0)

    def drain(self) -> MetricMap:
        """What is left now, and how busy the cores were since the last call."""
        values: MetricMap = {}
        with contextlib.suppress(OSError):
            disk = shutil.disk_usage(self._folder)
            values |= {"disk_free_bytes": Last(disk.free), "disk_size_bytes": Last(disk.total)}
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = (PROC / "meminfo").read_text().splitlines()
            free = next(line for line in lines if line.startswith("MemAvailable:"))
            values["node_memory_available_bytes"] = Last(int(free.split()[1]) * 1024)
            ticks = [
                int(field) for field in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
            ]
            total = sum(ticks)
            idle = ticks[3] + ticks[4]
            passed = total - self._cpu[0]
            idled = idle - self._cpu[1]
            self._cpu = (total, idle)
            values["node_cpu_busy_ratio"] = Last(
                1.0 - idled / passed if passed > 0 else 0.0, time.time()
            )
        return values


def _family(pid: int) -> list[int]:
    """A process and its direct children; the kernel lists them per thread."""
    found = [pid]
    with contextlib.suppress(OSError, ValueError):
        for task in os.listdir(PROC / str(pid) / "task"):
            found += map(int, (PROC / str(pid) / "task" / task / "children").read_text().split())
    return found
