"""A run over three machines of which any is cut off, in one direction or both, for long and for
short, or reached late, out of order or with losses; what its journals and its summary say in the
end is true.

Events come from a seed, which is printed: ``WORLDLOOM_NEMESES=100`` plays the seeds 0 to 99,
``WORLDLOOM_NEMESES=17:18`` plays 17 again. The machines are network namespaces
(``tests/chaos/network_keeper.py``): the first has Ray's head, the driver and the coordinator, the
second the learner, the third the replay shards; workers are on all of them.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from tests.chaos.network import STORE_BYTES, SYSTEM, Network, schedule_of, why_not
from tests.integration.running import (
    MARK,
    PATIENCE,
    check_counting,
    kill_marked,
    marked,
    read_journals,
    rows_of,
)
from tests.waiting import wait_until
from worldloom.core.specs import EnvSpec
from worldloom_dist.run.cli import read_config
from worldloom_dist.run.plan import resolve

WHY_NOT = why_not()
pytestmark = [pytest.mark.chaos, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
NODES = ("head", "a", "b")
RESOURCES = {"head": {}, "a": {"worldloom_learner": 1}, "b": {"worldloom_replay": 1}}
NUM_EVENTS = 4
RAY = "from ray.scripts.scripts import main; main()"
WORDS = (
    "--preset debug --env toy:counting --eval-episodes 0 --env-steps 10000000 --train-ratio 2 "
    "--workers 4 --inference central --metrics-port 0 --actors.max-restarts 1000 "
    "--learner.checkpoint-every-s 5"
)


def seeds() -> range:
    first, _, last = os.environ.get("WORLDLOOM_NEMESES", "1").rpartition(":")
    return range(int(first or 0), int(last))


def test_a_schedule_is_the_same_for_the_same_seed_and_leaves_no_machine_out():
    schedules = [schedule_of(seed, NODES, NUM_EVENTS) for seed in range(100)]
    assert schedules == [schedule_of(seed, NODES, NUM_EVENTS) for seed in range(100)]
    what = {event.what for schedule in schedules for event in schedule}
    assert {f"{node} is cut off" for node in NODES} <= what
    assert {f"{node} hears and is not heard" for node in NODES} <= what
    assert {f"{node} is heard and hears nothing" for node in NODES} <= what
    assert {"frames are lost", "frames are late and out of order"} <= what
    seconds = [event.seconds for schedule in schedules for event in schedule]
    assert min(seconds) < 8 < max(seconds), "for less and for more than a machine is given up after"


ECHO = """
import socket, sys, time
me, peer, log = sys.argv[1:]
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.bind((me, 7))
line.settimeout(0.01)
number = 0
with open(log, "a", buffering=1) as file:
    while True:
        line.sendto(b"%d" % number, (peer, 7))
        number += 1
        try:
            end = time.monotonic() + 0.01
            while time.monotonic() < end:
                file.write(line.recv(100).decode() + "\\n")
        except OSError:
            pass
