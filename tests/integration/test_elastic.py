"""A cluster that grows and shrinks, and a machine that is taken away, under a run that follows."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import PATIENCE, check_counting, launched, read_journals, rows_of
from worldloom.core.specs import EnvSpec

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(400 * PATIENCE),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with 4 CPUs, to which this process is connected."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False}
    )
    ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()


def drain(address: str, node_id: str) -> None:
    """Announce that a node will go, as an autoscaler does that was told of a spot machine's end."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address]
    command += ["--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "spot", "--deadline-remaining-seconds", "600"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def workers() -> dict[str, Any]:
    """Living workers by name."""
    import ray

    named = [
        actor
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith("worker-")
    ]
    return {actor["name"]: actor["namespace"] for actor in named}


def answers() -> dict[str, dict[str, Any]]:
    """What the workers that are up say of themselves, by name."""
    import ray

    found = {}
    for name, namespace in workers().items():
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            found[name] = ray.get(
                ray.get_actor(name, namespace=namespace).ping.remote(), timeout=2.0
            )
    return found


def test_workers_follow_the_cluster_and_a_preempted_one_loses_nothing(
    cluster: Any, tmp_path: Path
) -> None:
    import ray

    folder = tmp_path / "run"
    words = [
        "--preset",
        "debug",
        "--env",
        "toy:counting",
        "--workers",
        "2",
        "--actors.elastic",
        "True",
        "--inference",
        "central",
    ]
    words += [
        "--address",
        cluster.address,
        "--placement.worker-cpus",
        "0.1",
        "--env-steps",
        "1000000",
        "--eval-episodes",
        "0",
    ]
    words += ["--train-ratio", "2", "--metrics-port", "0", "--run-dir", str(folder)]
    with launched(folder, *words) as run:
        run.wait_until(lambda: run.summary().get("train_steps", 0) > 0, 120)
        assert len(workers()) == 2
        name, namespace = next(iter(workers().items()))
        os.kill(
            ray.get(ray.get_actor(name, namespace=namespace).ping.remote())["pid"], signal.SIGTERM
        )
        run.wait_until(lambda: run.summary()["restarts"]["worker"] == 1)
        assert run.summary()["rows"]["lost_open"] == 0, "it sent what was open before it left"
        assert run.summary()["drained"]["workers"] == 1
        node = cluster.add_node(num_cpus=4)
        run.wait_until(lambda: len(workers()) == 4, 90)
        enough = 100  # some chunks of each have been acknowledged then, or it would wait
        run.wait_until(
            lambda: (
                len(found := answers()) == 4
                and all(one["steps"] > enough for one in found.values())
            ),
            90,
        )
        assert node.node_id in {one["node"] for one in answers().values()}
        there = sum(one["node"] == node.node_id for one in answers().values())
        drain(cluster.address, node.node_id)
        run.wait_until(lambda: run.summary()["drained"]["workers"] == 1 + there, 90)
        assert run.summary()["rows"]["lost_open"] == 0, "they sent what was open before they left"
        cluster.remove_node(node, allow_graceful=False)
        run.wait_until(lambda: len(workers()) == 2, 90)
        before = run.journal_bytes()
        run.wait_until(lambda: run.journal_bytes() > before + 2000)
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.output.read_text()
        summary = run.summary()
    env = EnvSpec.from_dict(json.loads((folder / "config.json").read_text())["env"])
    streams = read_journals(folder)
    assert (
        sum(check_counting(rows_of(chunks, env)) for chunks in streams.values())
        == summary["agent_steps"]
    )
    assert {stream.slot for stream in streams} >= {0, 1, 2, 3}, "the added workers stored rows"
    assert len({stream for stream in streams if stream.slot < 2}) >= 3, (
        "the preempted worker came back as another stream"
    )
    assert summary["status"] == "stopped"
