"""Gateway, client, inference server and shard are killed in random order while clients play
``toy:counting``: no row that was called stored is lost, none is there twice, none is wrong.
"""

import contextlib
import os
import random
import signal
import socket
import threading
import time

import numpy as np
import pytest

from tests.fakes import check_counting_rows
from tests.integration.running import PATIENCE, launched, read_journals
from tests.ports import free_port
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import decode_rows, notes_of
from worldloom.envs.toy import CountingEnv
from worldloom_client import connect

VICTIMS = ("Gateway", "Client", "Inference", "Shard")
WORDS = (
    "--preset debug --env toy:counting --workers 0 --inference central --env-steps 10000000 "
    "--eval-episodes 0 --eval-every 0 --train-ratio 1 --agent.num-samples 8 --agent.num-elites 2 "
    "--agent.iterations 1 --agent.prefill-agent-steps 50 --agent.batch-size 8 "
    "--learner.report-every-steps 0 --actors.max-restarts 1000 --metrics-port 0"
).split()
ANSWER_WITHIN_S = 30.0


class Client:
    """Plays in a thread until it is told to end, or to die without a word."""

    def __init__(self, *ports: int) -> None:
        self._address = ",".join(f"127.0.0.1:{port}" for port in ports)
        self._is_over = threading.Event()
        self._dies = False
        self.steps = 0
        self.streams: list[tuple[int, int]] = []
        self.stored = 0
        self.longest_s = 0.0
        self.error = ""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._play()
        except Exception as error:  # told by the test
            self.error = repr(error)

    def _play(self) -> None:
        session = connect(self._address, timeout_s=120 * PATIENCE)
        env = CountingEnv()
        obs, reward, terminated, truncated = env.reset(seed=0)[0], 0.0, False, False
        while not self._is_over.is_set():
            began = time.monotonic()
            action = session.act(obs, reward, terminated=terminated, truncated=truncated)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.steps += 1
            self.streams = session.streams
            self.stored = session.stored[0]
            if terminated or truncated:
                obs, reward, terminated, truncated = env.reset()[0], 0.0, False, False
            else:
                obs, reward, terminated, truncated, _ = env.step(action)
        if not self._dies:  # else it leaves without a word
            session.close()
            self.stored = session.stored[0]

    def end(self, *, dies: bool = False) -> None:
        self._dies = dies
        self._is_over.set()
        self._thread.join(150 * PATIENCE)
        assert not self._thread.is_alive()
        assert not self.error, self.error


def rows_of_client(client: Client, journals, columns) -> dict[str, np.ndarray]:
    """Its rows by the client's own steps: each must be there once, from the first one on."""
    parts = []
    for stream, chunks in journals.items():
        if stream[:2] in client.streams:
            for stored in chunks:
                first = notes_of(stored.chunk.payload)["first_step"]
                parts.append((first, decode_rows(stored.chunk.payload, columns)))
    parts.sort(key=lambda part: part[0])
    expected = 0
    for first, rows in parts:
        assert first == expected, f"step {first} comes after step {expected - 1}"
        expected += len(rows["reward"])
    assert expected >= client.stored, "rows that were called stored are lost"
    return {name: np.concatenate([rows[name] for _, rows in parts]) for name in columns}


def check(client: Client, journals) -> int:
    """Whatever broke off counts as truncated; everything else is as the env counts it."""
    spec = {
        "obs": ArraySpec((3,)),
        "action": ArraySpec((2,)),
        "reward": ArraySpec(()),
        **dict.fromkeys(("is_first", "terminated", "truncated"), ArraySpec((), "bool")),
    }
    rows = rows_of_client(client, journals, spec)
    length = np.array(CountingEnv.LENGTHS)[rows["obs"][:, 0].astype(int) % 5]
    rows["truncated"] &= rows["obs"][:, 1] == length
    check_counting_rows(rows)
    return len(rows["reward"])


def play_rounds(folder, rounds: int, seed: int) -> None:
    port = free_port()
    rng = random.Random(seed)
    order = [VICTIMS[i % len(VICTIMS)] for i in range(rounds)]
    rng.shuffle(order)
    clients = []
    with launched(folder, *WORDS, "--gateway-port", str(port), "--run-dir", str(folder)) as run:
        clients.append(Client(port))
        for victim in order:
            client = clients[-1]
            before = client.steps
            run.wait_until(
                lambda client=client, before=before: client.steps > before + 20 or client.error, 90
            )
            assert not client.error, client.error
            if victim == "Client":
                client.end(dies=True)
                clients.append(Client(port))
                continue
            for pid in run.wait_until(lambda victim=victim: run.pids(f"ray::{victim}Role"), 90):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        client = clients[-1]
        before = client.steps
        run.wait_until(lambda: client.steps > before + 20 or client.error, 90)
        client.end()
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.finish() == 0
        summary = run.summary()
    journals = read_journals(folder)
    total = sum(check(client, journals) for client in clients)
    assert total == sum(s.chunk.num_rows for chunks in journals.values() for s in chunks)
    assert summary["rows"]["inserted"] == total
    assert summary["rows"]["lost_acked"] == 0


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.timeout(300 * PATIENCE)
def test_clients_survive_the_death_of_everything_between_them_and_replay(tmp_path) -> None:
    play_rounds(tmp_path / "run", 4, 0)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.timeout(300 * PATIENCE)
def test_a_client_goes_on_at_the_other_of_two_gateways_that_decide_themselves(tmp_path) -> None:
    folder = tmp_path / "run"
    port = next(port for port in iter(free_port, None) if _is_free(port + 1))
    words = [word if word != "central" else "local" for word in WORDS]
    words += ["--gateway-port", str(port), "--gateways", "2", "--run-dir", str(folder)]
    with launched(folder, *words) as run:
        client = Client(port, port + 1)
        run.wait_until(lambda: client.steps > 100 or client.error, 90)
        for _ in range(2):
            before = len(client.streams)
            for pid in run.wait_until(lambda: run.pids("ray::GatewayRole"), 90)[:2]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                run.wait_until(lambda: client.error or client.steps, 90)
            run.wait_until(lambda before=before: len(client.streams) > before or client.error, 90)
        before = client.steps
        run.wait_until(lambda: client.steps > before + 50 or client.error, 90)
        client.end()
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.finish() == 0
        summary = run.summary()
    journals = read_journals(folder)
    assert check(client, journals) == summary["rows"]["inserted"]
    assert summary["gateway"]["rows"] > 0
    assert summary["inference"]["where"] == "local"


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        return True
    return False


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.timeout(3600 * PATIENCE)
def test_clients_survive_a_hundred_deaths(tmp_path) -> None:
    play_rounds(tmp_path / "run", 100, 1)
