"""A lock-step run with a gateway: clients' rows are stored, trained and found again."""

import contextlib
import threading

import numpy as np
import pytest

from tests.fakes import check_counting_rows
from tests.ports import free_port
from tests.worldloom_client.test_session import play
from tests.worldloom_dist.small_runs import SMALL, start
from worldloom.data.codec import decode_rows
from worldloom_client import UnavailableError, connect
from worldloom_dist.replay.direct import DirectReplay
from worldloom_dist.run.checks import without_effect
from worldloom_dist.run.cli import UsageError, parse
from worldloom_dist.run.folder import RunFolder


def drive_in_thread(port, steps, **settings):
    """A client that plays ``toy:counting``; returns its thread and what became of it."""
    found = {}

    def work() -> None:
        with connect(f"127.0.0.1:{port}", **settings) as session:
            play(session, steps)
        found["stored"] = session.stored
        found["version"] = session.version

    thread = threading.Thread(target=work)
    thread.start()
    return thread, found


def complete_with(run, client) -> None:
    """Let the run complete while a client plays in a thread of its own, from the run's start."""
    thread = threading.Thread(target=client)
    begin = run.runtime.start

    def start_and_drive() -> None:
        begin()
        thread.start()

    run.runtime.start = start_and_drive
    assert run.run() == "completed"
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), OverflowError("odd")])
def test_rows_that_cannot_be_stored_do_not_end_the_run(tmp_path, monkeypatch, failure) -> None:
    port = free_port()
    words = ["--env", "toy:counting", "--workers", "0", "--env-steps", "60"]
    run = start(tmp_path, *words, "--gateway-port", str(port))
    original = DirectReplay.append
    failures = [failure]

    def append(self, *args):
        if failures:
            raise failures.pop()
        return original(self, *args)

    monkeypatch.setattr(DirectReplay, "append", append)

    def client() -> None:
        with (
            contextlib.suppress(UnavailableError),
            connect(f"127.0.0.1:{port}", timeout_s=10) as session,
        ):
            play(session, 100_000)  # until the run ends

    complete_with(run, client)
    assert not failures


@pytest.mark.parametrize("workers", ["0", "1"])
def test_clients_feed_a_run_beside_its_workers_or_alone(tmp_path, workers) -> None:
    port = free_port()
    words = ["--env", "toy:counting", "--workers", workers, "--env-steps", "120"]
    run = start(tmp_path, *words, "--gateway-port", str(port))
    ended = []

    def client() -> None:
        try:
            with connect(f"127.0.0.1:{port}", timeout_s=10, client="robot") as session:
                play(session, 100_000)
        except UnavailableError as error:
            ended.append(str(error))
        except Exception as error:
            ended.append(repr(error))

    complete_with(run, client)
    summary = RunFolder(tmp_path).read_json("summary.json")
    assert summary["gateway"]["rows"] > (100 if workers == "0" else 5)
    assert summary["gateway"]["questions"] >= summary["gateway"]["rows"]
    assert summary["rows"]["inserted"] >= 120
    assert summary["train_steps"] > 0
    assert ended


def test_a_client_acts_at_random_first_and_with_the_policy_then(tmp_path, monkeypatch) -> None:
    port = free_port()
    words = ["--env", "toy:counting", "--workers", "0", "--env-steps", "200"]
    run = start(tmp_path, *words, "--gateway-port", str(port))
    run.begin()
    kept = []
    replay = run.runtime.replay
    store = replay.append

    def keep(chunk):
        kept.append(chunk)
        return store(chunk)

    monkeypatch.setattr(replay, "append", keep)
    thread, found = drive_in_thread(port, 120, client="robot")
    while thread.is_alive():
        run.turn()
    assert found["stored"] == [120]
    assert found["version"][1] > 0
    parts = [decode_rows(chunk.payload, run.runtime.replay.shards[0].columns) for chunk in kept]
    flat = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert len(flat["reward"]) == 120
    flat["truncated"][-1] = flat["terminated"][-1] = False
    check_counting_rows({name: value[:119] for name, value in flat.items()})
    run.runtime.close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workers", "0"], "workers must be an integer in"),
        (["--gateway-port", "0"], "gateway_port must be"),
        (["--gateway-port", "5000", "--gateways", "2"], "gateways must be 1 with --runtime local"),
        (["--gateway-port", "5000", "--gateway.lease-s", "0"], "gateway.lease_s must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(words, says) -> None:
    with pytest.raises(UsageError, match=says):
        parse([*SMALL, *words])


def test_flags_without_effect_are_said() -> None:
    config = parse([*SMALL, "--gateways", "1", "--gateway.lease-s", "5"])
    assert ("--gateway.*", "without --gateway-port") in without_effect(config)
