"""The servers of a private cluster: their death is known, and ends the run with a sentence."""

import socket
import subprocess
import sys
import threading
from functools import partial
from types import MappingProxyType

import psutil
import pytest

from tests.worldloom_dist.runtime.test_driver_end import PLAN
from worldloom.core.exceptions import TrainingError
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.report import Report
from worldloom_dist.runtime import cluster, server_watch
from worldloom_dist.runtime.driver import RayRuntime
from worldloom_dist.runtime.server_watch import DistantServer, ServerWatch, dead_servers

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(server_watch, "LOOK_EVERY_S", 0.01)
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


def watch_over(server, left, **settings):
    return ServerWatch(
        partial(dead_servers, {"raylet": psutil.Process(server.pid)}),
        lambda: left.append("cleaned up"),
        lambda status: left.append(status),
        **settings,
    )


def wait_for(watch):
    assert watch.join(10)


def test_a_server_that_dies_is_named_and_a_driver_that_hangs_is_ended(server, monkeypatch):
    monkeypatch.setattr(server_watch, "LEAVE_WITHIN_S", 0.05)
    left = []
    watch = watch_over(server, left)
    watch.on_hang = left.append
    assert watch.sentence == ""
    server.kill()
    wait_for(watch)
    sentence = f"Ray's raylet (pid {server.pid}) on this machine has died"
    assert watch.sentence.startswith(sentence)
    assert left == [watch.sentence, "cleaned up", 1]


def test_a_driver_that_leaves_by_itself_is_let_go(server):
    left = []
    watch = watch_over(server, left)
    server.kill()
    while not watch.sentence:
        threading.Event().wait(0.01)
    watch.close()
    wait_for(watch)
    assert left == []


def test_a_cluster_that_is_stopped_may_lose_its_servers(server):
    left = []
    watch = watch_over(server, left)
    watch.close()
    server.kill()
    wait_for(watch)
    assert (watch.sentence, left) == ("", [])


def test_the_driver_says_so_once_and_asks_no_one_any_more(server, tmp_path, monkeypatch):
    monkeypatch.setattr("worldloom_dist.runtime.driver.Placement", lambda *_: _Anywhere())
    monkeypatch.setattr("worldloom_dist.runtime.driver.needs_measuring", lambda _: False)
    monkeypatch.setattr("worldloom_dist.runtime.driver.WorkerPool", lambda *_, **__: _Anywhere())
    watch = watch_over(server, [])
    folder = RunFolder(tmp_path)
    runtime = RayRuntime(PLAN, folder, Report(PLAN, folder, {}), 0, watch)
    server.kill()
    while not watch.sentence:
        threading.Event().wait(0.01)
    with pytest.raises(TrainingError, match=r"raylet .* has died.*go on with --resume"):
        runtime.work()
    runtime.rescue()
    watch.on_hang(watch.sentence)
    assert "has died" in folder.read_json("summary.json")["error"]
    assert folder.read_json("summary.json")["status"] == "failed"
    watch.close()


class _Anywhere:
    quarantined = MappingProxyType({})

    def options(self, *_):
        return {}


def test_processes_of_a_cluster_are_known_by_their_mark(tmp_path, monkeypatch):
    monkeypatch.setenv(cluster.MARK, str(tmp_path))
    with subprocess.Popen(SLEEP) as mine:
        monkeypatch.setenv(cluster.MARK, "another")
        with subprocess.Popen(SLEEP) as other:
            assert [process.pid for process in cluster.marked(tmp_path)] == [mine.pid]
            other.kill()
        mine.kill()


def test_a_distant_server_may_be_away_for_a_moment_and_is_lost_after_that():
    now = [0.0]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = DistantServer("the GCS of the cluster's head", "127.0.0.1", port, lambda: now[0])
        assert server() == ""
        now[0] = 100.0
        assert server() == ""
    now[0] += server_watch.SERVER_SILENT_S - 1
    assert server() == ""
    with socket.create_server(("127.0.0.1", port)):
        assert server() == "", "it was started again"
    now[0] += 3600  # this process stood still
    assert server() == server() == "", "the first looks that failed"
    now[0] += server_watch.SERVER_SILENT_S + 1
    assert server() == (
        f"the GCS of the cluster's head at 127.0.0.1:{port} has not answered for 13 s "
        "(Connection refused), and the run's roles are lost with it"
    )
