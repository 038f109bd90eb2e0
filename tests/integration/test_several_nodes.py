"""A run over three nodes, of which one is cut off and another one comes."""

import json
import os
import re
import signal
import urllib.request
import uuid

import pytest

from tests.integration.cluster_nodes import Nodes
from tests.integration.running import (
    MARK,
    check_counting,
    kill_marked,
    launched,
    read_journals,
    rows_of,
)
from tests.ports import free_port
from worldloom.core.specs import EnvSpec

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def nodes():
    mark = uuid.uuid4().hex
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        MARK: mark,
        "OMP_NUM_THREADS": "1",
    }
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    try:
        with Nodes(environment, cpus=3) as running:
            running.mark = mark
            yield running
    finally:
        kill_marked(mark)


def alive_workers(port: int) -> int:
    try:
        text = (
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        )
    except OSError:
        return 0
    found = re.search(r'^worldloom_workers\{.*state="alive".*\} ([\d.]+)$', text, re.MULTILINE)
    return int(float(found[1])) if found else 0


def test_a_run_loses_a_node_and_gets_another_one_and_no_acknowledged_row_is_lost(nodes, tmp_path):
    nodes.add("a", 3)
    nodes.add("b", 3)
    folder = tmp_path / "run"
    port = free_port()
    words = [
        "--preset",
        "debug",
        "--env",
        "toy:counting",
        "--eval-episodes",
        "0",
        "--env-steps",
        "10000000",
        "--train-ratio",
        "2",
    ]
    words += [
        "--workers",
        "6",
        "--inference",
        "central",
        "--run-dir",
        str(folder),
        "--metrics-port",
        str(port),
    ]
    with launched(
        folder, *words, "--address", nodes.address, env={"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    ) as run:
        run.wait_until(lambda: alive_workers(port) == 6, 300)
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 20, 200)
        nodes.remove("a")
        run.wait_until(lambda: run.summary()["restarts"].get("worker", 0) >= 1, 200)
        before = run.journal_bytes()
        run.wait_until(lambda: run.journal_bytes() > before + 2000, 200)
        nodes.add("c", 3)
        run.wait_until(lambda: alive_workers(port) == 6, 300)
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
    assert summary["status"] == "stopped"
    assert summary["rows"]["lost_acked"] == 0
    env = EnvSpec.from_dict(json.loads((folder / "config.json").read_text())["env"])
    decisions = [check_counting(rows_of(chunks, env)) for chunks in read_journals(folder).values()]
    assert sum(decisions) == summary["agent_steps"]


def test_a_cluster_that_is_too_small_is_refused_before_anything_starts(nodes, tmp_path):
    words = [
        "--preset",
        "debug",
        "--workers",
        "64",
        "--run-dir",
        str(tmp_path / "run"),
        "--address",
        nodes.address,
    ]
    with launched(tmp_path / "run", *words, env={"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}) as run:
        assert run.finish() == 2
        assert "its 1 nodes have 3 CPUs (3), with room for" in run.output.read_text()
