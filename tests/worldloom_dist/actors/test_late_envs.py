"""Envs that are late now and then: every row is stored once, in its place, with the action and the
carry that belong to it.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import FakePolicy, FakeReplayWriter, check_counting_rows
from worldloom.core.exceptions import EnvFailureError
from worldloom.core.sequence import StreamId
from worldloom.core.specs import ArraySpec
from worldloom.envs import supervised
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import env_spec, make_env
from worldloom.envs.vector import VectorEnv
from worldloom_dist.actors.acting import ActClient, LocalActing, RemoteActing
from worldloom_dist.actors.groups import GroupedWorker
from worldloom_dist.actors.inference import InferenceServer
from worldloom_dist.actors.rollout_worker import RolloutWorker
from worldloom_dist.run import builders as assembly
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.presets import PRESETS

SPEC = env_spec(EnvConfig(env="toy:counting"))
EXTRAS = {"count": ArraySpec((), "float32")}
SIZE = 3


@pytest.fixture(autouse=True)
def _dawdling_envs_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "worldloom" / "envs"))
    monkeypatch.setattr(supervised, "USUAL_STEPS", 0)


def envs(seed: int, name: str = "DawdlingEnv", size: int = SIZE, **limits: float) -> VectorEnv:
    config = EnvConfig(env=f"faulty_envs:{name}")
    return make_env(
        config,
        num_envs=size,
        seed=seed,
        limits=EnvLimits(**{"grace_s": 0.05, **limits}),
        processes=True,
    )


def group(
    sink: FakeReplayWriter,
    first: int,
    acting: ActClient,
    make: Callable[[int], VectorEnv] = envs,
    age_s: float = 1.0,
) -> RolloutWorker:
    return RolloutWorker(
        0,
        0,
        env=lambda: make(first),
        acting=acting,
        writer=sink,
        columns=sink.columns,
        seed=0,
        chunk_rows=4,
        first_env=first,
        random_prefill=False,
        max_chunk_age_s=age_s,
    )


@pytest.mark.parametrize("where", ["local", "central", "groups"])
def test_no_row_of_a_late_env_is_lost_doubled_or_shifted(where: str) -> None:
    sink = FakeReplayWriter(SPEC.columns(EXTRAS))
    policy = FakePolicy(SPEC, EXTRAS)
    server = InferenceServer(policy)
    worker: RolloutWorker | GroupedWorker
    if where == "local":
        worker = group(sink, 0, LocalActing(policy, SIZE))
    else:
        clients = [
            RemoteActing(0, 0, lambda asked: server.act_batch([asked])[0], first_env=first)
            for first in (0, SIZE)
        ]
        parts = [group(sink, client.first_env, client) for client in clients]
        worker = GroupedWorker(parts) if where == "groups" else parts[0]
        if where == "central":
            parts[1].close()
    turns: list[int] = []
    try:
        while (
            len(sink.chunks) < worker.num_envs
            or min(len(sink.rows(stream)["reward"]) for stream in sink.chunks) < 12
        ):
            turns += [worker.step() for _ in range(20)]
    finally:
        worker.close()
    assert min(turns) < SIZE, "some were late"
    assert sum(turns) == sink.num_rows
    assert len(sink.chunks) == worker.num_envs
    for stream in sink.chunks:
        rows = sink.rows(stream)
        check_counting_rows(rows)
        assert np.array_equal(rows["count"], rows["obs"][:, 1]), (
            "the carry counts the decisions of the rows, and no others"
        )
        assert len(np.unique(rows["action"][~rows["is_first"]])) > len(rows["action"]) / 2, (
            "actions can be told apart"
        )
    assert worker.agent_steps == sum(
        int(np.count_nonzero(~sink.rows(stream)["is_first"])) for stream in sink.chunks
    )


def test_a_group_whose_only_env_hangs_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And what it had open is sent meanwhile, once it is old."""
    monkeypatch.setenv("FAULTY_DIR", str(tmp_path))
    sink = FakeReplayWriter(SPEC.columns(EXTRAS))
    server = InferenceServer(FakePolicy(SPEC, EXTRAS))
    hanging = partial(envs, name="hangs_in_step", size=1, step_timeout_s=4.0, grace_s=0.5)
    clients = [
        RemoteActing(0, 0, lambda asked: server.act_batch([asked])[0], first_env=first)
        for first in range(2)
    ]
    parts = [group(sink, client.first_env, client, hanging, age_s=0.3) for client in clients]
    worker = GroupedWorker(parts)
    try:
        while not any(part.is_stalled for part in parts):
            worker.step()
        (stalled,) = [part for part in parts if part.is_stalled]
        other = parts[1 - stalled.first_env]
        before = other.rows
        has_gone_down = False
        while stalled.is_stalled:
            worker.step()
            has_gone_down |= not stalled.open_rows
        assert other.rows - before > 50, "it did not wait for the deadline"
        assert has_gone_down
        for _ in range(20):
            worker.step()
    finally:
        worker.close()
    assert len(sink.chunks) == 2
    for stream in sink.chunks:
        rows = sink.rows(stream)
        if stream.env == other.first_env:
            check_counting_rows(rows)
    assert np.array_equal(
        sink.rows(StreamId(0, 0, stalled.first_env))["obs"][:5, 1], [0, 1, 2, 0, 1]
    ), "it started over"


def test_a_group_whose_only_env_hangs_in_its_first_reset_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAULTY_DIR", str(tmp_path))
    sink = FakeReplayWriter(SPEC.columns(EXTRAS))
    server = InferenceServer(FakePolicy(SPEC, EXTRAS))
    hanging = partial(
        envs, name="hangs_in_first_reset", size=1, reset_timeout_s=2.0, start_timeout_s=20.0
    )
    clients = [
        RemoteActing(0, 0, lambda asked: server.act_batch([asked])[0], first_env=first)
        for first in range(2)
    ]
    parts = [group(sink, client.first_env, client, hanging) for client in clients]
    worker = GroupedWorker(parts)
    try:
        while sum(part.rows for part in parts) < 60:
            worker.step()
        assert min(part.rows for part in parts) == 0, "one of them still hangs"
    finally:
        worker.close()


def test_groups_that_all_wait_do_not_spin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAULTY_DIR", str(tmp_path))
    sink = FakeReplayWriter(SPEC.columns(EXTRAS))
    server = InferenceServer(FakePolicy(SPEC, EXTRAS))
    slow = partial(envs, name="always_hangs", size=1, step_timeout_s=1.0, max_failures=1)
    clients = [
        RemoteActing(0, 0, lambda asked: server.act_batch([asked])[0], first_env=first)
        for first in range(2)
    ]
    worker = GroupedWorker([group(sink, client.first_env, client, slow) for client in clients])
    turns = count()
    with pytest.raises(EnvFailureError, match="no env is left"):
        sum(worker.step() for _ in turns)
    worker.close()
    assert 4 < next(turns) < 60


@pytest.mark.parametrize(
    ("barrier", "grace_s"), [(True, float("inf")), (False, EnvLimits().grace_s)]
)
def test_envs_wait_for_each_other_where_time_must_decide_nothing(
    barrier: bool, grace_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(assembly, "make_env", lambda *_, limits, **__: seen.append(limits))
    config = dataclasses.replace(
        PRESETS["debug"](), runtime="ray", barrier=barrier, workers=1, inference="local"
    )
    assembly.build_envs(resolve(config), 0, 0, 0, 2)
    assert [limits.grace_s for limits in seen] == [grace_s]
