r"""What a question through a gateway costs, what a push brings, and how many clients it bears.

    python benchmarks/gateway.py                      # 13 minutes, see --help for each stage;
                                                      # writes benchmarks/results/gateway.json
    python benchmarks/gateway.py --stages push        # the file keeps what the others wrote
    python benchmarks/gateway.py --scale 0.05 --camera-seconds 5 --output /tmp/gateway.json

On a quiet machine: questions 20 s, push 5 s, clients 40 s, import 1 s, ray_serve 1 to 2 minutes,
camera 11 minutes (10 of them are measured; --camera-seconds). --scale is for the first three and
ray_serve.

Ray Serve needs packages that nothing here needs, so it runs in an environment of its own, which
sees the packages of this one:

    python -m venv /tmp/serve
    python -c "import sys; print(*filter(None, sys.path), sep='\n')" \
        > "$(echo /tmp/serve/lib/python3*/site-packages)/here.pth"
    /tmp/serve/bin/pip install starlette fastapi uvicorn grpcio-reflection
    python benchmarks/gateway.py --serve-python /tmp/serve/bin/python

Each stage gives rows with a value, its unit, and its target beside it. Servers are processes of
their own. In ``questions`` and ``clients`` the policy answers at once and replay takes everything,
so what is measured is the gateway's own share; beside it, in the same run, the same client asks a
bare gRPC echo of messages of the same size, and Ray Serve's gRPC proxy before a replica that
answers at once (left out, and said to be, where its packages are not there). In ``push`` both the
worker and the client pack frames and see them acknowledged by the journal of one shard. In
``camera`` a whole run trains ``dreamerv3:ci`` while a client asks 50 times a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from context import context
from gateway_parts import (
    ACTION,
    ECHO,
    FRAMES,
    OBS,
    VERSION,
    Found,
    process,
    serve_echo,
    serve_frames,
    serve_shard,
    serve_vectors,
    serving,
)

from worldloom.core.sequence import StreamId
from worldloom_client import connect, feed
from worldloom_client.wire import encode_tensor, message, method
from worldloom_dist.actors.stream_writer import StreamWriter
from worldloom_dist.interfaces import Shard
from worldloom_dist.rpc.connection import RpcClient

ENVS = (1, 4, 16)
ROWS_PER_CORE_S = {1: 2_500.0, 4: 10_000.0, 16: 40_000.0}
IDLE = 256
ACTIVE = 64
PERIOD_S = 0.02
SERVE_PACKAGES = ("starlette", "fastapi", "uvicorn", "grpc_reflection")
IMPORT = (
    "import time; began = time.perf_counter(); import worldloom_client; "
    "took = time.perf_counter() - began; import psutil; "
    "print(took, psutil.Process().memory_info().rss)"
)
CAMERA = (
    "--env toy:pixel --agent dreamerv3:ci --preset debug --workers 0 --env-steps 100000000 "
    "--eval-episodes 0 --eval-every 0 --train-ratio 512 --metrics-port 0"
).split()

Row = dict[str, Any]


def row(
    name: str, value: float, unit: str, target: float | None = None, *, at_most: bool = True
) -> Row:
    """One number, and whether it is as good as its target (None without one)."""
    found: Row = {"name": name, "value": round(value, 4), "unit": unit}
    if target is not None:
        found["target"] = f"{'<=' if at_most else '>='} {target:g}"
        found["met"] = value <= target if at_most else value >= target
    return found


def quantile_ms(seconds: Sequence[float], share: float) -> float:
    """A quantile in milliseconds."""
    return 1e3 * float(np.quantile(seconds, share))


def cpu_s(running: psutil.Process) -> float:
    """CPU time of a process so far, its children included."""
    family = [running, *running.children(recursive=True)]
    return float(sum(sum(one.cpu_times()[:2]) for one in family))


def timed(ask: Callable[[], object], count: int) -> list[float]:
    """Seconds of every call."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
    return times


