"""Connections whose other end does not show the key cost a role little, and push no one out."""

import contextlib
import gc
import os
import socket
import subprocess
import sys

import pytest

from tests.waiting import wait_until
from tests.worldloom_dist.rpc.answering import NoRay, envs_of, request_of, serving
from worldloom_dist.interfaces import Inference
from worldloom_dist.rpc.connection import RpcClient
from worldloom_dist.rpc.strangers import MOST, Strangers


class Guest:
    def __init__(self) -> None:
        self.is_broken = False

    def abort(self) -> None:
        self.is_broken = True


def test_who_crowds_a_role_pushes_out_its_own():
    strangers = Strangers(most=5)
    quiet = Guest()
    strangers.add("10.0.0.9", quiet)
    crowd = [Guest() for _ in range(20)]
    for guest in crowd:
        strangers.add("10.0.0.1", guest)
    assert len(strangers) == 5
    assert not quiet.is_broken
    assert [guest.is_broken for guest in crowd] == [True] * 16 + [False] * 4
    strangers.remove("10.0.0.1", crowd[-1])
    strangers.remove("10.0.0.1", crowd[-1])
    strangers.remove("10.0.0.9", quiet)
    assert len(strangers) == 3


def test_strangers_of_many_addresses_go_the_oldest_first():
    strangers = Strangers(most=3)
    guests = [Guest() for _ in range(6)]
    for number, guest in enumerate(guests):
        strangers.add(f"fd00::{number}", guest)
    assert [guest.is_broken for guest in guests] == [True] * 3 + [False] * 3


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_a_crowd_of_strangers_is_bounded_while_calls_go_on(caplog):
    with serving() as server, contextlib.ExitStack() as ends:
        line = RpcClient(NoRay(server), Inference.act, 10.0, 10.0)
        assert envs_of(line.call(request_of(1))) == [1]
        before = descriptors()
        where = server.address[:2]
        strangers = [ends.enter_context(socket.create_connection(where)) for _ in range(3 * MOST)]
        at_role = lambda: descriptors() - before - len(strangers)  # noqa: E731
        wait_until(lambda: at_role() == MOST)
        assert envs_of(line.call(request_of(2))) == [2]
        late = RpcClient(NoRay(server), Inference.act, 10.0, 10.0)
        assert envs_of(late.call(request_of(3))) == [3], "one that has the key comes in"
        late.close()
        line.close()
        for end in strangers:
            end.close()
        strangers.clear()
        wait_until(lambda: descriptors() < before)
    assert caplog.text.count("without showing the key") == 1


def test_a_stranger_is_hung_up_on_at_the_deadline(monkeypatch):
    monkeypatch.setattr("worldloom_dist.rpc.connection.HANDSHAKE_S", 0.05)
    with serving() as server, socket.create_connection(server.address[:2]) as stranger:
        stranger.settimeout(10)
        assert len(stranger.recv(100)) == 32
        stranger.sendall(b"x" * 63)
        assert stranger.recv(100) == b""


def test_of_a_stranger_no_more_is_read_than_a_proof_is_long(monkeypatch):
    with serving() as server, socket.create_connection(server.address[:2]) as stranger:
        stranger.settimeout(10)
        stranger.recv(100)
        with contextlib.suppress(OSError):
            stranger.sendall(bytes(64) + b"x" * 100_000)
        with contextlib.suppress(OSError):
            assert stranger.recv(100) == b""
        assert not server.asked


FLOOD = """
import asyncio, os, resource, socket, sys
from worldloom_dist.rpc.connection import RpcServer

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

async def main():
    async def ask(content):
        return content
    server = RpcServer(ask, is_private=True)
    address = await server.address()
    print(address.port, flush=True)
    loop = asyncio.get_running_loop()
    while True:
        word = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
        if not word:
            return
        print(resident(), len(os.listdir("/proc/self/fd")), flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("said", [b"", b"x" * 63])
def test_a_flood_of_strangers_leaves_memory_and_descriptors_as_they_were(said):
    flooded = subprocess.Popen(
        [sys.executable, "-c", FLOOD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with flooded, contextlib.ExitStack() as ends:
        ends.callback(flooded.kill)

        def ask() -> tuple[int, int]:
            flooded.stdin.write("how much\n")
            flooded.stdin.flush()
            memory, files = map(int, flooded.stdout.readline().split())
            return memory, files

        port = int(flooded.stdout.readline())
        memory, files = ask()
        for _ in range(4):
            crowd = []
            for _ in range(256):
                stranger = ends.enter_context(
                    socket.create_connection(("127.0.0.1", port), timeout=10)
                )
                crowd.append(stranger)
                with contextlib.suppress(OSError):
                    stranger.sendall(said)
            wait_until(lambda: ask()[1] <= files + MOST)
            assert ask()[0] < memory + 16 * 2**20
            for stranger in crowd:
                stranger.close()
        wait_until(lambda: ask()[1] <= files)
        assert ask()[0] < memory + 16 * 2**20
