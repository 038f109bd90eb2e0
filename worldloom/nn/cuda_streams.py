"""Which GPU a thread works on, and what happened there so far.

Every thread begins with the first GPU of the machine. What names no device (an event, a stream, a
page-locked allocation) then belongs to that one, whatever device the tensors are on.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["recorded_event", "use_device"]


def use_device(name: str) -> None:
    """Make a GPU the current one of the calling thread; does nothing for a CPU.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:N``.
    """
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)


def recorded_event(device: torch.device) -> Any:
    """An event that happens when all that this thread has given its stream on ``device`` is
    done.
    """
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
