"""Where only this machine listens."""

import socket

import pytest

from worldloom.core import loopback
from worldloom.core.loopback import can_listen, usable_loopback


@pytest.mark.parametrize(
    ("there", "host", "usable"),
    [
        ({"127.0.0.1", "::1"}, "127.0.0.1", "127.0.0.1"),
        ({"::1"}, "127.0.0.1", "::1"),
        ({"::1"}, "10.0.0.7", "10.0.0.7"),
        (set(), "127.0.0.1", "127.0.0.1"),
        ({"127.0.0.1"}, "::1", "::1"),
    ],
)
def test_the_loopback_of_ipv6_stands_in_where_it_is_alone(monkeypatch, there, host, usable):
    monkeypatch.setattr(loopback, "can_listen", lambda host, port=0: host in there)
    assert usable_loopback(host) == usable


def test_what_is_taken_or_no_address_of_this_machine_is_not_free():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not can_listen("127.0.0.1", taken.getsockname()[1])
    assert can_listen("127.0.0.1")
    assert not can_listen("203.0.113.7")
    assert not can_listen("no.such.host.invalid")
