"""Which CPU this is, and what it can: as the kernel tells it. No torch."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["cpu_flags", "cpu_name"]

CPUINFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """As the kernel calls it."""
    return _value("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Instruction sets by the kernel's names (``avx512_bf16``; ``bf16`` on ARM); empty
    where it does not tell.
    """
    return frozenset((_value("flags") or _value("Features")).split())


def _value(name: str) -> str:
    """Of the first core."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")