def measured(
    ask: Callable[[], object], count: int, server: psutil.Process
) -> tuple[list[float], float]:
    """Seconds of every call after some to warm up, and seconds of the server's CPU for one."""
    timed(ask, count // 10 + 1)
    before = cpu_s(server)
    times = timed(ask, count)
    return times, (cpu_s(server) - before) / count


def questions(scale: float) -> list[Row]:
    """One client, beside a bare echo of the same messages."""
    count = int(3000 * scale) + 10
    rows = []
    with process(serve_vectors) as (port, server), process(serve_echo) as (echo_port, echo):
        for envs in ENVS:
            bare, bare_cpu = _ask_echo(echo_port, envs, count, echo)
            obs = {"obs": np.random.default_rng(0).normal(size=(envs, OBS)).astype(np.float32)}
            flags = (np.zeros(envs, np.float32), np.zeros(envs, bool), np.zeros(envs, bool))
            with connect(f"127.0.0.1:{port}", num_envs=envs) as session:
                ask = partial(session.act_many, obs, *flags)
                own, cpu = measured(ask, count, server)
            at = f"{envs} envs per question"
            is_goal = envs == 4
            for share, goal in ((0.5, 0.8), (0.99, 3.0)):
                added = quantile_ms(own, share) - quantile_ms(bare, share)
                name = f"added to a bare echo, p{share * 100:g}, {at}"
                rows.append(row(name, added, "ms", goal if is_goal else None))
            rows.append(row(f"p50, {at}", quantile_ms(own, 0.5), "ms"))
            rows.append(row(f"p99, {at}", quantile_ms(own, 0.99), "ms"))
            goal_ms = 0.45 if is_goal else None
            rows.append(row(f"server CPU of a question, {at}", 1e3 * cpu, "ms", goal_ms))
            rows.append(row(f"the bare echo's CPU of a question, {at}", 1e3 * bare_cpu, "ms"))
            per_core = envs / max(cpu, 1e-9)
            rows.append(
                row(
                    f"rows per core-second, {at}",
                    per_core,
                    "1/s",
                    ROWS_PER_CORE_S[envs],
                    at_most=False,
                )
            )
    return rows


def _ask_echo(
    port: int, envs: int, count: int, server: psutil.Process
) -> tuple[list[float], float]:
    request = message("ActStreamRequest")(number=1)
    request.request.obs.append(encode_tensor(np.zeros((envs, OBS), np.float32)))
    data = request.SerializeToString()
    line: Any = queue.SimpleQueue()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answers = channel.stream_stream(ECHO)(iter(line.get, None))

        def ask() -> None:
            """There and back."""
            line.put(data)
            next(answers)

        found = measured(ask, count, server)
        line.put(None)
    return found


def ray_serve(scale: float, python: str) -> list[Row]:
    """The same question of 4 envs to Ray Serve's gRPC proxy, and to ours right after it.

    Args:
        scale: Share of the usual questions.
        python: Interpreter that has what Ray Serve needs.
    """
    found = subprocess.run(
        [python, "-c", f"import {', '.join(SERVE_PACKAGES)}"], capture_output=True, check=False
    )
    if found.returncode:
        needed = ", ".join(SERVE_PACKAGES)
        return [{"name": "Ray Serve", "skipped": f"{python} cannot import {needed}; see --help"}]
    count = int(1500 * scale) + 10
    request = message("ActRequest")(
        env=range(4), obs=[encode_tensor(np.zeros((4, OBS), np.float32))]
    )
    with serving(python) as (port, server), process(serve_vectors) as (own_port, own_server):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            act = channel.unary_unary(
                method("PolicyService", "Act"),
                request_serializer=lambda asked: asked.SerializeToString(),
                response_deserializer=message("ActResponse").FromString,
            )
            ask_them = partial(act, request, timeout=30, metadata=(("application", "policy"),))
            _until_answered(ask_them)
            theirs, cpu = measured(ask_them, count, server)
        obs = {"obs": np.zeros((4, OBS), np.float32)}
        flags = (np.zeros(4, np.float32), np.zeros(4, bool), np.zeros(4, bool))
        with connect(f"127.0.0.1:{own_port}", num_envs=4) as session:
            ask = partial(session.act_many, obs, *flags)
            ours, own_cpu = measured(ask, count, own_server)
    ratio = quantile_ms(ours, 0.5) / quantile_ms(theirs, 0.5)
    return [
        row("Ray Serve's gRPC proxy, p50, 4 envs per question", quantile_ms(theirs, 0.5), "ms"),
        row("Ray Serve's gRPC proxy, p99, 4 envs per question", quantile_ms(theirs, 0.99), "ms"),
        row("Ray Serve's CPU of a question", 1e3 * cpu, "ms"),
        row("gateway, p50, 4 envs per question", quantile_ms(ours, 0.5), "ms"),
        row("gateway's CPU of a question", 1e3 * own_cpu, "ms"),
        row("gateway / Ray Serve, p50", ratio, "ratio", 1.0),
    ]


def _until_answered(ask: Callable[[], object]) -> None:
    """The proxy hears of its application a little later than it listens."""
    give_up = time.monotonic() + 60
    while True:
        try:
            ask()
            return
        except grpc.RpcError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)


