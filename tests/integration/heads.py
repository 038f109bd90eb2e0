"""A real Ray head with its job interface, on the loopback only, with token authentication; ended
with everything it started.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.integration.running import MARK, kill_marked
from tests.ports import free_ports

TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Head:
    """Where it answers, and the environment of a client that may use it."""

    url: str
    address: str
    mark: str
    environment: dict[str, str]


@contextlib.contextmanager
def ray_head(mark: str, *, cpus: int = 16) -> Iterator[Head]:
    """Start it, wait until the job interface answers, and end it."""
    temporary = Path(tempfile.mkdtemp(prefix="wlh-"))
    token = temporary / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    auth = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HOME": str(temporary),
    }
    auth |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "OMP_NUM_THREADS": "1",
        "WORLDLOOM_RUNS": str(temporary / "runs"),
        MARK: mark,
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | auth
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    gcs, dashboard, agent, grpc, metrics, client, envs = free_ports(7)
    ports = {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": grpc,
    }
    ports |= {
        "metrics-export-port": metrics,
        "ray-client-server-port": client,
        "runtime-env-agent-port": envs,
    }
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--num-cpus={cpus}",
    ]
    command += [
        f"--temp-dir={temporary}/ray",
        "--include-dashboard=true",
        f"--object-store-memory={200 * 2**20}",
    ]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with (temporary / "out").open("w") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + 90
        while not _answers(url):
            assert process.poll() is None, (temporary / "out").read_text()
            assert time.monotonic() < deadline, (temporary / "out").read_text()
            time.sleep(0.2)
        yield Head(url, f"127.0.0.1:{gcs}", mark, environment)
    finally:
        kill_marked(mark)
        process.wait(20)
        shutil.rmtree(temporary, ignore_errors=True)


def _answers(url: str) -> bool:
    request = urllib.request.Request(
        f"{url}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    try:
        return urllib.request.urlopen(request, timeout=5).status == 200
    except (OSError, urllib.error.URLError):
        return False
