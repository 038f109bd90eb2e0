"""Addresses of services that people name in variables: what can be one, and how it is shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

__all__ = ["host_and_port", "without_password"]

PASSWORD = re.compile(r"(://)[^/\s]*@")
SECRET = re.compile(r"(?i)([?&][\w-]*(?:token|key|secret|password)=)[^&\s]+")
PORTS = {"http": 80, "https": 443}


def host_and_port(url: str) -> tuple[str, int] | None:
    """Where an http or https URL leads; None for what is none.

    Example:
        >>> host_and_port("https://me:secret@host/path"), host_and_port("host:4318")
        (('host', 443), None)
    """
    try:
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            return None
        return parts.hostname, parts.port or PORTS[parts.scheme]
    except ValueError:  # a port that is none, or half of an IPv6 address
        return None


def without_password(url: str) -> str:
    """A URL, or a text with some, without users, passwords and tokens, for messages and files.

    Example:
        >>> without_password("postgresql://me:secret@host/db")
        'postgresql://host/db'
        >>> without_password("http://host/?write_token=abc&x=1")
        'http://host/?write_token=...&x=1'
    """
    return SECRET.sub(r"\1...", PASSWORD.sub(r"\1", url))
