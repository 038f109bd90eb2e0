"""How a private cluster is stopped: at once, and whole."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from ray._private import worker

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
        cluster._end(family)
    assert len(family) == 2
    assert not agent.is_running() or agent.status() == psutil.STATUS_ZOMBIE


def test_what_does_not_die_is_named_and_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stubborn:
        monkeypatch.setattr(cluster, "GONE_WITHIN_S", 0.1)
        monkeypatch.setattr(psutil.Process, "kill", lambda _: None)
        cluster._end([psutil.Process(stubborn.pid)])
        assert f"processes of Ray are left: {stubborn.pid}" in caplog.text
        stubborn.kill()


def test_a_ray_without_that_node_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_global_node", None)
    assert ray_internals.own_servers() == []
    cluster._end([])
