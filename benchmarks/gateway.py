"""What a question through a gateway costs: time, CPU of the server, rows per core, clients at once.

    python benchmarks/gateway.py            # about two minutes; writes
    benchmarks/results/gateway.json; --questions 200 for a quick look

The server is a process of its own, with a policy that answers at once and a replay that takes
everything, so what is measured is the gateway's own share. Beside it, in the same run, the same
client asks a bare gRPC echo of messages of the same size: the ratio of the two is what the gateway
adds to gRPC. Not measured here: the policy, the shards, a network.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import queue
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from context import context

from worldloom.core.sequence import PolicyVersion
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom_client import connect
from worldloom_client.wire import encode_tensor, message
from worldloom_dist.actors.acting import ActReply, ActRequest
from worldloom_dist.gateway.contract import Contract
from worldloom_dist.gateway.gateway import Gateway
from worldloom_dist.gateway.server import Access, GatewayServer

OBS = 24
ACTION = 6
ENVS = (1, 4, 16)
IDLE = 256
ACTIVE = 64
ECHO = "/echo.Echo/Ask"
VERSION = PolicyVersion(1, 1)
IMPORT = (
    "import time; began = time.perf_counter(); import worldloom_client, psutil; "
    "print(time.perf_counter() - began, psutil.Process().memory_info().rss)"
)


def serve(port: Any) -> None:
    """A gateway and an echo, for ever."""
    spec = EnvSpec(
        name="vectors",
        obs={"obs": ArraySpec((OBS,))},
        action={"action": ArraySpec((ACTION,))},
    )

    async def decide(request: ActRequest) -> ActReply:
        """At once."""
        action = np.zeros((request.num_rows, ACTION), np.float32)
        return ActReply({"action": action}, {}, VERSION, np.zeros(request.num_rows, bool))

    async def append(_: object) -> None:
        """At once."""

    async def run() -> None:
        """Listen."""
        contract = Contract(
            env_spec=spec, env="vectors", columns=spec.columns(), features=("store", "explore")
        )
        gateway = Gateway(contract, decide, lambda: VERSION, key=bytes(32), append=append)
        server = GatewayServer(gateway, Access())
        asyncio.ensure_future(gateway.tend_for_ever())  # noqa: RUF006 - for ever
        found = await server.start(0)
        echo = grpc.aio.server()

        async def answer(requests: Any, _: Any) -> Any:
            """What came."""
            async for request in requests:
                yield request

        handler = grpc.stream_stream_rpc_method_handler(answer)
        echo.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("echo.Echo", {"Ask": handler})]
        )
        echo_port = echo.add_insecure_port("127.0.0.1:0")
        await echo.start()
        port.send((found, echo_port))
        await asyncio.Event().wait()

    asyncio.run(run())


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    return {
        "p50_ms": round(1e3 * float(np.quantile(seconds, 0.5)), 4),
        "p99_ms": round(1e3 * float(np.quantile(seconds, 0.99)), 4),
    }


def cpu_s(process: psutil.Process) -> float:
    """CPU time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def ask(address: str, envs: int, questions: int, server: psutil.Process) -> dict[str, float]:
    """Questions of one client."""
    with connect(address, num_envs=envs) as session:
        obs = {"obs": np.random.default_rng(0).normal(size=(envs, OBS)).astype(np.float32)}
        flags = (np.zeros(envs, np.float32), np.zeros(envs, bool), np.zeros(envs, bool))
        for _ in range(questions // 10 + 1):
            session.act_many(obs, *flags)
        before = cpu_s(server)
        times = []
        for _ in range(questions):
            began = time.perf_counter()
            session.act_many(obs, *flags)
            times.append(time.perf_counter() - began)
        used = cpu_s(server) - before
    return {
        **quantiles(times),
        "server_cpu_ms": round(1e3 * used / questions, 4),
        "rows_per_core_s": round(envs * questions / max(used, 1e-9), 1),
    }


def ask_echo(address: str, envs: int, questions: int, server: psutil.Process) -> dict[str, float]:
    """The same messages to a bare echo."""
    request = message("ActStreamRequest")(number=1)
    request.request.obs.append(encode_tensor(np.zeros((envs, OBS), np.float32)))
    data = request.SerializeToString()
    line: Any = queue.SimpleQueue()
    with grpc.insecure_channel(address) as channel:
        answers = channel.stream_stream(ECHO)(iter(line.get, None))
        times = []
        before = cpu_s(server)
        for number in range(questions + questions // 10):
            if number == questions // 10:
                before = cpu_s(server)
                times.clear()
            began = time.perf_counter()
            line.put(data)
            next(answers)
            times.append(time.perf_counter() - began)
        used = cpu_s(server) - before
        line.put(None)
    return {**quantiles(times), "server_cpu_ms": round(1e3 * used / questions, 4)}


def many(address: str, questions: int, server: psutil.Process) -> dict[str, float]:
    """Clients that ask beside clients that are silent but alive."""
    start = server.memory_info().rss
    idle = [connect(address) for _ in range(IDLE)]
    obs = np.zeros(OBS, np.float32)

    def act(_: int) -> list[float]:
        """One active client."""
        times = []
        with connect(address) as session:
            for _ in range(questions):
                began = time.perf_counter()
                session.act(obs)
                times.append(time.perf_counter() - began)
        return times

    with futures.ThreadPoolExecutor(ACTIVE) as pool:
        list(pool.map(act, range(ACTIVE)))
        middle = server.memory_info().rss
        for session in idle:
            session.keep_alive()
        times = [second for found in pool.map(act, range(ACTIVE)) for second in found]
        end = server.memory_info().rss
    for session in idle:
        session.close()
    return {
        **quantiles(times),
        "memory_of_clients_mb": round((middle - start) / 1e6, 2),
        "growth_in_second_round_mb": round((end - middle) / 1e6, 2),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=3000)
    options = parser.parse_args()
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs,), daemon=True
    )
    process.start()
    port, echo_port = mine.recv()
    server = psutil.Process(process.pid)
    result: dict[str, Any] = {"context": context(), "by_envs": {}}
    for envs in ENVS:
        own = ask(f"127.0.0.1:{port}", envs, options.questions, server)
        echo = ask_echo(f"127.0.0.1:{echo_port}", envs, options.questions, server)
        added = round(own["p50_ms"] - echo["p50_ms"], 4)
        result["by_envs"][envs] = {"gateway": own, "bare_grpc": echo, "added_p50_ms": added}
    result["many_clients"] = many(f"127.0.0.1:{port}", options.questions // 20 + 1, server)
    out = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    ).stdout.split()
    result["client_import"] = {
        "seconds": round(float(out[0]), 3),
        "resident_mb": round(float(out[1]) / 1e6, 1),
    }
    process.terminate()
    text = json.dumps(result, indent=2)
    print(text)
    target = Path(__file__).parent / "results" / "gateway.json"
    target.write_text(text + "\n")


if __name__ == "__main__":
    main()
