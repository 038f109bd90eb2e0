"""Calls over a line: answered by number, sent again to a successor, and over Ray where there is no
line.
"""

import asyncio
import errno
import pickle
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.waiting import wait_until
from tests.worldloom_dist.rpc.answering import NoRay, Server, envs_of, request_of, serving
from worldloom.core.exceptions import StateError
from worldloom_dist.actors.acting import ActRequest
from worldloom_dist.interfaces import Inference
from worldloom_dist.rpc import connection as line_module
from worldloom_dist.rpc import handshake
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.rpc.async_client import AsyncRpcClient
from worldloom_dist.rpc.connection import KEY_BYTES, Endpoint, Listening, RpcClient, RpcServer
from worldloom_dist.rpc.handshake import HANDSHAKE_S, NONCE_BYTES, PROOF_BYTES


def test_questions_are_answered_by_number_whatever_the_order_of_the_answers() -> None:
    with serving() as server:
        ray = NoRay(server)
        waits: list[bool] = []
        line = RpcClient(ray, Inference.act, 10.0, 10.0, on_wait=waits.append)
        server.holds = True
        first = line.submit(request_of(0, 1))
        second = line.submit(request_of(2))
        wait_until(lambda: len(server.held) == 2)
        server.release()
        assert (envs_of(first()), envs_of(second())) == ([0, 1], [2])
        assert waits == [True, False, True, False]
        assert not ray.acted
        line.close()


def test_large_observations_arrive_whole() -> None:
    with serving() as server:
        line = RpcClient(NoRay(server), Inference.act, 10.0, 10.0)
        obs = np.arange(4 * 64 * 64 * 3 * 20, dtype=np.uint8).reshape(4, -1)
        request = ActRequest(0, 0, np.arange(4), {"image": obs}, np.zeros(4, bool))
        server.holds = True
        answer = line.submit(request)
        wait_until(lambda: server.held)
        np.testing.assert_array_equal(server.held[0][0].obs["image"], obs)
        server.release()
        assert envs_of(answer()) == [0, 1, 2, 3]
        line.close()


def test_open_questions_of_a_dead_server_go_to_its_successor() -> None:
    with serving() as old, serving() as new:
        ray = NoRay(old)
        line = RpcClient(ray, Inference.act, 10.0, 10.0)
        assert envs_of(line.call(request_of(9))) == [9]
        old.holds = True
        first = line.submit(request_of(0))
        second = line.submit(request_of(1))
        wait_until(lambda: len(old.held) == 2)
        ray.server = new
        old.end()
        assert (envs_of(first()), envs_of(second())) == ([0], [1])
        assert envs_of(line.call(request_of(2))) == [2]
        assert new.asked == [[0], [1], [2]]
        line.close()


def test_ray_stands_in_when_nothing_connects() -> None:
    with serving() as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refused
        ray = NoRay(server)
        ray.told = Endpoint("127.0.0.1", closed.getsockname()[1], b"k" * KEY_BYTES)
        line = RpcClient(ray, Inference.act, 10.0, 10.0)
        assert [envs_of(line.call(request_of(env))) for env in (1, 2)] == [[1], [2]]
        assert ray.acted == 2


def test_where_ray_encrypts_everything_goes_over_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with serving() as server:
        ray = NoRay(server)
        assert envs_of(RpcClient(ray, Inference.act, 10.0, 10.0).call(request_of(1))) == [1]
        assert envs_of(asyncio.run(AsyncRpcClient(ray, Inference.act).call(request_of(2)))) == [2]
        assert ray.acted == 2
        assert not server.asked


def test_who_does_not_know_the_key_is_not_heard() -> None:
    with serving() as server:
        ray = NoRay(server)
        ray.told = server.address._replace(key=b"k" * KEY_BYTES)
        assert envs_of(RpcClient(ray, Inference.act, 10.0, 10.0).call(request_of(1))) == [1]
        assert ray.acted == 1
        assert not server.asked


def test_server_that_does_not_know_the_key_is_not_asked() -> None:
    with serving() as server, socket.create_server(("127.0.0.1", 0)) as false_friend:

        def pretend() -> None:
            line, _ = false_friend.accept()
            with line:
                line.sendall(bytes(NONCE_BYTES + PROOF_BYTES))
                line.recv(NONCE_BYTES + PROOF_BYTES)

        thread = threading.Thread(target=pretend)
        thread.start()
        ray = NoRay(server)
        ray.told = Endpoint("127.0.0.1", false_friend.getsockname()[1], server.address.key)
        assert envs_of(RpcClient(ray, Inference.act, 10.0, 10.0).call(request_of(1))) == [1]
        assert ray.acted == 1
        thread.join(10)


def test_a_server_that_tells_its_proof_byte_by_byte_has_no_more_time(monkeypatch) -> None:
    now = iter((0.0, 0.0, HANDSHAKE_S + 1.0))  # when it begins, before the first byte, after it
    clock = SimpleNamespace(monotonic=lambda: next(now), sleep=time.sleep)
    monkeypatch.setattr(handshake, "time", clock)
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def tell() -> None:
            line, _ = slow.accept()
            with line:
                line.sendall(b"x")
                line.recv(1)

        thread = threading.Thread(target=tell)
        thread.start()
        endpoint = Endpoint("127.0.0.1", slow.getsockname()[1], b"k" * KEY_BYTES)
        with pytest.raises(TimeoutError, match="no proof of the key came within 10 s"):
            handshake.connect(endpoint, None)
        thread.join(20)