def frames() -> list[np.ndarray]:
    """Pictures as Atari's: flat colours, and a few things that move."""
    rng = np.random.default_rng(0)
    base = np.full((64, 64, 3), 40, np.uint8)
    base[50:] = (90, 60, 20)
    base[:6, ::2] = 200
    made = []
    for number in range(64):
        image = base.copy()
        for thing in range(6):
            y, x = (number * (thing + 1)) % 56, (number * (7 - thing) + 9 * thing) % 56
            image[y : y + 6, x : x + 6] = rng.integers(0, 255, 3)
        made.append(image)
    return made


def push(scale: float) -> list[Row]:
    """Chunks of 64 frames: packed, sent, in the journal of a shard; by a worker and by a client."""
    chunks = int(150 * scale) + 4
    rows = []
    speeds: dict[str, float] = {}
    pictures = frames()
    with contextlib.ExitStack() as stack:
        address, shard = stack.enter_context(process(serve_shard))
        port, server = stack.enter_context(process(serve_frames, address))
        spool = stack.enter_context(tempfile.TemporaryDirectory())
        for turn, name in enumerate(("worker", "client", "worker", "client")):
            before = cpu_s(shard) + cpu_s(server) + time.process_time()
            began = time.perf_counter()
            if name == "worker":
                _work(address, pictures, chunks, turn)
            else:
                _feed(port, pictures, chunks, spool)
            took = time.perf_counter() - began
            used = cpu_s(shard) + cpu_s(server) + time.process_time() - before
            speeds[name] = max(speeds.get(name, 0.0), 64 * chunks / took)
            rows.append(row(f"CPU of a row, {name}, turn {turn}", 1e6 * used / (64 * chunks), "us"))
    rows += [row(f"rows of a {name}", speed, "1/s") for name, speed in speeds.items()]
    share = speeds["client"] / speeds["worker"]
    return [*rows, row("client / worker", share, "ratio", 0.6, at_most=False)]


def _columns(picture: np.ndarray, *, is_first: bool) -> dict[str, np.ndarray]:
    flag = np.zeros(1, bool)
    return {
        "obs": picture[None],
        "action": np.zeros(1, np.int64),
        "reward": np.zeros(1, np.float32),
        "is_first": np.array([is_first]),
        "terminated": flag,
        "truncated": flag,
    }


class _Writer:
    """A worker's line to a shard."""

    def __init__(self, address: Any) -> None:
        self.line: Any = RpcClient(Found(address), Shard.append, 60.0, 60.0)

    def append(self, chunk: Any) -> Callable[[], None]:
        """Send; the result waits for the acknowledgement."""
        answer = self.line.submit(chunk)

        def wait() -> None:
            """Until it is stored."""
            answer()

        return wait


def _work(address: Any, pictures: list[np.ndarray], chunks: int, number: int) -> None:
    target = _Writer(address)
    slot = int(time.time() * 1e3) % 900_000
    writer = StreamWriter(StreamId(slot, number, 0), FRAMES.columns(), target, max_age_s=1e9)
    for index in range(64 * chunks):
        is_first = index == 0
        columns = _columns(pictures[index % 64], is_first=is_first)
        writer.add(columns, 0, VERSION, is_first=is_first, is_last=False)
    writer.flush()
    target.line.close()


def _feed(port: int, pictures: list[np.ndarray], chunks: int, spool: str) -> None:
    action = np.zeros((), np.int64)
    with feed(f"127.0.0.1:{port}", spool=spool, spool_bytes=2**32) as replay:
        for index in range(64 * chunks):
            replay.add(pictures[index % 64], action)


def clients(scale: float) -> list[Row]:
    """Clients that ask beside clients that are silent but alive."""
    count = int(150 * scale) + 2
    obs = np.zeros(OBS, np.float32)
    with process(serve_vectors) as (port, server):
        address = f"127.0.0.1:{port}"
        start = server.memory_info().rss
        idle = [connect(address) for _ in range(IDLE)]
        active = [connect(address) for _ in range(ACTIVE)]

        def act(session: Any) -> list[float]:
            """One active client."""
            return timed(lambda: session.act(obs), count)

        memory = []
        with futures.ThreadPoolExecutor(ACTIVE) as pool:
            for _ in range(4):
                times = [s for found in pool.map(act, active) for s in found]
                for session in idle:
                    session.keep_alive()
                memory.append(server.memory_info().rss / 1e6)
        for session in (*idle, *active):
            session.close()
    growth = memory[-1] - memory[1]
    return [
        row(f"p50 of {ACTIVE} clients at once", quantile_ms(times, 0.5), "ms"),
        row(f"p99 of {ACTIVE} clients at once", quantile_ms(times, 0.99), "ms"),
        row(f"memory of {IDLE + ACTIVE} sessions", memory[0] - start / 1e6, "MB"),
        row("growth from the second to the fourth round", growth, "MB", 2.0),
    ]


