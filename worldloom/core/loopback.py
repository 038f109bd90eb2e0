"""The address at which only this machine is reached, also where it has IPv6 alone."""

from __future__ import annotations

import socket

__all__ = ["IPV4", "IPV6", "address_text", "can_listen", "usable_loopback"]

IPV4 = "127.0.0.1"
IPV6 = "::1"


def usable_loopback(host: str) -> str:
    """A host to listen on; ``127.0.0.1`` becomes ``::1`` on a machine that has this one alone."""
    if host == IPV4 and not can_listen(IPV4) and can_listen(IPV6):
        return IPV6
    return host


def can_listen(host: str, port: int = 0) -> bool:
    """True when something can listen there, on IPv4 or IPv6; port 0 asks for any."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError:
        return False
    return True


def address_text(host: str, port: int) -> str:
    """Both in one, as addresses are written.

    Example:
        >>> address_text("127.0.0.1", 80), address_text("::1", 80)
        ('127.0.0.1:80', '[::1]:80')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
