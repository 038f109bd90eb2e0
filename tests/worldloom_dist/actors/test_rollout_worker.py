import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import (
    FakeMetricSink,
    FakePolicy,
    FakeReplayWriter,
    FakeWeights,
    check_counting_rows,
    snapshot_of,
)
from worldloom.core.exceptions import EnvFailureError, TrainingError
from worldloom.core.sequence import NO_POLICY, Chunk, PolicyVersion, StreamId
from worldloom.core.specs import ArraySpec
from worldloom.data.codec import carry_resets_of
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import env_spec, make_env
from worldloom.envs.local import LocalVectorEnv
from worldloom.envs.supervised import SupervisedVectorEnv
from worldloom.envs.toy import CountingEnv
from worldloom.envs.wrappers import EnvAdapter, RawEnv
from worldloom_dist.actors.acting import LocalActing, RemoteActing
from worldloom_dist.actors.inference import InferenceServer
from worldloom_dist.actors.rollout_worker import RolloutWorker

EXTRAS = {"latent": ArraySpec((2,), "float32")}
MODES = ("next_step", "same_step", "disabled", "same_step_dict", "single")
COUNTING = ["toy:counting", *(f"counting_vectors:{mode}" for mode in MODES)]


@pytest.fixture(autouse=True)
def _own_envs_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def make_worker(
    sink: FakeReplayWriter,
    env: str = "toy:counting",
    *,
    num_envs: int = 3,
    weights: FakeWeights | None = None,
    **settings: Any,
) -> RolloutWorker:
    config = EnvConfig(env=env)
    policy = FakePolicy(env_spec(EnvConfig(env="toy:counting")), EXTRAS)
    settings.setdefault("acting", LocalActing(policy, num_envs, weights, pull_interval_s=0.0))
    return RolloutWorker(
        settings.pop("slot", 2),
        7,
        env=lambda: make_env(config, num_envs=num_envs, seed=0),
        writer=settings.pop("writer", sink),
        columns=sink.columns,
        seed=11,
        **{"chunk_rows": 4, "random_prefill": False, **settings},
    )


def counting_sink() -> FakeReplayWriter:
    return FakeReplayWriter(env_spec(EnvConfig(env="toy:counting")).columns(EXTRAS))


@pytest.mark.parametrize("random_prefill", [True, False])
@pytest.mark.parametrize("env", COUNTING)
def test_no_row_is_lost_doubled_or_shifted(env: str, random_prefill: bool) -> None:
    sink = counting_sink()
    worker = make_worker(sink, env, random_prefill=random_prefill)
    written = sum(worker.step() for _ in range(120))
    assert worker.open_rows == written - sink.num_rows
    worker.close()
    assert (sink.num_rows, worker.rows, worker.open_rows) == (written, written, 0)
    assert set(sink.chunks) == {StreamId(2, 7, index) for index in range(3)}
    firsts = 0
    for stream in sink.chunks:
        rows = sink.rows(stream)
        check_counting_rows(rows)
        firsts += int(rows["is_first"].sum())
        if not random_prefill:
            assert rows["latent"][:, 0].tolist() == rows["obs"][:, 1].tolist()
    assert worker.agent_steps == worker.env_steps == written - firsts


def test_episodes_are_reported_once_with_their_end() -> None:
    sink = counting_sink()
    worker = make_worker(sink, num_envs=1)
    for _ in range(10):
        worker.step()
    facts = [episode.to_fact() for episode in worker.drain_episodes()]
    assert facts == [
        {"return": 15.0, "length": 5, "reason": "terminated"},
        {"return": 1.0, "length": 1, "reason": "truncated"},
    ]
    assert worker.drain_episodes() == []


def test_prefill_is_random_until_weights_arrive_and_then_the_policy_acts() -> None:
    sink = counting_sink()
    weights = FakeWeights()
    worker = make_worker(sink, num_envs=2, weights=weights, random_prefill=True)
    for _ in range(7):
        worker.step()
    weights.publish(snapshot_of(0.25, PolicyVersion(1, 1)))
    for _ in range(7):
        worker.step()
    worker.close()
    rows = sink.rows(StreamId(2, 7, 0))
    other = sink.rows(StreamId(2, 7, 1))
    versions = [
        chunk.version for chunk in sink.chunks[StreamId(2, 7, 0)] for _ in range(chunk.num_rows)
    ]
    assert versions == [NO_POLICY] * 7 + [PolicyVersion(1, 1)] * 7
    assert np.all(np.abs(rows["action"][7:] - 0.25) < 0.1)
    assert np.std(rows["action"][:7]) > 0.2
    assert not np.array_equal(rows["action"][:7], other["action"][:7])