def importing() -> list[Row]:
    """A program that imports the client; the best of five."""
    found = []
    for _ in range(5):
        out = subprocess.run(
            [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
        ).stdout.split()
        found.append((float(out[0]), float(out[1]) / 1e6))
    seconds, resident = (min(values) for values in zip(*found, strict=True))
    return [
        row("import of worldloom_client", seconds, "s", 0.25),
        row("resident after it", resident, "MB", 50.0),
    ]


def camera(seconds: float) -> list[Row]:
    """50 questions a second with one 64x64 picture, while a run trains on what they bring."""
    if seconds <= 0:
        return [{"name": "camera", "skipped": "--camera-seconds 0"}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        words = [*CAMERA, "--gateway-port", str(port), "--run-dir", f"{folder}/run"]
        command = [sys.executable, "-m", "worldloom_dist.launch", *words]
        log = Path(folder) / "run.out"
        with log.open("w") as out:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
            run = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            return _drive_camera(port, seconds)
        except Exception:
            sys.stderr.write(log.read_text()[-3000:])
            raise
        finally:
            run.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(90)
            run.kill()


def _drive_camera(port: int, seconds: float) -> list[Row]:
    from worldloom.envs.toy import PixelToyEnv

    env = PixelToyEnv()
    obs, reward, terminated, truncated = env.reset(seed=0)[0], 0.0, False, False
    times: list[float] = []
    begun_at = (0, 0)
    end = float("inf")
    with connect(f"127.0.0.1:{port}", on_hold="act", timeout_s=90, control_hz=50) as session:
        due = time.perf_counter()
        while due < end:
            began = time.perf_counter()
            action = session.act(obs, reward, terminated=terminated, truncated=truncated)
            took = time.perf_counter() - began
            if end < float("inf"):
                times.append(took)
            elif session.version[1] >= 5:  # it trains, and its weights act
                end = time.perf_counter() + seconds
                begun_at = session.version
            if terminated or truncated:
                obs, reward, terminated, truncated = env.reset()[0], 0.0, False, False
            else:
                obs, reward, terminated, truncated, _ = env.step(action)
            due += PERIOD_S
            now = time.perf_counter()
            if now < due:
                time.sleep(due - now)
            else:
                due = now
        updates = session.version[1] - begun_at[1]
        skipped = session.rows_skipped
    missed = sum(took > PERIOD_S for took in times)
    return [
        row(f"answers later than 20 ms, of {len(times)}", missed, "questions", 0.0),
        row("p50", quantile_ms(times, 0.5), "ms"),
        row("p99.9", quantile_ms(times, 0.999), "ms"),
        row("longest", 1e3 * max(times), "ms", 20.0),
        row("updates meanwhile", updates / seconds, "1/s"),
        row("rows left out, because replay wanted none", skipped, "rows"),
    ]


STAGES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "questions": lambda options: questions(options.scale),
    "push": lambda options: push(options.scale),
    "clients": lambda options: clients(options.scale),
    "import": lambda _: importing(),
    "ray_serve": lambda options: ray_serve(options.scale, options.serve_python),
    "camera": lambda options: camera(options.camera_seconds),
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual questions")
    parser.add_argument("--camera-seconds", type=float, default=600.0)
    parser.add_argument(
        "--serve-python", default=sys.executable, help="interpreter for Ray Serve, see above"
    )
    default = Path(__file__).parent / "results" / "gateway.json"
    parser.add_argument("--output", type=Path, default=default)
    options = parser.parse_args()
    result: dict[str, Any] = {"action": ACTION, "stages": {}}
    if options.output.exists():
        result["stages"] = json.loads(options.output.read_text())["stages"]
    for name in options.stages:
        made = context()
        began = time.perf_counter()
        rows = STAGES[name](options)
        took = round(time.perf_counter() - began, 1)
        result["stages"][name] = {"context": made, "seconds": took, "rows": rows}
        for found in rows:
            print(f"{name:10} {json.dumps(found)}", flush=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
