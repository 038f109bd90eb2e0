"""What a call between two processes costs: our sockets (``worldloom_dist.rpc``), gRPC and ZeroMQ.

    python benchmarks/rpc.py                              # writes benchmarks/results/rpc.json
    python benchmarks/rpc.py --seconds 2 --output /tmp/rpc.json
    python benchmarks/rpc.py --burners 2                  # on a machine that is busy meanwhile

Clients in processes of their own ask one server as env workers ask an inference server: a question
of a few rows, an answer, a rest as long as an env steps. The server, on an asyncio loop, answers at
once. All send the same pickled question and answer. Measured over all processes: CPU per call, less
what the same processes take in the same time when they ask nothing; and the round trip as clients
see it. ``--burners`` adds processes that only compute, so that cores change hands as in a run. The
transports take turns (``--rounds``), so that a machine that becomes busier hits all of them.
ZeroMQ is left out, and said to be, where ``pyzmq`` is not installed.

Then what the codes on our frames cost, per size of the question: one server process, one client,
and two lines between them in turns, one with codes and one without. CPU of both processes per call;
``code_share`` is what a call with codes takes more, as a part of one without.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib.util
import json
import multiprocessing
import os
import pickle
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from context import context

from worldloom.core.sequence import NO_POLICY
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.interfaces import Inference
from worldloom_dist.rpc.actor_client import ActorClient
from worldloom_dist.rpc.connection import Endpoint, RpcClient, RpcServer
from worldloom_dist.rpc.handshake import Handshake
from worldloom_dist.runtime.allocator import keep_freed_memory

WARM_CALLS = 20
GIVE_UP_S = 120.0
QUESTION_BYTES = (300, 4_000, 20_000, 49_000, 300_000, 1_500_000)
CODE_ROUNDS = 15
CODE_ROUND_S = 0.3

Ask = Callable[[ActRequest], ActReply]


def question(rows: int) -> ActRequest:
    """What an env worker with this number of envs asks."""
    obs = {"state": np.zeros((rows, 17), np.float32)}
    return ActRequest(0, 0, np.arange(rows), obs, np.zeros(rows, bool))


def answer(request: ActRequest) -> ActReply:
    """What an inference server without a policy says."""
    action = {"action": np.zeros((request.num_rows, 6), np.float32)}
    return ActReply(action, {}, NO_POLICY, np.zeros(request.num_rows, bool))


def answer_bytes(asked: bytes) -> bytes:
    """:func:`answer` between pickles."""
    return pickle.dumps(answer(pickle.loads(asked)), 5)


async def _serve_sockets() -> Any:
    async def ask(request: ActRequest) -> ActReply:
        return answer(request)

    server = RpcServer(ask, is_private=True)
    asyncio.get_running_loop().server = server  # type: ignore[attr-defined]
    return tuple(await server.address())


class _Found(ActorClient[Inference]):
    """An inference server whose address is known without Ray."""

    def __init__(self, address: Any) -> None:
        super().__init__("inference-0")
        self._address = Endpoint(*address)

    def call(self, *_: Any, **__: Any) -> Any:
        """Its address, the only thing that is asked for over Ray."""
        return self._address


@contextlib.contextmanager
def _ask_sockets(address: Any) -> Iterator[Ask]:
    client = RpcClient(_Found(address), Inference.act, 60.0, 60.0)
    yield client.call
    client.close()


async def _serve_grpc() -> Any:
    import grpc

    async def unary(asked: bytes, _: Any) -> bytes:
        return answer_bytes(asked)

    async def stream(asked: Any, _: Any) -> Any:
        async for one in asked:
            yield answer_bytes(one)

    server = grpc.aio.server()
    handlers = {
        "act": grpc.unary_unary_rpc_method_handler(unary),
        "stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("worldloom", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    asyncio.get_running_loop().server = server  # type: ignore[attr-defined]
    return port


@contextlib.contextmanager
def _ask_grpc_unary(port: int) -> Iterator[Ask]:
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/worldloom/act")
        yield lambda request: pickle.loads(call(pickle.dumps(request, 5)))


@contextlib.contextmanager
def _ask_grpc_stream(port: int) -> Iterator[Ask]:
    import grpc

    asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answers = channel.stream_stream("/worldloom/stream")(iter(asked.get, None))

        def ask(request: ActRequest) -> ActReply:
            asked.put(pickle.dumps(request, 5))
            reply: ActReply = pickle.loads(next(answers))
            return reply

        yield ask
        asked.put(None)


async def _serve_zmq() -> Any:
    import zmq.asyncio

    router = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")

    async def serve() -> None:
        while True:
            client, empty, asked = await router.recv_multipart()
            await router.send_multipart([client, empty, answer_bytes(asked)])

    asyncio.get_running_loop().server = asyncio.ensure_future(serve())  # type: ignore[attr-defined]
    return port


@contextlib.contextmanager
def _ask_zmq(port: int) -> Iterator[Ask]:
    import zmq

    with zmq.Context() as around, around.socket(zmq.REQ) as line:
        line.connect(f"tcp://127.0.0.1:{port}")

        def ask(request: ActRequest) -> ActReply:
            line.send(pickle.dumps(request, 5))
            reply: ActReply = pickle.loads(line.recv())
            return reply

        yield ask


TRANSPORTS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "sockets": (_serve_sockets, _ask_sockets),
    "grpc_unary": (_serve_grpc, _ask_grpc_unary),
    "grpc_stream": (_serve_grpc, _ask_grpc_stream),
    "zmq": (_serve_zmq, _ask_zmq),
}


def run_server(transport: str, pipe: Any) -> None:
    """Serve until the pipe closes; every message is answered with the CPU seconds so far."""

    def report(address: Any) -> None:
        pipe.send(address)
        with contextlib.suppress(EOFError):
            while True:
                pipe.recv()
                pipe.send(time.process_time())
        os._exit(0)

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    address = loop.run_until_complete(TRANSPORTS[transport][0]())
    threading.Thread(target=report, args=(address,), daemon=True).start()
    loop.run_forever()


def run_client(transport: str, address: Any, rows: int, rest_s: float, pipe: Any) -> None:
    """Rest, or rest and ask, for as many seconds as the pipe says; answers with the CPU seconds and
    the round trips.
    """
    rng = np.random.default_rng(os.getpid())
    with TRANSPORTS[transport][1](address) as ask:
        for _ in range(WARM_CALLS):
            assert ask(question(rows)).action["action"].shape == (rows, 6)
        pipe.send("ready")
        with contextlib.suppress(EOFError):
            while True:
                seconds, asks = pipe.recv()
                trips = []
                began_cpu = time.process_time()
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    time.sleep(rng.uniform(0.5, 1.5) * rest_s)
                    request = question(rows)
                    began = time.perf_counter()
                    if asks:
                        ask(request)
                    trips.append(time.perf_counter() - began)
                pipe.send((time.process_time() - began_cpu, trips))


def burn() -> None:
    """Compute."""
    while True:
        sum(range(10_000))


def measure(transport: str, options: argparse.Namespace) -> dict[str, float]:
    """One round of one transport."""
    spawn = multiprocessing.get_context("spawn")

    def start(target: Callable[..., None], *args: Any) -> tuple[Any, Any]:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=target, args=(*args, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def hear(pipe: Any) -> Any:
        if not pipe.poll(GIVE_UP_S):
            raise TimeoutError(f"{transport}: a process did not answer for {GIVE_UP_S:.0f} s")
        return pipe.recv()

    server, to_server = start(run_server, transport)
    address = hear(to_server)
    clients = [
        start(run_client, transport, address, options.rows, options.rest_ms / 1e3)
        for _ in range(options.clients)
    ]
    burners = [spawn.Process(target=burn, daemon=True) for _ in range(options.burners)]
    try:
        for _, pipe in clients:
            hear(pipe)
        for burner in burners:
            burner.start()

        def phase(asks: bool) -> tuple[float, float, list[float], float]:
            to_server.send("cpu")
            before = hear(to_server)
            began = time.monotonic()
            for _, pipe in clients:
                pipe.send((options.seconds, asks))
            found = [hear(pipe) for _, pipe in clients]
            took = time.monotonic() - began
            to_server.send("cpu")
            trips = [trip for _, some in found for trip in some]
            return hear(to_server) - before, sum(cpu for cpu, _ in found), trips, took

        idle_server, idle_clients, rests, idle_s = phase(False)
        server_cpu, client_cpu, trips, took_s = phase(True)
    finally:
        for process in (server, *(process for process, _ in clients), *burners):
            if process.pid is not None:
                process.kill()
                process.join()
    calls = len(trips)
    # a process that asks nothing takes its CPU per rest, a server per second
    per_server = (server_cpu - idle_server * took_s / idle_s) / calls
    per_client = client_cpu / calls - idle_clients / len(rests)
    return {
        "cpu_ms_per_call": 1e3 * (per_server + per_client),
        "cpu_ms_server": 1e3 * per_server,
        "cpu_ms_client": 1e3 * per_client,
        "round_trip_ms_p50": 1e3 * float(np.percentile(trips, 50)),
        "round_trip_ms_p99": 1e3 * float(np.percentile(trips, 99)),
        "calls": calls,
    }


def _leave_codes_out(key: bytes) -> None:
    """Let lines that this process opens with this key carry no codes."""
    for name in ("caller_frames", "role_frames"):
        real = getattr(Handshake, name)
        mac = functools.partialmethod(_mac_unless, key, real)
        setattr(Handshake, name, mac)


def _mac_unless(shared: Any, key: bytes, real: Callable[[Any], Any]) -> Any:
    return None if shared._key == key else real(shared)


def run_two_servers(pipe: Any) -> None:
    """Serve with codes and without until the pipe closes; every message is answered with the CPU
    seconds so far.
    """

    async def ask(asked: np.ndarray) -> int:
        return len(asked)

    keep_freed_memory()  # as every role
    servers = [RpcServer(ask, is_private=True) for _ in range(2)]
    loop = asyncio.new_event_loop()
    plain, sealed = (loop.run_until_complete(server.address()) for server in servers)
    _leave_codes_out(plain.key)
    threading.Thread(target=loop.run_forever, daemon=True).start()
    pipe.send((tuple(plain), tuple(sealed)))
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send(time.process_time())


def measure_codes() -> list[dict[str, float]]:
    """What codes cost, per size of a question in bytes."""
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe()
    server = spawn.Process(target=run_two_servers, args=(theirs,), daemon=True)
    server.start()
    theirs.close()
    if not pipe.poll(GIVE_UP_S):
        raise TimeoutError("the servers did not come up")
    plain, sealed = pipe.recv()
    _leave_codes_out(plain[2])
    lines = [RpcClient(_Found(at), Inference.act, 60.0, 60.0) for at in (plain, sealed)]

    def cpu_s() -> float:
        pipe.send("cpu")
        theirs_s: float = pipe.recv()
        return theirs_s + time.process_time()

    found = [_code_share(size, lines, cpu_s) for size in QUESTION_BYTES]
    for line in lines:
        line.close()
    server.kill()
    server.join()
    return found


def _code_share(
    size: int, lines: Sequence[RpcClient[Any, Any, Any]], cpu_s: Callable[[], float]
) -> dict[str, float]:
    asked = np.zeros(size, np.uint8)

    def per_call(line: RpcClient[Any, Any, Any], calls: int) -> float:
        began = cpu_s()
        for _ in range(calls):
            assert line.call(asked) == size
        return (cpu_s() - began) / calls

    calls = max(10, int(CODE_ROUND_S / max(per_call(line, WARM_CALLS) for line in lines)))
    rounds = [[per_call(line, calls) for line in lines] for _ in range(CODE_ROUNDS)]
    return {
        "question_bytes": size,
        "cpu_us_without": round(1e6 * statistics.median(one for one, _ in rounds), 1),
        "cpu_us_with": round(1e6 * statistics.median(two for _, two in rounds), 1),
        "code_share": round(statistics.median(two / one for one, two in rounds) - 1, 3),
    }


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4, help="of every question")
    parser.add_argument("--rest-ms", type=float, default=50.0, help="between two questions")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each half of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--burners", type=int, default=0, help="processes that only compute")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).resolve().parent / "results" / "rpc.json"
    )
    options = parser.parse_args()
    names = [name for name in TRANSPORTS if name != "zmq" or importlib.util.find_spec("zmq")]
    report = context() | {
        "clients": options.clients,
        "rows": options.rows,
        "rest_ms": options.rest_ms,
        "burners": options.burners,
        "left_out": {} if "zmq" in names else {"zmq": "pyzmq is not installed"},
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            rounds[name].append(measure(name, options))
    report["transports"] = {
        name: {key: round(statistics.median(one[key] for one in found), 3) for key in found[0]}
        | {"cpu_ms_per_call_of_rounds": [round(one["cpu_ms_per_call"], 3) for one in found]}
        for name, found in rounds.items()
    }
    report["codes"] = measure_codes()
    report["machine"]["load_after"] = os.getloadavg()[0]
    text = json.dumps(report, indent=2)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