def test_prefill_lasts_as_long_as_the_owner_says() -> None:
    sink = counting_sink()
    weights = FakeWeights()
    weights.publish(snapshot_of(0.5, PolicyVersion(1, 1)))
    allowed: list[bool] = [False, False, True]
    worker = make_worker(
        sink,
        num_envs=1,
        weights=weights,
        random_prefill=True,
        may_use_policy=lambda: allowed.pop(0),
    )
    for _ in range(6):
        worker.step()
    worker.close()
    chunks = sink.chunks[StreamId(2, 7, 0)]
    assert [chunk.version for chunk in chunks for _ in range(chunk.num_rows)] == [NO_POLICY] * 2 + [
        PolicyVersion(1, 1)
    ] * 4


def test_every_worker_changes_its_actions_when_the_weights_change() -> None:
    weights = FakeWeights()
    sinks = [counting_sink() for _ in range(3)]
    workers = [make_worker(sink, weights=weights, slot=slot) for slot, sink in enumerate(sinks)]
    for number, weight in enumerate((0.1, -0.6), start=1):
        weights.publish(snapshot_of(weight, PolicyVersion(1, number)))
        for worker in workers:
            for _ in range(4):
                worker.step()
            worker.flush()
    for slot, sink in enumerate(sinks):
        for env in range(3):
            action = sink.rows(StreamId(slot, 7, env))["action"][:, 0]
            assert np.all(np.abs(action[:4] - 0.1) < 0.06)
            assert np.all(np.abs(action[4:] + 0.6) < 0.06)


def test_failed_pull_keeps_the_old_weights_and_is_counted() -> None:
    sink = counting_sink()
    weights = FakeWeights()
    worker = make_worker(sink, num_envs=1, weights=weights)
    weights.publish(snapshot_of(0.1, PolicyVersion(1, 1)))
    worker.step()
    weights.publish(snapshot_of(0.9, PolicyVersion(1, 2)))
    weights.failures = [ConnectionError("store is away")]
    worker.step()
    worker.step()
    worker.close()
    chunks = sink.chunks[StreamId(2, 7, 0)]
    assert [chunk.version.update for chunk in chunks for _ in range(chunk.num_rows)] == [1, 1, 2]
    metrics = worker.drain_metrics()
    assert metrics["weights_pull_failures_total"].value == 1
    assert metrics["weights_pulled_total"].value == 2


def test_metrics_are_increments_that_the_table_knows() -> None:
    sink = counting_sink()
    hub = FakeMetricSink()
    worker = make_worker(sink)
    for _ in range(2):
        for _ in range(10):
            worker.step()
        hub.emit("worker", 2, worker.drain_metrics())
    values = hub.values["worker", 2]
    assert values["agent_steps_total"].value == worker.agent_steps
    assert values["env_steps_total"].value == worker.env_steps
    assert {
        f"actor_seconds_total{{state={state}}}"
        for state in ("env", "inference", "encode", "blocked")
    } <= set(values)


def test_failing_env_leaves_no_last_row_and_its_episode_ends_in_error() -> None:
    class FragileEnv(CountingEnv):
        failures = 1

        def step(self, action: np.ndarray) -> Any:
            if self._step == 2 and FragileEnv.failures:
                FragileEnv.failures -= 1
                raise RuntimeError("broken on purpose")
            return super().step(action)

    sink = counting_sink()
    config = EnvConfig(env="toy:counting").resolved()
    worker = make_worker(sink, num_envs=1)
    worker.env.close()
    worker.env = LocalVectorEnv(lambda: EnvAdapter(RawEnv(FragileEnv()), config), 1, 0)
    for _ in range(6):
        worker.step()
    worker.close()
    rows = sink.rows(StreamId(2, 7, 0))
    assert rows["obs"][:, :2].tolist() == [[0, 0], [0, 1], [0, 2], [0, 0], [0, 1], [0, 2]]
    assert rows["is_first"].tolist() == [True, False, False, True, False, False]
    assert not (rows["terminated"] | rows["truncated"]).any()
    assert [(e.reason, e.length, e.episode_return) for e in worker.drain_episodes()] == [
        ("error", 2, 3.0)
    ]
    assert worker.drain_metrics()["env_errors_total{reason=raised}"].value == 1


