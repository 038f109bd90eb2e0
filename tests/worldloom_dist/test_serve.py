"""A checkpoint that is served: the returns of its evaluation, refusals, reload, and the end."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest

from tests.ending import ended
from tests.worldloom_dist.local_runs import start
from tests.worldloom_dist.tiny_runs import TINY
from worldloom.core.exceptions import CheckpointError, ConfigurationError
from worldloom.envs.factory import make_env
from worldloom_client import RefusedError, connect
from worldloom_dist.evaluate import evaluate, without_replay
from worldloom_dist.gateway.health import Request, Response
from worldloom_dist.run.builders import role_seed
from worldloom_dist.run.cli import read_config
from worldloom_dist.run.plan import resolve
from worldloom_dist.serve import Served, serve

EPISODES = 3
MAX_STEPS = 12


@pytest.fixture(scope="module", params=sorted(TINY))
def run_dir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "run"
    words = [*TINY[request.param], "--env", "toy:point", "--workers", "1", "--env-steps", "60"]
    assert start(folder, *words).run() == "completed"
    return folder


@contextlib.contextmanager
def serving(folder, port=0, **more):
    ready = threading.Event()
    found = {}

    def work() -> None:
        async def run() -> None:
            until = found["until"] = asyncio.Event()
            found["loop"] = asyncio.get_running_loop()

            def on_ready(port: int) -> None:
                found["port"] = port
                ready.set()

            await serve(Served(run_dir=folder, port=port, **more), on_ready, until=until)

        asyncio.run(run())

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(60)
    try:
        yield f"127.0.0.1:{found['port']}"
    finally:
        found["loop"].call_soon_threadsafe(found["until"].set)
        thread.join(60)
        assert not thread.is_alive()


def returns_of(address, folder):
    """What the run's evaluation does, with the actions of a server."""
    plan = resolve(without_replay(read_config(folder)))
    env = make_env(plan.env, num_envs=EPISODES, seed=role_seed(plan, "evaluation"), is_exact=False)
    returns = np.zeros(EPISODES)
    running = np.ones(EPISODES, bool)
    with connect(address, num_envs=EPISODES) as session:
        row = env.reset()
        lengths = np.zeros(EPISODES, int)
        while running.any():
            action = session.act_many(row.obs, row.reward, row.terminated, row.truncated)
            row = env.step(action)
            returns += np.where(running, row.reward.astype(float), 0.0)
            lengths += running
            running &= ~row.is_last & (lengths < MAX_STEPS)
    env.close()
    return returns.tolist()


def test_a_client_gets_the_returns_of_the_evaluation_each_time(run_dir) -> None:
    expected = evaluate(run_dir, episodes=EPISODES, max_steps=MAX_STEPS)["returns"]
    with serving(run_dir) as address:
        assert returns_of(address, run_dir) == expected
        assert returns_of(address, run_dir) == expected


def test_a_client_that_comes_back_is_not_taken_for_one_that_came_first(run_dir) -> None:
    """The server was started again, and another client was faster."""
    with serving(run_dir) as address:
        old = connect(address)
        obs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in old.obs_specs}
        old.act(obs)
    port = int(address.rpartition(":")[2])
    with serving(run_dir, port=port), connect(address) as new:
        new.act(obs)
        old.act(obs)
        assert new.streams[-1] != old.streams[-1]
        assert new.streams[-1] not in old.streams
        new.act(obs)
        old.close()


def test_nothing_is_stored_and_noise_is_for_those_who_start_it_so(run_dir) -> None:
    with serving(run_dir) as address:
        with pytest.raises(RefusedError, match="stores no rows") as caught:
            connect(address, store=True)
        assert caught.value.code == "FAILED_PRECONDITION"
        with pytest.raises(RefusedError, match="--explore"):
            connect(address, explore=True)
        with connect(address) as session:
            assert session.description.version.update > 0
            assert session.description.run_id
            obs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in session.obs_specs}
            session.act(obs)
            assert session.version[1] == session.description.version.update
    with serving(run_dir, explore=True) as address, connect(address, explore=True) as session:
        session.act({spec.name: np.zeros(spec.shape, spec.dtype) for spec in session.obs_specs})


def test_health_is_told_of_each_service(run_dir) -> None:
    with serving(run_dir) as address, grpc.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=Request.SerializeToString,
            response_deserializer=Response.FromString,
        )
        for service in ("", "worldloom.gateway.v1.PolicyService"):
            assert check(Request(service=service), timeout=10).status == 1
        with pytest.raises(grpc.RpcError) as caught:
            check(Request(service="cat"), timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_checkpoint_may_be_named_by_its_folder(run_dir) -> None:
    folder = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    with serving(folder) as address, connect(address) as session:
        assert session.description.version.update > 0


def test_what_cannot_be_served_is_refused(run_dir, tmp_path) -> None:
    async def run(**more) -> None:
        await serve(Served(**{"run_dir": run_dir, "port": 0, **more}), until=asyncio.Event())

    folder = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    for more, kind, says in (
        ({"run_dir": tmp_path}, ConfigurationError, "holds no run"),
        ({"checkpoint": "cat"}, ConfigurationError, "checkpoint must be one of"),
        ({"follow": True, "checkpoint": folder.name}, ConfigurationError, "follow"),
        ({"run_dir": folder, "checkpoint": "best"}, ConfigurationError, "is one already"),
        ({"port": 70000}, ConfigurationError, "port must be"),
        ({"device": "tpu"}, ConfigurationError, "device"),
    ):
        with pytest.raises((kind, CheckpointError), match=says):
            asyncio.run(run(**more))


def test_a_newer_checkpoint_is_taken_up(tmp_path) -> None:
    folder = tmp_path / "run"
    words = [*TINY["tdmpc2:ci"], "--env", "toy:point", "--workers", "1"]
    assert start(folder, *words, "--env-steps", "40").run() == "completed"
    with serving(folder, follow=True) as address, connect(address) as session:
        obs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in session.obs_specs}
        session.act(obs)
        before = session.version
        assert start(folder, *words, "--env-steps", "60").run() == "completed"
        for _ in range(400):
            session.act(obs, 0.0)
            if session.version > before:
                break
            threading.Event().wait(0.02)
        assert session.version > before


def test_the_command_serves_until_a_signal_comes(run_dir) -> None:
    command = [sys.executable, "-m", "worldloom_dist.serve", str(run_dir), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with ended(process), process.stderr as lines:
        port = next(line.rsplit(":", 1)[1] for line in lines if " at 127.0.0.1:" in line)
        with connect(f"127.0.0.1:{int(port)}") as session:
            obs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in session.obs_specs}
            session.act(obs)
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(30) == 0


def test_wrong_input_gets_one_sentence(tmp_path) -> None:
    command = [sys.executable, "-m", "worldloom_dist.serve", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "holds no run" in done.stderr
    command = [*command, "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "needs --gateway.tls-cert" in done.stderr
