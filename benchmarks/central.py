"""Central inference and the scale of env workers, on a real local Ray.

    python benchmarks/central.py  # all parts, about ten minutes; writes
    benchmarks/results/central.json
    python benchmarks/central.py overhead --workers 2 --seconds 5     # some parts, smaller

``overhead``: clients in processes of their own (workers x envs) ask one inference server as env
workers do, resting between two questions as long as an env steps. Reported apart, as percentiles
over all requests: transport (round trip minus what the server accounts for), queue (waiting for
others, from arrival to batch; it contains at most ``max_wait_ms`` of waiting on purpose), busy
(from arrival until the model was done with the batch before: a consequence of model time, since it
does one batch at a time) and model. What central inference adds is transport and what the queue
takes beyond ``max_wait_ms``. ``groups``: rows per second of one worker with 8 envs that sleep, in
one group and in two, with an inference server that takes as long for a batch as they step.
``sleepers``: rows per second of 1 to N workers whose envs sleep 5 to 50 ms a step, against that
many times one worker. ``driver``: CPU of the launcher's process while N workers run, as a share of
one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # Ray reads it once, when it is imported

import numpy as np
import psutil
import ray
from context import context
from scale import roles, summary, wait

from worldloom.core.sequence import NO_POLICY
from worldloom.envs.config import EnvConfig
from worldloom_dist.actors.acting import ActReply, ActRequest, RemoteActing
from worldloom_dist.interfaces import Inference, inference_client
from worldloom_dist.rpc.connection import RpcClient
from worldloom_dist.run.plan import Plan, group_sizes, resolve
from worldloom_dist.run.presets import PRESETS
from worldloom_dist.runtime.cluster import CPUS_PER_ROLE, ray_cluster
from worldloom_dist.runtime.policy_roles import InferenceRole
from worldloom_dist.runtime.supervisor import start_actor

ENVS_PER_CLIENT = 4
REST_S = 0.05
SLEEPS_S = (0.005, 0.01, 0.02, 0.05)


class Client:
    """Asks as an env worker does; keeps (round trip, queue, busy, model) of every request,
    seconds.
    """

    def __init__(self, plan: Plan, slot: int) -> None:
        self._line = RpcClient(inference_client(0), Inference.act, 60.0, 60.0)
        self._slot = slot
        self._keys = plan.env_spec.obs

    def run(self, seconds: float) -> list[tuple[float, float, float, float]]:
        """Ask until the time is over."""
        obs = {key: spec.zeros(ENVS_PER_CLIENT) for key, spec in self._keys.items()}
        is_first = np.ones(ENVS_PER_CLIENT, bool)
        found = []
        stop = time.monotonic() + seconds
        rng = np.random.default_rng(self._slot)
        while time.monotonic() < stop:
            time.sleep(rng.uniform(0.5, 1.5) * REST_S)
            request = ActRequest(self._slot, 0, np.arange(ENVS_PER_CLIENT), obs, is_first)
            began = time.perf_counter()
            reply = self._line.call(request)
            found.append((time.perf_counter() - began, reply.waited_s, reply.busy_s, reply.model_s))
            is_first = np.zeros(ENVS_PER_CLIENT, bool)
        return found


def bench_overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Requests of many clients to one server."""
    config = dataclasses.replace(
        PRESETS["debug"](), inference="central", workers=options.workers, agent="dreamerv3:ci"
    )
    config = dataclasses.replace(config, agent_overrides={}, envs_per_worker=ENVS_PER_CLIENT)
    plan = resolve(config)
    place = {"num_cpus": CPUS_PER_ROLE}
    with ray_cluster(None, "bench"):
        server = start_actor(InferenceRole, "inference-0", plan, 0, 0, options=place)
        line = server.run_forever.remote()
        clients = [
            start_actor(Client, f"client-{slot}", plan, slot, threads=1, options=place)
            for slot in range(options.workers)
        ]
        ray.get([client.run.remote(2.0) for client in clients], timeout=300)
        answers = ray.get([client.run.remote(options.seconds) for client in clients], timeout=300)
        found = np.array(list(itertools.chain.from_iterable(answers)))
        del line
    total, queue, busy, model = found.T * 1e3
    transport = total - queue - busy - model
    parts = {
        "transport": transport,
        "queue": queue,
        "busy": busy,
        "model": model,
        "round_trip": total,
    }
    shares = {
        name: {f"p{q}": round(float(np.percentile(values, q)), 2) for q in (50, 90, 99)}
        for name, values in parts.items()
    }
    waits = config.actors.max_wait_ms
    added = float(np.percentile(parts["transport"] + np.maximum(0.0, queue - waits), 50))
    return {
        "workers": options.workers,
        "envs_per_worker": ENVS_PER_CLIENT,
        "requests": len(found),
        "max_wait_ms": waits,
        "ms": shares,
        "added_ms_p50_without_model_and_max_wait": round(added, 2),
    }


