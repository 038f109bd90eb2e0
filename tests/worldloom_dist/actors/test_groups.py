import logging
from collections.abc import Callable

import numpy as np
import pytest

from tests.fakes import FakeMetricSink, FakePolicy, FakeReplayWriter, check_counting_rows
from tests.worldloom_dist.mortal_envs import MortalEnv
from worldloom.core.exceptions import ConfigurationError, EnvFailureError, StateError
from worldloom.core.sequence import StreamId
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import env_spec, make_env
from worldloom_dist.actors.acting import ActReply, ActRequest, RemoteActing
from worldloom_dist.actors.groups import GroupedWorker
from worldloom_dist.actors.inference import InferenceServer
from worldloom_dist.actors.rollout_worker import RolloutWorker

CONFIG = EnvConfig(env="toy:counting")


class SlowLine:
    """A server that is asked now and answers when waited for; notes in which order that happens."""

    def __init__(self) -> None:
        self.server = InferenceServer(FakePolicy(env_spec(CONFIG)), explore=False)
        self.events: list[str] = []

    def submit(self, request: ActRequest) -> Callable[[], ActReply]:
        group = "a" if request.envs[0] == 0 else "b"
        self.events.append(f"ask {group}")

        def wait() -> ActReply:
            self.events.append(f"wait {group}")
            return self.server.act_batch([request])[0]

        return wait

    def call(self, request: ActRequest) -> ActReply:
        raise AssertionError("submit must be used")


def make(sink: FakeReplayWriter, line: SlowLine, groups: int = 2) -> GroupedWorker:
    return GroupedWorker(
        [
            RolloutWorker(
                0,
                0,
                env=lambda: make_env(CONFIG, num_envs=2, seed=0),
                writer=sink,
                columns=sink.columns,
                seed=0,
                chunk_rows=4,
                acting=RemoteActing(0, 0, line.call, submit=line.submit, first_env=first),
                random_prefill=False,
                first_env=first,
            )
            for first in range(0, 2 * groups, 2)
        ]
    )


def test_next_groups_request_is_on_its_way_while_a_group_steps() -> None:
    line = SlowLine()
    worker = make(FakeReplayWriter(env_spec(CONFIG).columns()), line)
    for _ in range(4):
        worker.step()
    assert line.events == [
        "ask a",
        "ask b",
        "wait a",
        "ask a",
        "wait b",
        "ask b",
        "wait a",
        "ask a",
        "wait b",
    ]


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_store_every_row_of_streams_of_their_own(groups: int) -> None:
    sink = FakeReplayWriter(env_spec(CONFIG).columns())
    hub = FakeMetricSink()
    worker = make(sink, SlowLine(), groups)
    written = sum(worker.step() for _ in range(30 * groups))
    hub.emit("actor", 0, worker.drain_metrics())
    worker.close()
    assert (worker.num_envs, worker.open_rows, worker.quarantined) == (2 * groups, 0, {})
    assert set(sink.chunks) == {StreamId(0, 0, env) for env in range(2 * groups)}
    assert sink.num_rows == written == 60 * groups
    firsts = 0
    for stream in sink.chunks:
        rows = sink.rows(stream)
        check_counting_rows(rows)
        firsts += int(np.count_nonzero(rows["is_first"]))
    assert worker.agent_steps == worker.env_steps == written - firsts
    assert hub.values["actor", 0]["agent_steps_total"].value == worker.agent_steps
    assert len(worker.drain_episodes()) > 2 * groups


def mortal_group(
    sink: FakeReplayWriter,
    line: SlowLine,
    first: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    dies: bool,
) -> RolloutWorker:
    config = EnvConfig(env="tests.worldloom_dist.mortal_envs:MortalEnv")
    limits = EnvLimits(max_failures=1)
    monkeypatch.setattr(MortalEnv, "healthy", 0 if dies else 100)
    return RolloutWorker(
        0,
        0,
        env=lambda: make_env(config, num_envs=1, seed=0, limits=limits),
        writer=sink,
        columns=sink.columns,
        seed=0,
        acting=RemoteActing(0, 0, line.call, submit=line.submit, first_env=first),
        random_prefill=False,
        first_env=first,
    )


@pytest.mark.parametrize("steps", [-1, 0, 2, 30])
def test_group_whose_envs_are_dead_is_retired_and_the_others_go_on(
    steps: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = FakeReplayWriter(env_spec(CONFIG).columns())
    line = SlowLine()
    monkeypatch.setattr(MortalEnv, "STEPS", steps)
    worker = GroupedWorker(
        [mortal_group(sink, line, first, monkeypatch, dies=first == 1) for first in range(3)]
    )
    with caplog.at_level(logging.WARNING):
        written = sum(worker.step() for _ in range(300))
    assert list(worker.quarantined) == [1]
    assert worker.quarantined[1].startswith("raised: RuntimeError: broken on purpose (")
    assert "envs 1 to 1 are given up, the others go on: no env is left of 1" in caplog.text
    assert worker.groups[1].open_rows == 0, "what it had open was sent"
    worker.close()
    rows = {stream.env: sink.rows(stream) for stream in sink.chunks}
    for stored in rows.values():
        check_counting_rows(stored)
    assert sum(len(stored["reward"]) for stored in rows.values()) == written
    assert min(len(rows[env]["reward"]) for env in (0, 2)) > 100
    assert (int(np.count_nonzero(~rows[1]["is_first"])) if 1 in rows else -1) == steps


def test_worker_whose_groups_are_all_dead_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = FakeReplayWriter(env_spec(CONFIG).columns())
    line = SlowLine()
    worker = GroupedWorker(
        [mortal_group(sink, line, first, monkeypatch, dies=True) for first in range(2)]
    )
    with pytest.raises(EnvFailureError, match="no env is left of 1"):
        sum(worker.step() for _ in range(300))
    assert set(worker.quarantined) == {0, 1}
    assert worker.open_rows == 0


def test_worker_that_waits_for_actions_cannot_be_saved() -> None:
    worker = make(FakeReplayWriter(env_spec(CONFIG).columns()), SlowLine()).groups[0]
    worker.begin()
    with pytest.raises(StateError, match="step it first"):
        worker.checkpoint()
    worker.step()
    worker.checkpoint()


def test_grouped_worker_needs_a_group() -> None:
    with pytest.raises(ConfigurationError, match="at least one group"):
        GroupedWorker([])
