"""Which devices this machine has, and which one ``auto`` is here."""

from __future__ import annotations

from pathlib import Path

__all__ = ["has_gpu_driver", "resolve_device", "usable_device"]

DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""One of them is there where a driver for GPUs runs (NVIDIA's, Windows' for WSL, AMD's)."""


def has_gpu_driver() -> bool:
    """True when this machine may have a GPU that torch can use; asks neither torch nor the
    driver.
    """
    return any(Path(file).exists() for file in DRIVER_FILES)


def resolve_device(wanted: str) -> str:
    """The name of a device, with ``auto`` resolved to cuda where there is one and cpu elsewhere."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(wanted: str) -> str:
    """As :func:`resolve_device`, for work that any device can do: the CPU where this process sees
    no GPU.
    """
    device = resolve_device(wanted)
    if device == "cpu":
        return device
    import torch

    return device if torch.cuda.is_available() else "cpu"