class SlowServer:
    """Answers after a fixed time from a thread, as a server far away would."""

    def __init__(self, seconds: float, action: dict[str, np.ndarray]) -> None:
        self._seconds = seconds
        self._action = action

    def submit(self, request: ActRequest) -> Any:
        """Begin a request."""
        is_done = threading.Event()
        threading.Timer(self._seconds, is_done.set).start()

        def answer() -> ActReply:
            is_done.wait()
            action = {key: value[: request.num_rows] for key, value in self._action.items()}
            return ActReply(action, {}, NO_POLICY, np.zeros(request.num_rows, bool))

        return answer


def bench_groups(options: argparse.Namespace) -> dict[str, Any]:
    """One worker with one group of envs, and with two."""
    from worldloom_dist.run.builders import build_grouped_worker

    results: dict[str, Any] = {"envs": 8, "env_step_ms": 2.0, "answer_ms": 8 * 2.0}
    for groups in (1, 2):
        config = dataclasses.replace(
            PRESETS["debug"](), inference="central", envs_per_worker=8, runtime="ray"
        )
        actors = dataclasses.replace(config.actors, groups=groups, supervise=False)
        plan = resolve(
            dataclasses.replace(config, actors=actors, env=EnvConfig(env="sleepers:two_ms"))
        )
        plan = dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, random_prefill=False))
        server = SlowServer(
            8 * 0.002 / len(group_sizes(plan)), {"action": np.zeros((8, 2), np.float32)}
        )

        def acting(first: int, size: int, server: SlowServer = server) -> RemoteActing:
            return RemoteActing(
                0, 0, call=lambda r: server.submit(r)(), submit=server.submit, first_env=first
            )

        worker = build_grouped_worker(plan, 0, 0, acting, Nowhere())
        rows = 0
        stop = time.monotonic() + options.seconds
        began = time.monotonic()
        while time.monotonic() < stop:
            rows += worker.step()
        results[f"rows_per_s_{groups}_groups"] = round(rows / (time.monotonic() - began), 1)
        worker.close()
    results["gain"] = round(results["rows_per_s_2_groups"] / results["rows_per_s_1_groups"], 2)
    return results


class Nowhere:
    """Takes chunks."""

    def append(self, chunk: Any) -> None:
        """Forget."""


def launch(*words: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a run."""
    folder = Path(tempfile.mkdtemp()) / "run"
    command = [
        sys.executable,
        "-m",
        "worldloom_dist.launch",
        "--preset",
        "debug",
        "--run-dir",
        str(folder),
        "--metrics-port",
        "0",
    ]
    command += [
        "--env-steps",
        "100000000",
        "--eval-episodes",
        "0",
        "--inference",
        "central",
        "--train-ratio",
        "0.001",
        *words,
    ]
    path = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}
    ), folder


def rate(workers: int, seconds: float, cpu: bool = False) -> tuple[float, float]:
    """Rows per second of a run with sleeping envs that stay in the random prefill, and the driver's
    share of one core.
    """
    words = [
        "--env",
        "sleepers:mixed",
        "--workers",
        str(workers),
        "--agent.prefill-agent-steps",
        "100000000",
    ]
    run, folder = launch(*words, "--actors.max-chunk-age-s", "5")
    try:
        # the early ones have many rows before the last one has begun
        wait(run, lambda: len(roles("WorkerRole")) >= workers)
        began_with = summary(folder).get("agent_steps", 0)
        wait(run, lambda: summary(folder).get("agent_steps", 0) > began_with + 200 * workers)
        driver = psutil.Process(run.pid)
        time.sleep(3.0)
        begin = summary(folder)["agent_steps"]
        began = time.monotonic()
        used = sum(driver.cpu_times()[:2])
        time.sleep(seconds)
        rows = summary(folder)["agent_steps"] - begin
        took = time.monotonic() - began
        return rows / took, (sum(driver.cpu_times()[:2]) - used) / took
    finally:
        run.terminate()
        run.wait(90)


def bench_sleepers(options: argparse.Namespace) -> dict[str, Any]:
    """How the rate grows with workers, and what the driver takes for the most of them."""
    rates = {count: rate(count, options.seconds) for count in sorted({4, options.most})}
    (few, (base, _)), (many, (most, driver)) = sorted(rates.items())
    return {
        "sleeps_s": SLEEPS_S,
        "rows_per_s": {count: round(found[0], 1) for count, found in rates.items()},
        "share_of_linear": round(most / base * few / many, 3),
        "driver_share_of_one_core": {"workers": many, "share": round(driver, 4)},
    }


PARTS = {"groups": bench_groups, "overhead": bench_overhead, "sleepers": bench_sleepers}


def main() -> None:
    """Run the parts and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; default all")
    parser.add_argument("--workers", type=int, default=16, help="clients of the inference server")
    parser.add_argument("--most", type=int, default=64, help="workers of the largest run")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).resolve().parent / "results" / "central.json"
    )
    options = parser.parse_args()
    report = context()
    for name in options.parts or PARTS:
        report[name] = PARTS[name](options)
        print(name, json.dumps(report[name], indent=2), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
