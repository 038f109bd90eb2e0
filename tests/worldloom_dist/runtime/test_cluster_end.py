"""How a private cluster is stopped: at once, and whole."""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray._private import worker

from worldloom.core.exceptions import ConfigurationError, TrainingError
from worldloom_dist.runtime import cluster, ray_internals

SERVER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("ready", flush=True)
time.sleep(60)
"""
"""Starts an agent, which does not notice when it dies."""


class Node:
    """As Ray's ``Node``, as far as we use it."""

    def __init__(self, *servers: subprocess.Popen) -> None:
        self.all_processes = {"raylet": [SimpleNamespace(process=server) for server in servers]}
        self.kills: list[tuple[bool, bool]] = []

    def kill_all_processes(self, check_alive: bool = True, allow_graceful: bool = False) -> None:
        self.kills.append((check_alive, allow_graceful))
        for server in self.all_processes["raylet"]:
            server.process.kill()


def test_servers_that_block_sigterm_are_killed_without_grace_and_what_they_started_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        node = Node(server)
        monkeypatch.setattr(worker, "_global_node", node)
        family = ray_internals.own_servers()
        node.kill_all_processes(check_alive=False, allow_graceful=True)
        assert node.kills == [(False, False)]
        agent = psutil.Process(family[1].pid)
        assert agent.is_running()
        cluster.end_processes(family)
    assert len(family) == 2
    assert not agent.is_running() or agent.status() == psutil.STATUS_ZOMBIE


def test_what_does_not_die_is_named_and_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stubborn:
        monkeypatch.setattr(cluster, "GONE_WITHIN_S", 0.1)
        monkeypatch.setattr(psutil.Process, "kill", lambda _: None)
        cluster.end_processes([psutil.Process(stubborn.pid)])
        assert f"processes of Ray are left: {stubborn.pid}" in caplog.text
        stubborn.kill()


def test_a_ray_without_that_node_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_global_node", None)
    assert ray_internals.own_servers() == []
    cluster.end_processes([])


def test_a_temporary_folder_that_is_too_long_for_a_socket_is_passed_over(tmp_path, monkeypatch):
    long = tmp_path / ("scratch-of-a-job-" + "x" * 30)
    long.mkdir()
    monkeypatch.setattr(cluster.tempfile, "tempdir", str(long))
    short = Path(tempfile.mkdtemp(dir="/tmp"))  # tmp_path is too long itself
    try:
        monkeypatch.setattr(cluster, "OTHER_PLACES", (str(tmp_path / "gone"), str(short)))
        folder = cluster.private_folder()
        assert folder.parent == short
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(f"{folder}{cluster.SOCKET}") <= cluster.LONGEST_SOCKET
        monkeypatch.setattr(cluster.tempfile, "tempdir", str(short))
        assert cluster.private_folder().parent == short
        monkeypatch.setattr(cluster.tempfile, "tempdir", str(long))
        monkeypatch.setattr(cluster, "OTHER_PLACES", ())
        with pytest.raises(ConfigurationError, match="set TMPDIR to a folder of at most 27"):
            cluster.private_folder()
    finally:
        shutil.rmtree(short)


def test_a_ray_that_does_not_start_is_one_sentence_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = Exception("The current node timed out during startup. This could happen because ...")
    says = r"^Ray did not start on this machine \(The current"
    with pytest.raises(TrainingError, match=says):
        start_in_vain(monkeypatch, late)


def test_a_start_that_is_left_by_a_second_ctrl_c_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        start_in_vain(monkeypatch, KeyboardInterrupt())


def start_in_vain(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """A start of Ray that fails when one of its servers is up."""
    started: list[subprocess.Popen] = []

    def fail(**_: object) -> None:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        raise error

    monkeypatch.setattr(ray, "init", fail)
    try:
        with cluster.ray_cluster(None, "run"):
            pytest.fail("it did not start")
    finally:
        with started[0] as server:
            is_ended = server.poll() == -signal.SIGKILL
            server.kill()
        assert is_ended
