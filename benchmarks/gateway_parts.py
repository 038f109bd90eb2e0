"""Processes that ``gateway.py`` measures: a gateway, a bare gRPC echo, a shard, Ray Serve."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import Chunk, PolicyVersion
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom_client.wire import PACKAGE, encode_tensor, message
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.gateway.contract import Contract
from worldloom_dist.gateway.gateway import Gateway
from worldloom_dist.gateway.server import Access, GatewayServer
from worldloom_dist.interfaces import Shard
from worldloom_dist.replay.shard import ReplayShard
from worldloom_dist.rpc.actor_client import ActorClient
from worldloom_dist.rpc.async_client import AsyncRpcClient
from worldloom_dist.rpc.connection import Endpoint, RpcServer
from worldloom_dist.runtime.allocator import keep_freed_memory

__all__ = [
    "ACTION",
    "ECHO",
    "FRAMES",
    "OBS",
    "VECTORS",
    "VERSION",
    "Found",
    "process",
    "serve_echo",
    "serve_frames",
    "serve_ray",
    "serve_shard",
    "serve_vectors",
    "serving",
]

OBS = 24
ACTION = 6
ECHO = "/echo.Echo/Ask"
VERSION = PolicyVersion(1, 1)
VECTORS = EnvSpec(
    name="vectors", obs={"obs": ArraySpec((OBS,))}, action={"action": ArraySpec((ACTION,))}
)
FRAMES = EnvSpec(
    name="frames",
    obs={"obs": ArraySpec((64, 64, 3), "uint8")},
    action={"action": ArraySpec((), "int64", (18,))},
)
SERVE_PORT = 19_555
SERVING = "serving"


class Found(ActorClient[Shard]):
    """A shard whose address is known without Ray."""

    def __init__(self, address: Any) -> None:
        super().__init__("shard-0")
        self._address = Endpoint(*address)

    def call(self, *_: Any, **__: Any) -> Any:
        """Its address, the only thing that is asked for over Ray."""
        return self._address

    async def acall(self, *_: Any, **__: Any) -> Any:
        """As :meth:`call`."""
        return self._address


@contextlib.contextmanager
def process(work: Callable[..., None], *arguments: Any) -> Iterator[tuple[Any, psutil.Process]]:
    """``work(pipe, *arguments)`` in a process of its own; gives what it sends first."""
    mine, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=work, args=(theirs, *arguments), daemon=True)
    child.start()
    try:
        if not mine.poll(120):
            raise RuntimeError(f"{work.__name__} did not start within two minutes")
        yield mine.recv(), psutil.Process(child.pid)
    finally:
        child.terminate()
        child.join(10)


@contextlib.contextmanager
def serving(python: str) -> Iterator[tuple[int, psutil.Process]]:
    """Ray Serve as :func:`serve_ray` starts it, by another interpreter; gives its port."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    child = subprocess.Popen(
        [python, "-c", "import gateway_parts; gateway_parts.serve_ray()"],
        env={**os.environ, "PYTHONPATH": paths, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if line.startswith(SERVING):
                break
        else:
            raise RuntimeError(f"Ray Serve did not start with {python}")
        yield SERVE_PORT, psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(30)


def serve_vectors(pipe: Any) -> None:
    """A gateway whose policy answers at once, and whose replay takes everything."""

    async def append(_: Chunk) -> bool:
        """Stored."""
        return True

    asyncio.run(_serve(pipe, VECTORS, append))


def serve_frames(pipe: Any, shard: Any) -> None:
    """A gateway before a shard."""
    keep_freed_memory()  # as the gateway of a run

    async def run() -> None:
        line = AsyncRpcClient(Found(shard), Shard.append)
        await _serve(pipe, FRAMES, line.call)

    asyncio.run(run())


async def _serve(pipe: Any, spec: EnvSpec, append: Any) -> None:
    async def decide(request: ActRequest) -> ActReply:
        """At once."""
        action = {key: a.zeros(request.num_rows) for key, a in spec.action.items()}
        return ActReply(action, {}, VERSION, np.zeros(request.num_rows, bool))

    contract = Contract(
        env_spec=spec, env=spec.name, columns=spec.columns(), features=("store", "push", "zstd")
    )
    gateway = Gateway(contract, decide, lambda: VERSION, key=bytes(32), append=append)
    server = GatewayServer(gateway, Access())
    port = await server.start(0)
    tending = asyncio.ensure_future(gateway.tend_for_ever())
    pipe.send(port)
    await tending


def serve_echo(pipe: Any) -> None:
    """What comes goes back, on a stream."""

    async def run() -> None:
        async def answer(requests: Any, _: Any) -> Any:
            """What came."""
            async for request in requests:
                yield request

        echo = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(answer)
        echo.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("echo.Echo", {"Ask": handler})]
        )
        port = echo.add_insecure_port("127.0.0.1:0")
        await echo.start()
        pipe.send(port)
        await asyncio.Event().wait()

    asyncio.run(run())


def serve_shard(pipe: Any) -> None:
    """A shard with a journal, which admits everything."""
    keep_freed_memory()  # as the shards of a run

    async def run(folder: Path) -> None:
        shard = ReplayShard(
            0,
            FRAMES.columns(),
            SamplingSpec(batch_size=16, length=64),
            capacity_rows=200_000,
            directory=folder,
            durability="journal",
        )

        async def answer(chunk: Chunk) -> bool:
            """Store it."""
            return shard.append(chunk)

        server = RpcServer(answer, is_private=True)
        pipe.send(tuple(await server.address()))
        await asyncio.Event().wait()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


def add_policy_service(_: Any, server: Any) -> None:
    """Register ``PolicyService.Act`` with Ray Serve's proxy; messages go through as bytes."""
    methods = {"Act": grpc.unary_unary_rpc_method_handler(None)}
    service = f"{PACKAGE}.PolicyService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))


def serve_ray() -> None:
    """Ray Serve's gRPC proxy before one replica that answers at once; says when it is up."""
    import signal
    import time

    import ray
    from ray import serve
    from ray.serve.config import gRPCOptions

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    options = gRPCOptions(
        port=SERVE_PORT, grpc_servicer_functions=["gateway_parts.add_policy_service"]
    )
    serve.start(grpc_options=options, http_options={"port": SERVE_PORT + 1})

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
    class Policy:
        """Answers at once."""

        def Act(self, data: bytes) -> Any:  # noqa: N802 - as the proto names it
            """The answer to an ``ActRequest``."""
            rows = len(message("ActRequest").FromString(data).env)
            action = encode_tensor(np.zeros((rows, ACTION), np.float32))
            return message("ActResponse")(action=[action])

    serve.run(Policy.bind(), name="policy", route_prefix="/policy")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # ends Ray, too
    print(SERVING, flush=True)
    time.sleep(3600)
