"""Ports for the servers that tests start."""

import contextlib
import random
import socket

FIRST = 20_000
LAST = 32_000
"""Below the kernel's own range and above the one that Ray's workers take, so no one else is handed
one before it is used.
"""


def free_ports(count: int) -> list[int]:
    """Ports that no one listens on just now."""
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            probe = stack.enter_context(socket.socket())
            port = random.SystemRandom().randint(FIRST, LAST)
            with contextlib.suppress(OSError):
                probe.bind(("", port))
                ports.append(port)
    return ports


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