def test_policy_that_diverged_is_named_and_not_blamed_on_the_env() -> None:
    sink = counting_sink()
    weights = FakeWeights()
    weights.publish(snapshot_of(float("nan"), PolicyVersion(1, 3)))
    worker = make_worker(sink, weights=weights)
    with pytest.raises(
        TrainingError, match=r"policy of version 1.3 gave an action 'action' that is not finite"
    ):
        worker.step()
    assert worker.checkpoint(), "a run that fails by it keeps its envs as they are"


def test_env_in_quarantine_is_listed_and_the_others_go_on() -> None:
    class SickEnv(CountingEnv):
        built = 0

        def __init__(self) -> None:
            super().__init__()
            SickEnv.built += 1
            self.is_sick = SickEnv.built != 1

        def step(self, action: np.ndarray) -> Any:
            if self.is_sick:
                raise RuntimeError("broken on purpose")
            return super().step(action)

    sink = counting_sink()
    config = EnvConfig(env="toy:counting").resolved()
    worker = make_worker(sink, num_envs=2)
    limits = EnvLimits(max_failures=2, backoff_s=0.001)
    worker.env = LocalVectorEnv(lambda: EnvAdapter(RawEnv(SickEnv()), config), 2, 0, limits=limits)
    for _ in range(20):
        worker.step()
    worker.close()
    assert list(worker.quarantined) == [1]
    assert "broken on purpose" in worker.quarantined[1]
    check_counting_rows(sink.rows(StreamId(2, 7, 0)))
    assert len(sink.rows(StreamId(2, 7, 0))["reward"]) == 20
    assert sink.rows(StreamId(2, 7, 1))["is_first"].tolist() == [True, True]


