"""One between the two ends of a line, who lets the handshake pass and then changes what travels."""

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.worldloom_dist.rpc.answering import NoRay, Server, envs_of, request_of, serving
from worldloom_dist.actors.acting import ActRequest
from worldloom_dist.interfaces import Inference
from worldloom_dist.rpc.async_client import AsyncRpcClient
from worldloom_dist.rpc.connection import Endpoint, RpcClient
from worldloom_dist.rpc.frames import CODE_BYTES, HEAD, TABLE, pieces_of
from worldloom_dist.rpc.handshake import NONCE_BYTES, PROOF_BYTES

PICKLE_AT = HEAD.size + TABLE.size
"""Of a frame without large buffers; else the table goes on there."""
Change = Callable[[int, bytes], list[bytes]]
"""From the number and the bytes of a frame to what is passed on in its place."""


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def whole(line: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        fresh = line.recv(size - len(data))
        if not fresh:
            raise ConnectionError
        data += fresh
    return data


class Relay:
    """Passes the first connection on with changes, and every later one as it is."""

    def __init__(self, to: Endpoint, calls: Change, answers: Change) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._to = to
        self._change = {"calls": calls, "answers": answers}
        self._ends: list[socket.socket] = []
        self.connections = 0
        self.endpoint = to._replace(port=self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def close(self) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                role = socket.create_connection((self._to.host, self._to.port))
                self._ends += [caller, role]
                self.connections += 1
                caller.sendall(whole(role, NONCE_BYTES))
                role.sendall(whole(caller, NONCE_BYTES + PROOF_BYTES))
                caller.sendall(whole(role, PROOF_BYTES))
                for name, near, far in (("calls", caller, role), ("answers", role, caller)):
                    change = self._change[name] if self.connections == 1 else as_it_is
                    thread = threading.Thread(target=self._pass, args=(near, far, change))
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, near: socket.socket, far: socket.socket, change: Change) -> None:
        with contextlib.suppress(OSError):
            for number in range(1000):
                frame = whole(near, HEAD.size)
                frame += whole(near, HEAD.unpack(frame)[0])
                for data in change(number, frame):
                    far.sendall(data)
        for end in (near, far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def as_it_is(_: int, frame: bytes) -> list[bytes]:
    return [frame]


@contextlib.contextmanager
def between(server: Server, way: str, change: Change) -> Iterator[Relay]:
    changes = {"calls": as_it_is, "answers": as_it_is, way: change}
    relay = Relay(server.address, **changes)
    try:
        yield relay
    finally:
        relay.close()


def flipped(at: int) -> Change:
    def change(number: int, frame: bytes) -> list[bytes]:
        if number != 1:
            return [frame]
        damaged = bytearray(frame)
        damaged[at] ^= 1
        return [bytes(damaged)]

    return change


def late() -> Change:
    held: list[bytes] = []

    def change(number: int, frame: bytes) -> list[bytes]:
        if number == 1:
            held.append(frame)
            return []
        return [frame, *held]

    return change


def shorter(number: int, frame: bytes) -> list[bytes]:
    if number != 1:
        return [frame]
    (size,) = struct.unpack_from("<Q", frame)
    return [struct.pack("<Q", size - 16) + frame[8:-16]]


CHANGES: dict[str, Callable[[], Change]] = {
    "a size": lambda: flipped(0),
    "a size that would take memory": lambda: flipped(3),
    "a number": lambda: flipped(8),
    "how many buffers": lambda: flipped(HEAD.size),
    "the size of a pickle": lambda: flipped(HEAD.size + 8),
    "a pickle": lambda: flipped(PICKLE_AT),
    "the end of a pickle": lambda: flipped(-CODE_BYTES - 1),
    "a code": lambda: flipped(-1),
    "a frame twice": lambda: lambda number, frame: [frame] * (2 if number == 1 else 1),
    "a frame left out": lambda: lambda number, frame: [frame] if number != 1 else [],
    "two frames in another order": late,
    "a frame cut short": lambda: shorter,
    "bytes between frames": lambda: lambda _, frame: [frame, b"\0"],
}


@pytest.mark.parametrize("way", ["calls", "answers"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_on_the_way_cuts_the_line_and_every_call_is_answered_rightly(
    name: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as server, between(server, way, CHANGES[name]()) as relay:
        ray = NoRay(server)
        ray.told = relay.endpoint
        line = RpcClient(ray, Inference.act, 10.0, 10.0)
        waits = [line.submit(request_of(env)) for env in range(4)]
        assert [envs_of(wait()) for wait in waits] == [[0], [1], [2], [3]]
        line.close()
        assert relay.connections == 2, "the first was cut"
        assert not ray.acted
        for env in range(4):
            assert server.asked.count([env]) in (1, 2), "once on each line at most"
    said = [record.message for record in caplog.records if "a frame came that" in record.message]
    assert len(said) == 1
    assert "cut" in said[0] or "broke" in said[0]


@pytest.mark.parametrize("way", ["calls", "answers"])
@pytest.mark.parametrize("code", [b"", bytes(CODE_BYTES)])
def test_a_pickle_that_is_slipped_in_runs_nowhere(way: str, code: bytes, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    content = (True, Evil(mark)) if way == "answers" else Evil(mark)
    slipped_in = b"".join(bytes(piece) for piece in pieces_of(1, content)) + code

    def change(number: int, real: bytes) -> list[bytes]:
        return [slipped_in, real] if number == 1 else [real]

    with serving() as server, between(server, way, change) as relay:
        ray = NoRay(server)
        ray.told = relay.endpoint
        line = RpcClient(ray, Inference.act, 10.0, 10.0)
        assert [envs_of(line.call(request_of(env))) for env in range(3)] == [[0], [1], [2]]
        line.close()
        assert relay.connections == 2
    assert not mark.exists()


def test_what_a_side_sent_is_not_taken_when_it_comes_back(caplog) -> None:
    sent: list[bytes] = []

    def remember(_: int, frame: bytes) -> list[bytes]:
        sent.append(frame)
        return [frame]

    with serving() as server:
        relay = Relay(server.address, remember, lambda _, frame: [sent[-1], frame])
        try:
            ray = NoRay(server)
            ray.told = relay.endpoint
            line = RpcClient(ray, Inference.act, 10.0, 10.0)
            assert envs_of(line.call(request_of(5))) == [5]
            line.close()
        finally:
            relay.close()
        assert server.asked == [[5], [5]]
    assert "a frame came that the other end did not send next" in caplog.text


def test_frames_of_another_connection_are_not_taken(caplog) -> None:
    earlier: list[bytes] = []

    def change(number: int, frame: bytes) -> list[bytes]:
        earlier.append(frame)
        return [frame]

    with serving() as server, between(server, "calls", change) as relay:
        ray = NoRay(server)
        ray.told = relay.endpoint
        line = RpcClient(ray, Inference.act, 10.0, 10.0)
        assert envs_of(line.call(request_of(1))) == [1]
        line.close()
        with between(server, "calls", lambda number, _: [earlier[number]]) as second:
            ray.told = second.endpoint
            line = RpcClient(ray, Inference.act, 10.0, 10.0)
            assert envs_of(line.call(request_of(2))) == [2]
            line.close()
        assert server.asked == [[1], [2]], "the recorded call did not run again"
    assert "the connection is cut" in caplog.text


async def played(ray: NoRay) -> list[list[int]]:
    line = AsyncRpcClient(ray, Inference.act)
    try:
        return [envs_of(await line.call(request_of(env))) for env in range(3)]
    finally:
        line.close()


@pytest.mark.parametrize("way", ["calls", "answers"])
def test_a_change_cuts_the_line_of_an_event_loop_too(way: str) -> None:
    with serving() as server, between(server, way, flipped(PICKLE_AT)) as relay:
        ray = NoRay(server)
        ray.told = relay.endpoint
        assert asyncio.run(played(ray)) == [[0], [1], [2]]
        assert relay.connections == 2
        assert not ray.acted


def test_large_arrays_are_covered_wherever_they_are_changed() -> None:
    obs = np.random.default_rng(0).integers(0, 256, (4, 200_000), dtype=np.uint8)
    request = ActRequest(0, 0, np.arange(4), {"image": obs}, np.zeros(4, bool))
    a_size, a_code = PICKLE_AT, PICKLE_AT + 8
    for at in (a_size, a_size + 3, a_code, 300_000, -1, -200_000):
        with serving() as server, between(server, "calls", flipped_first(at)) as relay:
            ray = NoRay(server)
            ray.told = relay.endpoint
            line = RpcClient(ray, Inference.act, 10.0, 10.0)
            assert envs_of(line.call(request)) == [0, 1, 2, 3]
            line.close()
            assert relay.connections == 2
            assert server.asked == [[0, 1, 2, 3]]


def flipped_first(at: int) -> Change:
    change = flipped(at)
    return lambda number, frame: change(number + 1, frame)
