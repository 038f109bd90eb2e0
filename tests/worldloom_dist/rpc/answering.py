"""Both ends of a line, over a real socket on this machine; Ray is a fake that answers at once."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.loop_threads import LoopThread
from worldloom.core.sequence import PolicyVersion
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.interfaces import Inference
from worldloom_dist.rpc.actor_client import ActorClient
from worldloom_dist.rpc.connection import Endpoint, Listening, RpcServer


def request_of(*envs: int, slot: int = 0) -> ActRequest:
    return ActRequest(
        slot,
        0,
        np.array(envs),
        {"obs": np.array([[env] for env in envs], np.float32)},
        np.ones(len(envs), bool),
    )


def envs_of(reply: ActReply) -> list[int]:
    return reply.action["env"].tolist()


class Server(LoopThread):
    """An inference server without a policy: the action of an env is its number."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[int]] = []
        self.holds = False
        self.held: list[tuple[ActRequest, asyncio.Future[ActReply]]] = []
        self.ask: Callable[[Any], Any] | None = None  # in the place of what is below
        self.server = RpcServer(lambda content: (self.ask or self._ask)(content), is_private=True)

    @property
    def address(self) -> Endpoint:
        return self.run(self.server.address())

    def release(self) -> None:
        """Answer what is held, the newest question first."""
        self.soon(lambda: [self._reply(*self.held.pop()) for _ in list(self.held)])

    async def _ask(self, request: ActRequest) -> ActReply:
        future: asyncio.Future[ActReply] = self.loop.create_future()
        self.asked.append(request.envs.tolist())
        if self.holds:
            self.held.append((request, future))
        else:
            self._reply(request, future)
        return await future

    def _reply(self, request: ActRequest, future: "asyncio.Future[ActReply]") -> None:
        future.set_result(
            ActReply(
                {"env": request.envs}, {}, PolicyVersion(0, 3), np.zeros(request.num_rows, bool)
            )
        )


class NoRay(ActorClient[Inference]):
    """Says where the present server is, and acts itself when it is asked to."""

    def __init__(self, server: Server) -> None:
        super().__init__("inference-0")
        self.server = server
        self.acted = 0
        self.told: Endpoint | None = None

    def within(self, **_: float | None) -> "NoRay":
        return self

    def call(self, method: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        if method is Listening.address:
            return self.told or self.server.address
        assert method is Inference.act
        self.acted += 1
        request: ActRequest = args[0]
        return ActReply(
            {"env": request.envs}, {}, PolicyVersion(0, 0), np.zeros(request.num_rows, bool)
        )

    async def acall(self, method: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        return await asyncio.to_thread(self.call, method, *args)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.end()
