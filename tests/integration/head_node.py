"""A Ray head of one machine whose servers can be killed and started again, with or without Redis
behind it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.integration.running import MARK, PATIENCE, kill_marked, marked
from tests.ports import free_ports

STORE_BYTES = 200 * 2**20


class HeadNode:
    """Started and stopped by :func:`head_node`.

    Attributes:
        address: Of its GCS; the same after a restart.
        mark: In the environment of everything that it starts.
    """

    def __init__(self, folder: Path, redis: str = "") -> None:
        self._folder = folder
        self.mark = uuid.uuid4().hex
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            MARK: self.mark,
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        if redis:
            self.environment |= {
                "RAY_REDIS_ADDRESS": redis,
                "RAY_external_storage_namespace": self.mark,
            }
        self._gcs: subprocess.Popen[bytes] | None = None
        (self._port,) = free_ports(1)
        self.address = f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """``ray start --head``, which returns once its servers are up."""
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
            *("--node-ip-address=127.0.0.1", f"--port={self._port}", "--num-cpus=8"),
            *(f"--temp-dir={self._folder}/ray", "--include-dashboard=false"),
            f"--object-store-memory={STORE_BYTES}",
        ]
        done = subprocess.run(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    def kill(self, *servers: str) -> list[psutil.Process]:
        """As ``kill -9`` does; without names everything that the head has started."""
        if not servers:
            kill_marked(self.mark)
            return []
        found = []
        for pid in marked(self.mark):
            with contextlib.suppress(psutil.Error, IndexError):
                process = psutil.Process(pid)
                if os.path.basename(process.cmdline()[0]) in servers:
                    found.append(process)
        return [_killed(process) for process in found]

    def restart_gcs(self, down_s: float) -> None:
        """Kill the GCS, and start it again as it was, as who looks after a head does."""
        (gcs,) = (p for p in map(psutil.Process, marked(self.mark)) if p.name() == "gcs_server")
        command = gcs.cmdline()
        environment = gcs.environ()
        _killed(gcs)
        time.sleep(down_s)
        with (self._folder / "gcs.out").open("w") as out:
            self._gcs = subprocess.Popen(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT
            )

    def close(self) -> None:
        """End everything."""
        kill_marked(self.mark)
        if self._gcs is not None:
            self._gcs.wait(20)


def _killed(process: psutil.Process) -> psutil.Process:
    process.send_signal(signal.SIGKILL)
    return process


@contextlib.contextmanager
def head_node(redis: str = "") -> Iterator[HeadNode]:
    """One that is up; everything that it started ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="wlh-", dir="/tmp"))
    head = HeadNode(folder, redis)
    try:
        head.start()
        yield head
    finally:
        head.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of this machine, in memory; yields its address."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        stdout=subprocess.DEVNULL,
        cwd="/tmp",
    )
    try:
        deadline = time.monotonic() + 20 * PATIENCE
        while subprocess.run(
            ["redis-cli", "-p", str(port), "ping"], capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
