"""How much memory this process may take, how much is left, and how much a process and its children
hold: of the machine, or of the container (cgroup v1 or v2) where that is tighter.

Where the system does not say (no ``/proc``), psutil does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MemoryBound", "held_bytes", "memory_bounds", "memory_left", "memory_total", "tree_of"]

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
NO_LIMIT = 1 << 60
"""A cgroup v1 without a limit says a number above this one."""


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """Something that bounds memory.

    Attributes:
        owner: ``machine`` or ``container``.
        total: Bytes that it has.
        left: Bytes of these that can be taken still; files that are cached do not count as taken.
    """

    owner: str
    total: int
    left: int


def memory_bounds(cgroup: Path = CGROUP) -> list[MemoryBound]:
    """The machine, and every cgroup with a limit that this process is in; the tightest first.

    Example:
        >>> bound = memory_bounds()[0]
        >>> 0 <= bound.left <= bound.total
        True
    """
    bounds = [_machine()]
    for folder in _cgroups(cgroup):
        with contextlib.suppress(OSError, ValueError):
            limit, used = _of_cgroup(folder)
            if limit < bounds[0].total:
                bounds.append(MemoryBound("container", limit, max(0, limit - used)))
    return sorted(bounds, key=lambda bound: bound.left)


def memory_left(cgroup: Path = CGROUP) -> int:
    """Bytes that processes may take still."""
    return memory_bounds(cgroup)[0].left


def memory_total(cgroup: Path = CGROUP) -> int:
    """Bytes that there are for this process and all others within the same bound."""
    return min(bound.total for bound in memory_bounds(cgroup))


def tree_of(pid: int) -> list[int]:
    """A process and all that it has started, as far as they live.

    Linux lists children by thread; psutil would read every process of the machine.
    """
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.exists():
        import psutil

        with contextlib.suppress(psutil.Error):
            return [pid, *(one.pid for one in psutil.Process(pid).children(recursive=True))]
        return [pid]
    found = [pid]
    with contextlib.suppress(OSError):
        for task in tasks.iterdir():
            with contextlib.suppress(OSError, ValueError):  # a thread may end meanwhile
                for child in (task / "children").read_text().split():
                    found += tree_of(int(child))
    return found


def held_bytes(pids: list[int], *, is_exact: bool = False) -> int:
    """Memory that processes hold together; 0 for those that are gone.

    Args:
        pids: Of the processes.
        is_exact: Share what is shared among those that share it, which takes milliseconds per GB;
            else it counts for each of them.
    """
    return sum((_pss(pid) if is_exact else None) or _resident(pid) for pid in pids)


def _machine() -> MemoryBound:
    try:
        found = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        total, left = (1024 * int(found[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        import psutil

        memory = psutil.virtual_memory()
        total, left = memory.total, memory.available
    return MemoryBound("machine", int(total), int(left))


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of this process's own cgroups, and those above."""
    lines = []
    with contextlib.suppress(OSError):
        lines = [line.split(":", 2) for line in OWN_CGROUPS.read_text().splitlines()]
    places = {root: "", root / "memory": ""}
    for _, kinds, path in (line for line in lines if len(line) == 3):
        if not kinds:
            places[root] = path
        elif "memory" in kinds.split(","):
            places[root / "memory"] = path
    for place, path in places.items():
        own = place / path.strip("/")
        yield place
        for folder in (own, *own.parents):
            if place in folder.parents:  # a container sees its own as the root, and no path of it
                yield folder


def _of_cgroup(folder: Path) -> tuple[int, int]:
    """Limit and bytes in use, of version 2 or 1."""
    is_new = (folder / "memory.max").exists()
    limit = (folder / ("memory.max" if is_new else "memory.limit_in_bytes")).read_text().strip()
    used = (folder / ("memory.current" if is_new else "memory.usage_in_bytes")).read_text()
    cached = 0
    with contextlib.suppress(OSError, ValueError, KeyError):
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        prefix = "" if is_new else "total_"
        cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return NO_LIMIT if limit == "max" else int(limit), max(0, int(used) - cached)


def _resident(pid: int) -> int:
    """Without pages of files, which the system takes back when it needs them."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(_kib(line) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    except (OSError, ValueError, IndexError):
        if Path("/proc/self/status").exists():
            return 0  # it is gone
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _pss(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(_kib(line) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return None


def _kib(line: str) -> int:
    """Bytes of a line of ``NAME: NUMBER kB``."""
    return 1024 * int(line.split()[1])
