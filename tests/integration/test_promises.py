"""What the security page promises of a run on one machine, looked at from outside."""

import ipaddress
import os
import signal
import stat
from pathlib import Path

import psutil
import pytest

from tests.integration.running import PATIENCE, launched, marked
from tests.ports import free_port
from worldloom_dist.runtime.cluster import MARK

pytestmark = [pytest.mark.ray, pytest.mark.timeout(200 * PATIENCE)]


def listening(mark: str) -> dict[str, list[str]]:
    """Addresses on which processes of a run listen, with their command lines."""
    found: dict[str, list[str]] = {}
    for pid, line in marked(mark).items():
        for one in psutil.Process(pid).net_connections(kind="inet"):
            if one.status == psutil.CONN_LISTEN:
                found.setdefault(one.laddr.ip, []).append(line)
    return found


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


@pytest.mark.long
def test_a_run_listens_on_the_loopback_only_and_its_files_are_private(tmp_path):
    folder = tmp_path / "run"
    words = (
        "--preset debug --env toy:counting --env-steps 10000000 --train-ratio 2 --eval-episodes 0 "
        f"--gateway-port {free_port()} --run-dir {folder}"
    ).split()
    env = {"RAY_AUTH_MODE": "token", "TMPDIR": str(tmp_path)}
    with launched(folder, *words, env=env) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 0, 120)
        found = listening(run.mark)
        worker = psutil.Process(run.pids("ray::WorkerRole")[0])
        cluster = Path(worker.environ()[MARK])
        token = cluster / "token"
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (cluster, token)]
        secret = token.read_text()
        written = [path for path in folder.rglob("*") if path.is_file()]
        leaks = [path for path in written if secret.encode() in path.read_bytes()]
        key = stat.S_IMODE((folder / "gateway.key").stat().st_mode)
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.finish() == 0, run.output.read_text()
        assert not cluster.exists()
        assert secret not in run.output.read_text()
    assert len(found) > 0
    open_ones = {ip: who for ip, who in found.items() if not is_loopback(ip)}
    assert open_ones == {}
    assert modes == [0o700, 0o600]
    assert len(secret) >= 32
    assert leaks == []
    assert key == 0o600