"""


def test_links_are_cut_one_way_delay_reorder_and_lose_and_end_with_their_keeper(tmp_path):
    mark = uuid.uuid4().hex
    env = {**os.environ, MARK: mark}
    logs = {name: tmp_path / name for name in ("x", "y")}

    def heard(name: str) -> list[int]:
        return [int(word) for word in logs[name].read_text().split()]

    def hears(name: str) -> bool:
        before = len(heard(name))
        try:
            wait_until(lambda: len(heard(name)) > before + 3, 3.0)
        except TimeoutError:
            return False
        return True

    with Network(1, "x", "y") as network:
        script = tmp_path / "echo.py"
        script.write_text(ECHO)
        for name, peer in (("x", "y"), ("y", "x")):
            logs[name].touch()
            words = [sys.executable, str(script), network.address(name), network.address(peer)]
            network.start(name, [*words, str(logs[name])], env, tmp_path / "out")
        wait_until(lambda: heard("x") and heard("y"), 20)
        network.link("x", "y", cut=True)
        time.sleep(0.05)  # what was on its way arrives
        before = len(heard("y"))
        assert hears("x"), "from y to x nothing is cut"
        assert len(heard("y")) == before
        network.heal()
        assert hears("y")
        network.link("x", "y", loss=0.5)
        from_here = len(heard("y"))
        wait_until(lambda: len(heard("y")) > from_here + 30)
        lossy = heard("y")[from_here + 3 :]
        assert lossy[-1] - lossy[0] >= len(lossy) * 1.3
        network.link("x", "y", delay_s=0.05, jitter_s=0.2)
        from_here = len(heard("y"))
        wait_until(lambda: len(heard("y")) > from_here + 30)
        late = heard("y")[from_here:]
        assert late != sorted(late), "late ones are overtaken"
    wait_until(lambda: not marked(mark))


def test_what_runs_on_the_network_ends_when_its_test_is_killed(tmp_path):
    mark = uuid.uuid4().hex
    code = (
        "import os, sys, time\nfrom tests.chaos.network import Network\n"
        "network = Network(1, 'x', 'y')\n"
        "network.start('x', ['sleep', '600'], dict(os.environ), sys.argv[1])\n"
        "print('up', flush=True)\ntime.sleep(600)\n"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with killed:
        assert killed.stdout.readline() == "up\n"
        assert len(marked(mark)) >= 3
        killed.kill()
    wait_until(lambda: not marked(mark))


class Cluster:
    """Ray on the three machines, and a run on it."""

    def __init__(self, network: Network, folder: Path, mark: str, place: Path) -> None:
        self.network = network
        self.folder = folder
        self.output = folder.parent / "driver.out"
        self._logs = folder.parent
        self._place = place
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            MARK: mark,
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._nodes = {node: self._start(node) for node in NODES}
        words = [sys.executable, "-m", "worldloom_dist.launch", *WORDS.split()]
        words += ["--run-dir", str(folder), "--address", f"{network.address('head')}:6379"]
        words += ["--placement.wait-s", "120"]
        self.wait_until(self._has_answered, 90)
        self.driver = network.start("head", words, self._env, self.output)

    def _start(self, node: str) -> int:
        mine = self.network.address(node)
        words = [sys.executable, "-c", RAY, "start", "--block"]
        words += ["--node-ip-address", mine, "--num-cpus", "3", "--disable-usage-stats"]
        words += ["--object-store-memory", str(STORE_BYTES)]
        words += ["--resources", json.dumps(RESOURCES[node])]
        if node == "head":
            words += ["--head", "--port", "6379", "--include-dashboard", "false"]
            words += ["--temp-dir", str(self._place), "--system-config", json.dumps(SYSTEM)]
        else:
            words += ["--address", f"{self.network.address('head')}:6379"]
        return self.network.start(node, words, self._env, self._logs / f"{node}.out")

    def _has_answered(self) -> bool:
        return "Ray runtime started" in (self._logs / "head.out").read_text()

    def revive(self) -> None:
        """A machine whose Ray has ended starts it again, as a supervisor of machines does."""
        for node in ("a", "b"):
            if self.network.status(self._nodes[node]) is not None:
                self._nodes[node] = self._start(node)
        assert self.network.status(self._nodes["head"]) is None, "the head's Ray has ended"

    def summary(self) -> dict:
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def wait_until(self, condition, timeout_s: float) -> None:
        give_up = time.monotonic() + timeout_s * PATIENCE
        while not condition():
            assert time.monotonic() < give_up, f"{timeout_s} s in vain: {self.tail()}"
            time.sleep(0.3)

    def goes_on(self, timeout_s: float) -> None:
        """Wait until it has made env steps and updates beyond those of now."""
        before = self.summary()

        def further() -> bool:
            self.revive()
            assert self.network.status(self.driver) is None, self.tail()
            now = self.summary()
            return all(
                now.get(key, 0) > before.get(key, 0) + 10 for key in ("env_steps", "train_steps")
            )

        self.wait_until(further, timeout_s)

    def tail(self) -> str:
        found = [self.output, *self._logs.glob("*.out")]
        return "\n".join(path.read_text()[-3000:] for path in found if path.exists())


def check(folder: Path, summary: dict) -> None:
    """What holds whatever happened: no acknowledged row is missing, doubled or in another place,
    the counters add up, the train ratio is in its band, and versions never fall.
    """
    env = EnvSpec.from_dict(json.loads((folder / "config.json").read_text())["env"])
    streams = read_journals(folder)
    decisions = [check_counting(rows_of(chunks, env)) for chunks in streams.values()]
    for stream, chunks in streams.items():
        versions = [stored.chunk.version for stored in chunks]
        assert versions == sorted(versions), f"{stream} was acted in by older weights again"
    newest = max(stored.chunk.version for chunks in streams.values() for stored in chunks)
    assert newest <= tuple(map(int, summary["policy_version"].split(".")))
    rows = summary["rows"]
    assert sum(decisions) == summary["agent_steps"]
    assert rows["lost_acked"] == 0
    assert rows["inserted"] == rows["stored"] + rows["evicted"] + rows["lost_acked"]
    limits = resolve(read_config(folder)).limits
    steps = summary["agent_steps"] - limits.prefill_agent_steps
    owed = limits.train_ratio * steps + limits.pretrain_positions - summary["replayed_steps"]
    assert owed >= -limits.slack_sample, "no more was trained than the band lets"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("env_steps", "agent_steps"):
        values = [record[name] for record in records if name in record]
        assert values == sorted(values), name
    words = [sys.executable, "-m", "worldloom_dist.replay", "verify", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(900 * PATIENCE)
@pytest.mark.parametrize("seed", seeds())
def test_whatever_the_network_does_what_a_run_says_in_the_end_is_true(seed, tmp_path):
    folder = tmp_path / "run"
    mark = uuid.uuid4().hex
    place = Path(tempfile.mkdtemp(prefix="nw", dir="/tmp"))  # sockets want a short path
    try:
        with Network(seed, *NODES) as network:
            run = Cluster(network, folder, mark, place)
            run.goes_on(240)
            for event in schedule_of(seed, NODES, NUM_EVENTS):
                print(f"seed {seed}: {event}, at {run.summary().get('env_steps')} env steps")
                for source, target in event.links:
                    network.link(source, target, **event.how)
                time.sleep(event.seconds)
                network.heal()
                run.revive()
                time.sleep(event.rest_s)
            run.goes_on(240)
            network.send_signal(run.driver, signal.SIGINT)
            run.wait_until(lambda: network.status(run.driver) is not None, 120)
            assert network.status(run.driver) == 0, run.tail()
            summary = run.summary()
        print(f"seed {seed}: {summary['env_steps']} env steps, restarts {summary['restarts']}")
        assert summary["status"] == "stopped"
        check(folder, summary)
    finally:
        kill_marked(mark)
        shutil.rmtree(place, ignore_errors=True)
