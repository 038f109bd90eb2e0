"""A checkpoint behind Ray Serve: served by two replicas, asked over gRPC."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.worldloom_dist.small_runs import start

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve_policy.py"
NEEDED = ("starlette", "fastapi", "uvicorn")
WORDS = ("--env", "gym:Pendulum-v1", "--env-steps", "60", "--workers", "1")


def finish(command, **more):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **more)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_checkpoint_is_served_by_ray_serve(tmp_path) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: pip install 'ray[serve]'")
    assert start(tmp_path / "run", *WORDS).run() == "completed"
    port = free_port()
    words = [str(tmp_path / "run"), "--replicas", "2", "--port", str(port)]
    log = tmp_path / "serve.out"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, str(EXAMPLE), *words, "--http-port", str(free_port())],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        asked = ["--ask", f"127.0.0.1:{port}", "--episodes", "2"]
        client = finish([sys.executable, str(EXAMPLE), *asked])
        assert client.returncode == 0, client.stderr + log.read_text()
        returns = [float(line.split()[1]) for line in client.stdout.splitlines()]
        assert len(returns) == 2
        assert all(-2000 < value < 0 for value in returns)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def test_what_cannot_be_served_is_one_sentence(tmp_path) -> None:
    done = finish([sys.executable, str(EXAMPLE), str(tmp_path)])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    done = finish([sys.executable, str(EXAMPLE)])
    assert done.returncode == 2
    assert "--ask" in done.stderr
