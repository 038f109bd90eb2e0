"""Which device ``auto`` is on this machine."""

from __future__ import annotations

__all__ = ["resolve_device"]


def resolve_device(wanted: str) -> str:
    """The name of a device, with ``auto`` resolved to cuda where there is one and cpu elsewhere."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
