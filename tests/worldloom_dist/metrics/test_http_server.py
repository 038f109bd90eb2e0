"""However many connections there are, the endpoint bounds its threads and answers who asks."""

import contextlib
import logging
import socket
import threading
import urllib.error
import urllib.request

import pytest

from tests.waiting import wait_until
from worldloom_dist.metrics import http_server
from worldloom_dist.metrics.http_server import MOST, MOST_ASKED_BYTES, make_bounded_server


@contextlib.contextmanager
def serving(app):
    server = make_bounded_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hello(environ, start):
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def ask(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@contextlib.contextmanager
def crowd(port, size, says=b""):
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(size):
            sockets.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 20)))
            sockets[-1].sendall(says)
        yield sockets


def test_hundreds_of_silent_connections_cost_a_bounded_number_of_threads_and_no_answer():
    before = threading.active_count()
    with serving(hello) as port, crowd(port, 400, b"GET / HT") as sockets:
        assert ask(port) == 200
        wait_until(lambda: threading.active_count() <= before + 1 + MOST, 20)
        ended = sockets[: 400 - MOST]
        for one in ended:
            one.settimeout(20)
            assert one.recv(10) == b"", "the oldest are ended"
        assert ask(port) == 200
    wait_until(lambda: threading.active_count() <= before, 20)


def test_who_comes_while_all_are_answered_is_told_so(monkeypatch):
    monkeypatch.setattr(http_server, "ANSWER_S", 1000.0)
    may_answer = threading.Event()
    begun = []

    def slow(environ, start):
        begun.append(environ["PATH_INFO"])
        may_answer.wait(60)
        return hello(environ, start)

    with serving(slow) as port, crowd(port, MOST, b"GET / HTTP/1.0\r\n\r\n") as sockets:
        wait_until(lambda: len(begun) == MOST, 20)
        wait_until(lambda: ask_briefly(port) == b"HTTP/1.0 503", 20)
        may_answer.set()
        for one in sockets:
            assert b"200 OK" in read_all(one), "those that were there are answered"


def ask_briefly(port):
    """The first words of an answer, or of none within a moment."""
    with socket.create_connection(("127.0.0.1", port), 20) as one:
        one.sendall(b"GET / HTTP/1.0\r\n\r\n")
        one.settimeout(0.5)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            return one.recv(12)
    return b""


def read_all(one):
    one.settimeout(20)
    parts = []
    while part := one.recv(4096):
        parts.append(part)
    return b"".join(parts)


def test_who_does_not_take_its_answer_gives_its_place_up(monkeypatch):
    monkeypatch.setattr(http_server, "ANSWER_S", 0.0)

    begun = []

    def endless(environ, start):
        begun.append(environ["PATH_INFO"])
        start("200 OK", [("Content-Type", "text/plain")])
        return hello_for_ever() if environ["PATH_INFO"] == "/video" else [b"hello"]

    def hello_for_ever():
        while True:
            yield b"hello" * 20_000

    with serving(endless) as port, crowd(port, MOST, b"GET /video HTTP/1.0\r\n\r\n"):
        wait_until(lambda: len(begun) == MOST, 20)
        assert [ask(port) for _ in range(3)] == [200, 200, 200]


def test_a_client_that_stays_silent_is_ended_without_a_word(monkeypatch, caplog, capfd):
    monkeypatch.setattr(http_server, "QUIET_S", 0.1)
    with serving(hello) as port, crowd(port, 1) as (silent,):
        silent.settimeout(20)
        assert silent.recv(10) == b""
        assert ask(port) == 200
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


def test_an_answer_that_fails_is_told_in_the_log(caplog, capfd):
    def broken(environ, start):
        raise ValueError("no such number")

    with serving(broken) as port:
        assert ask(port) == 500
        wait_until(lambda: "no such number" in caplog.text, 20)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_address_of_another_machine_is_an_os_error(host):
    with pytest.raises(OSError):
        make_bounded_server(host, 0, hello)


def test_who_says_more_than_a_question_needs_is_refused_and_takes_no_memory():
    with serving(hello) as port, socket.create_connection(("127.0.0.1", port), 20) as one:
        said = b"GET / HTTP/1.0\r\n" + b"".join(b"X%d: %s\r\n" % (n, b"x" * 9000) for n in range(7))
        one.sendall(said + b"Y: ".ljust(MOST_ASKED_BYTES + 1 - len(said), b"y"))
        assert b"Error code: 431" in read_all(one)
        assert ask(port) == 200