def test_killed_env_process_costs_no_stored_row() -> None:
    sink = counting_sink()
    config = EnvConfig(env="toy:counting")
    worker = make_worker(sink, num_envs=3)
    supervised = make_env(config, num_envs=3, seed=0, processes=True)
    assert isinstance(supervised, SupervisedVectorEnv)
    worker.env = supervised
    written = sum(worker.step() for _ in range(9))
    os.kill(supervised.pids[1] or 0, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while (
        not worker.drain_metrics().get("env_errors_total{reason=died}") or None in supervised.pids
    ):
        assert time.monotonic() < deadline
        written += worker.step()
    while not sink.chunks[StreamId(2, 7, 1)] or sink.rows(StreamId(2, 7, 1))["is_first"].sum() < 4:
        assert time.monotonic() < deadline
        written += worker.step()
    worker.close()
    assert (sink.num_rows, worker.rows) == (written, written)
    for env in (0, 2):
        check_counting_rows(sink.rows(StreamId(2, 7, env)))
    killed = sink.rows(StreamId(2, 7, 1))
    cut = next(
        t
        for t in range(1, len(killed["reward"]))
        if killed["is_first"][t] and killed["obs"][t, 0] == 0
    )
    check_counting_rows({name: value[:cut] for name, value in killed.items()})
    check_counting_rows({name: value[cut:] for name, value in killed.items()})


def test_rows_are_sent_before_the_worker_gives_up() -> None:
    class DeadEnv(CountingEnv):
        def step(self, action: np.ndarray) -> Any:
            raise RuntimeError("broken on purpose")

    sink = counting_sink()
    config = EnvConfig(env="toy:counting").resolved()
    worker = make_worker(sink, num_envs=1)
    limits = EnvLimits(max_failures=2, backoff_s=0.001)
    worker.env = LocalVectorEnv(lambda: EnvAdapter(RawEnv(DeadEnv()), config), 1, 0, limits=limits)
    worker.step()
    with pytest.raises(EnvFailureError, match="no env is left"):
        worker.step()
    assert worker.open_rows == 0
    assert sink.num_rows == 2


class LaterWriter:
    """Acknowledges a chunk when it is waited for, and counts those on their way."""

    def __init__(self, sink: FakeReplayWriter) -> None:
        self.sink = sink
        self.on_their_way = 0
        self.most = 0

    def append(self, chunk: Chunk) -> Callable[[], None]:
        self.on_their_way += 1
        self.most = max(self.most, self.on_their_way)

        def wait() -> None:
            self.on_their_way -= 1
            self.sink.append(chunk)

        return wait


@pytest.mark.parametrize("end", [RolloutWorker.checkpoint, RolloutWorker.close])
def test_worker_that_ends_sends_every_stream_before_it_waits_and_leaves_nothing_on_its_way(
    end: Callable[[RolloutWorker], None],
) -> None:
    sink = counting_sink()
    later = LaterWriter(sink)
    worker = make_worker(sink, writer=later, chunk_rows=64)
    written = sum(worker.step() for _ in range(4))
    assert (sink.num_rows, worker.open_rows, later.most) == (0, written, 0)
    end(worker)
    assert (sink.num_rows, worker.open_rows, later.most, later.on_their_way) == (written, 0, 3, 0)


def test_rows_sent_in_the_background_are_those_of_a_writer_that_waits() -> None:
    blocking = counting_sink()
    background = counting_sink()
    for sink, writer in ((blocking, blocking), (background, LaterWriter(background))):
        worker = make_worker(sink, writer=writer)
        for _ in range(60):
            worker.step()
        worker.close()
    assert blocking.chunks == background.chunks


@pytest.mark.parametrize("env", ["toy:counting", "counting_vectors:next_step"])
@pytest.mark.parametrize("random_prefill", [True, False])
def test_restored_worker_goes_on_exactly(env: str, random_prefill: bool) -> None:
    def run(sink: FakeReplayWriter, *, restart: bool) -> None:
        worker = make_worker(sink, env, random_prefill=random_prefill)
        for _ in range(13):
            worker.step()
        state = worker.checkpoint()
        if restart:
            worker = make_worker(sink, env, random_prefill=random_prefill)
            worker.restore(state)
        for _ in range(29):
            worker.step()
        worker.close()

    straight = counting_sink()
    resumed = counting_sink()
    run(straight, restart=False)
    run(resumed, restart=True)
    assert straight.chunks == resumed.chunks
    assert straight.num_rows == 3 * 42


@pytest.mark.parametrize("env", ["toy:counting", "counting_vectors:same_step"])
def test_remote_acting_stores_the_same_rows_as_local_acting(env: str) -> None:
    spec = env_spec(EnvConfig(env="toy:counting"))
    near = counting_sink()
    far = counting_sink()
    server = InferenceServer(FakePolicy(spec, EXTRAS), explore=False)
    local = LocalActing(FakePolicy(spec, EXTRAS), 3, explore=False)
    remote = RemoteActing(2, 7, lambda request: server.act_batch([request])[0])
    for sink, acting in ((near, local), (far, remote)):
        worker = make_worker(sink, env, acting=acting)
        for _ in range(60):
            worker.step()
        worker.close()
    assert near.chunks == far.chunks


def test_worker_with_remote_inference_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys\n"
        "import worldloom_dist.actors.rollout_worker, "
        "worldloom_dist.actors.inference, worldloom_dist.actors.evaluation\n"
        "from worldloom.envs.config import EnvConfig\n"
        "from worldloom.envs.factory import make_env\n"
        "make_env(EnvConfig(env='gym:Pendulum-v1'), seed=0).reset()\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_rows_of_a_policy_that_had_lost_its_carry_are_marked(num_envs: int) -> None:
    sink = counting_sink()
    spec = env_spec(EnvConfig(env="toy:counting"))
    servers = [InferenceServer(FakePolicy(spec, EXTRAS)) for _ in range(2)]
    acting = RemoteActing(2, 7, lambda asked: servers[0].act_batch([asked])[0])
    worker = make_worker(sink, num_envs=num_envs, acting=acting, chunk_rows=3)
    for step in range(24):
        if step == 4:
            # the first one has died; all envs are at the fifth row of an episode of six
            servers.reverse()
        worker.step()
    worker.close()
    assert len(sink.chunks) == num_envs
    for stream, chunks in sink.chunks.items():
        marks = []
        first = 0
        for chunk in chunks:
            marks += [first + row for row in carry_resets_of(chunk.payload)]
            first += chunk.num_rows
        assert marks == [4]
        assert not sink.rows(stream)["is_first"][4], "the env went on"


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_an_end_that_has_arrived_is_kept_by_a_checkpoint_that_begins_new_episodes(
    steps: int,
) -> None:
    sink = counting_sink()
    worker = make_worker(sink, num_envs=1)
    worker.env.state = lambda: None
    for _ in range(steps):
        worker.step()
    has_ended = worker.begins_episode
    worker.checkpoint()
    rows = sink.rows(StreamId(2, 7, 0))
    ends = rows["terminated"] | rows["truncated"]
    assert has_ended == bool(ends[-1]) == (steps != 3)
    assert len(ends) == steps + has_ended
    assert len(worker.drain_episodes()) == ends.sum()