def test_silent_server_is_asked_again_and_then_given_up() -> None:
    with serving() as server:
        server.holds = True
        line = RpcClient(NoRay(server), Inference.act, 0.02, 0.01)
        with pytest.raises(RoleGoneError, match="inference-0 did not answer"):
            line.call(request_of(5))
        assert server.asked[0] == [5]
        line.close()


def test_a_caller_may_look_while_no_answer_comes_and_gives_up_when_the_role_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_module, "LOOK_EVERY_S", 0.02)
    looks: list[bool] = []
    with serving() as server:
        line = RpcClient(
            NoRay(server),
            Inference.act,
            30.0,
            0.0,
            is_away=lambda: server.holds and (looks.append(len(looks) == 2) or looks[-1]),
        )
        assert envs_of(line.call(request_of(1))) == [1]
        server.holds = True
        with pytest.raises(RoleGoneError, match="did not answer"):
            line.call(request_of(2))
        assert looks == [False, False, True]
        server.holds = False
        server.release()
        assert envs_of(line.call(request_of(3))) == [3], (
            "a new line knows nothing of the late answer"
        )
        line.close()


def test_calls_of_an_event_loop_share_a_line_and_go_to_the_successor_when_it_breaks() -> None:
    async def play(old: Server, new: Server) -> None:
        ray = NoRay(old)
        line = AsyncRpcClient(ray, Inference.act)
        assert [
            envs_of(reply)
            for reply in await asyncio.gather(*(line.call(request_of(env)) for env in (3, 4)))
        ] == [[3], [4]]
        old.holds = True
        open_call = asyncio.ensure_future(line.call(request_of(5)))
        await asyncio.to_thread(wait_until, lambda: old.held)
        ray.server = new
        await asyncio.to_thread(old.end)
        assert envs_of(await open_call) == [5]
        assert new.asked == [[5]]
        assert not ray.acted
        line.close()

    with serving() as old, serving() as new:
        asyncio.run(play(old, new))


def test_event_loop_calls_over_ray_when_nothing_connects() -> None:
    async def play(ray: NoRay) -> None:
        assert envs_of(await AsyncRpcClient(ray, Inference.act).call(request_of(7))) == [7]

    with serving() as server:
        ray = NoRay(server)
        ray.told = server.address._replace(key=b"k" * KEY_BYTES)
        asyncio.run(play(ray))
        assert ray.acted == 1


def test_ray_stands_in_where_the_role_can_open_no_socket_and_it_tries_again(monkeypatch) -> None:
    class Full(NoRay):
        def call(self, method, *args):
            if method is Listening.address:
                raise OSError(errno.EMFILE, "too many open files")
            return super().call(method, *args)

    with serving() as server:
        ray = Full(server)
        assert envs_of(RpcClient(ray, Inference.act, 10.0, 10.0).call(request_of(1))) == [1]
        assert envs_of(asyncio.run(AsyncRpcClient(ray, Inference.act).call(request_of(2)))) == [2]
        assert ray.acted == 2

    async def work() -> None:
        loop = asyncio.get_running_loop()
        role = RpcServer(no_one, is_private=True)
        create = loop.create_server
        opened = []

        async def second_time(*given):
            if not opened:
                opened.append(None)
                raise OSError(errno.EMFILE, "too many open files")
            opened.append(await create(*given))
            return opened[-1]

        monkeypatch.setattr(loop, "create_server", second_time)
        with pytest.raises(OSError, match="too many open files"):
            await role.address()
        assert (await role.address()).port > 0
        opened[1].close()

    async def no_one(_):
        raise AssertionError

    asyncio.run(work())


def test_failure_of_the_role_reaches_the_caller_with_its_reason() -> None:
    with serving() as server:
        line = RpcClient(NoRay(server), Inference.act, 10.0, 10.0)
        with pytest.raises(StateError, match="AttributeError"):
            line.call("no request")
        assert envs_of(line.call(request_of(1))) == [1]
        line.close()


def test_what_cannot_be_unpickled_or_pickled_is_told_to_the_caller_and_the_line_goes_on(
    monkeypatch,
) -> None:
    with serving() as server:
        line = RpcClient(NoRay(server), Inference.act, 10.0, 10.0)
        once = [b"cno_such_module\nNotHere\n."]  # the answer is pickled as ever
        real = pickle.dumps
        with monkeypatch.context() as patch:
            patch.setattr(
                "worldloom_dist.rpc.frames.pickle.dumps",
                lambda *given, **more: once.pop() if once else real(*given, **more),
            )
            ticket = line.submit("whatever")
        with pytest.raises(StateError, match="no_such_module"):
            ticket()

        async def lock(_: object) -> object:
            return threading.Lock()

        server.ask = lock
        with pytest.raises(StateError, match=r"its answer cannot be sent .*lock"):
            line.call(request_of(1))
        server.ask = None
        assert envs_of(line.call(request_of(1))) == [1]
        line.close()
