"""A machine whose loopback is that of IPv6 alone, or down: what can work does, the rest is one
sentence.

Each test has a network namespace of its own, which needs root.
"""

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest

from tests.integration.running import PATIENCE

pytestmark = [pytest.mark.long, pytest.mark.timeout(300 * PATIENCE)]

LOOPBACKS = {
    "ipv6": 'ip link set lo up && ip addr del 127.0.0.1/8 dev lo && exec "$@"',
    "down": 'ip addr flush dev lo && ip link set lo down && exec "$@"',
}
DEBUG = ["train", "--preset", "debug", "--env-steps", "200"]
READ = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).read().decode())"


def has_namespaces() -> bool:
    words = ["unshare", "-n", "bash", "-c", LOOPBACKS["ipv6"], "sh", "true"]
    with contextlib.suppress(OSError):
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    return False


needs_namespaces = pytest.mark.skipif(
    not has_namespaces(), reason="needs root, unshare, and ip (apt-get install iproute2)"
)
pytestmark.append(needs_namespaces)


def started(loopback, tmp_path, *words):
    command = ["unshare", "-n", "bash", "-c", LOOPBACKS[loopback], "sh"]
    return subprocess.Popen(
        [*command, sys.executable, "-m", "worldloom", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
    )


def ended(process, timeout_s=150):
    try:
        said, _ = process.communicate(timeout=timeout_s * PATIENCE)
    finally:
        process.kill()
    assert "Traceback" not in said
    return process.returncode, said


def read(process, url):
    """What is there for a process of the same machine."""
    words = ["nsenter", "-t", str(process.pid), "-n", sys.executable, "-c", READ, url]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("loopback", ["ipv6", "down"])
def test_a_local_run_completes(tmp_path, loopback):
    words = [*DEBUG, "--runtime", "local", "--run-dir", str(tmp_path / "run")]
    status, said = ended(started(loopback, tmp_path, *words))
    assert status == 0, said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"
    assert ("http://[::1]:9464/" in said) == (loopback == "ipv6")


def test_page_and_metrics_answer_on_ipv6(tmp_path):
    words = [*DEBUG, "--runtime", "local", "--run-dir", str(tmp_path / "run")]
    process = started("ipv6", tmp_path, *words, "--env-steps", "100000")
    try:
        deadline = time.monotonic() + 100 * PATIENCE
        while "worldloom_run_info" not in read(process, "http://[::1]:9464/metrics"):
            assert process.poll() is None
            assert time.monotonic() < deadline
        assert "<html" in read(process, "http://[::1]:9464/")
    finally:
        process.terminate()
        status, said = ended(process)
    assert status == 0, said


@pytest.mark.parametrize("loopback", ["ipv6", "down"])
def test_ray_is_refused_in_one_sentence(tmp_path, loopback):
    status, said = ended(started(loopback, tmp_path, *DEBUG, "--run-dir", str(tmp_path / "run")))
    assert status == 2
    assert said.count("error: ") == 1
    assert "Ray needs IPv4 there" in said
    assert "--runtime local" in said
    assert not (tmp_path / "run").exists()


def test_an_agent_is_served_on_ipv6(tmp_path):
    words = [*DEBUG, "--runtime", "local", "--run-dir", str(tmp_path / "run")]
    assert ended(started("ipv6", tmp_path, *words))[0] == 0
    process = started("ipv6", tmp_path, "serve", str(tmp_path / "run"), "--port", "50051")
    said = ""
    try:
        for line in process.stdout:
            said += line
            if " at [::1]:50051" in line:
                break
        process.terminate()
    finally:
        status, rest = ended(process)
    assert status == 0, said + rest
    assert " at [::1]:50051" in said


@pytest.mark.parametrize("loopback", ["ipv6", "down"])
def test_submit_to_a_cluster_that_is_not_there_is_one_sentence(tmp_path, loopback):
    words = ["submit", "--connect-timeout", "3", "--working-dir", str(tmp_path), "--"]
    status, said = ended(started(loopback, tmp_path, *words, "--env", "toy:point"))
    assert status == 2, said
    assert said.count("error: ") == 1
    assert "no job interface answers at http://127.0.0.1:8265" in said
