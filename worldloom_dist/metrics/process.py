"""What a process and its machine use: memory, CPU, open files, disk, GPU."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from pathlib import Path

import psutil

from worldloom.core.error_text import first_line
from worldloom.core.metrics import Last, MetricMap, Sum

__all__ = ["NodeMeter", "ProcessMeter", "gpu_metrics"]

logger = logging.getLogger(__name__)


class ProcessMeter:
    """Memory, CPU time and open files of this process and its children (the env processes of a
    worker).

    Example:
        >>> ProcessMeter().drain()["process_resident_memory_bytes"].value > 0
        True
    """

    def __init__(self) -> None:
        self._cpu_s: dict[int, float] = {}

    def drain(self) -> MetricMap:
        """Memory and files now, CPU seconds since the last call."""
        resident = 0
        files = 0
        seen = {}
        for pid in _family(os.getpid()):
            with contextlib.suppress(psutil.Error):  # a child may end meanwhile
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    seen[pid] = times.user + times.system
                    resident += process.memory_info().rss
                    files += process.num_fds()
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
        self._total_s = 0.0
        self._idle_s = 0.0

    def drain(self) -> MetricMap:
        """What is left now, and how busy the cores were since the last call."""
        values: MetricMap = {}
        with contextlib.suppress(OSError):
            disk = shutil.disk_usage(self._folder)
            values |= {"disk_free_bytes": Last(disk.free), "disk_size_bytes": Last(disk.total)}
        values["node_memory_available_bytes"] = Last(psutil.virtual_memory().available)
        times = psutil.cpu_times()
        # guests are counted as users already
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        passed = total - self._total_s
        idled = idle - self._idle_s
        self._total_s = total
        self._idle_s = idle
        busy = 1.0 - idled / passed if passed > 0 else 0.0
        values["node_cpu_busy_ratio"] = Last(min(1.0, max(0.0, busy)))
        return values


def gpu_metrics(device: str) -> MetricMap:
    """Memory and utilization of a CUDA device; empty for a CPU.

    What the driver does not tell here (NVML is not installed, or a container or a part of a GPU may
    not ask) is left out, and one line in the log says why.
    """
    if not device.startswith("cuda"):
        return {}
    import torch

    gpu = f"gpu={torch.device(device).index or 0}"
    values: MetricMap = {}
    try:
        free, total = torch.cuda.mem_get_info(device)
        values[f"gpu_memory_used_bytes{{{gpu}}}"] = Last(float(total - free))
        values[f"gpu_utilization_ratio{{{gpu}}}"] = Last(torch.cuda.utilization(device) / 100)
    # NVML's errors inherit from Exception alone, and its bindings may not be there to name them
    except Exception as error:
        _say_once(f"{type(error).__name__}: {first_line(error)}")
    return values


@functools.cache
def _say_once(reason: str) -> None:
    logger.info("the GPU's utilization is not measured: %s", reason)


def _family(pid: int) -> list[int]:
    """A process and its direct children.

    Linux lists them for every thread; ``psutil`` would read every process of the machine, in each
    of many workers, every two seconds.
    """
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.exists():
        return [pid, *(child.pid for child in psutil.Process(pid).children())]
    found = [pid]
    with contextlib.suppress(OSError, ValueError):
        for task in tasks.iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
