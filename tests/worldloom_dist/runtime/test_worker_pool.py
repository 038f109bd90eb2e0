import dataclasses
from collections import Counter

import pytest

from worldloom.core.exceptions import TrainingError
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.presets import PRESETS
from worldloom_dist.runtime import worker_pool as fleet_module
from worldloom_dist.runtime.supervisor import Role
from worldloom_dist.runtime.worker_pool import WorkerPool, wanted_workers


class FakeSupervisor:
    """Starts at once, moves and retires when it is told to, and remembers."""

    def __init__(self) -> None:
        self.roles: dict[str, Role] = {}
        self.started: Counter[tuple[int, int]] = Counter()
        self.moved: list[str] = []

    def add(self, role: Role) -> None:
        self.roles[role.name] = role
        self.started[role.index, role.incarnation] += 1
        role.handle = object()

    def of_kind(self, kind: str) -> list[Role]:
        return [role for role in self.roles.values() if role.kind == kind]

    def move(self, role: Role) -> None:
        self.moved.append(role.name)

    def retire(self, role: Role) -> None:
        role.is_leaving = True
        role.on_down()
        del self.roles[role.name]

    def all_up(self) -> None:
        for role in self.roles.values():
            role.ready_at = 1.0
            role.has_been_up = True


class Cluster:
    cpus = 4.0
    draining = frozenset()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(fleet_module, "CLUSTER_EVERY_S", 0.0)
    return Cluster()


def fleet_of(
    cluster: Cluster, drained: list[int] | None = None, **actors: object
) -> tuple[WorkerPool, FakeSupervisor, list[int]]:
    config = PRESETS["debug"]()
    config = dataclasses.replace(
        config, workers=4, actors=dataclasses.replace(config.actors, **actors)
    )  # type: ignore[arg-type]
    supervisor = FakeSupervisor()
    lost = []
    worker_pool = WorkerPool(
        resolve(config),
        supervisor,
        100,
        lost.append,  # type: ignore[arg-type]
        on_drained=[].append if drained is None else drained.append,
        cluster_cpus=lambda: cluster.cpus,
        draining=lambda: set(cluster.draining),
    )
    return worker_pool, supervisor, lost


def test_workers_start_in_waves(cluster: Cluster) -> None:
    worker_pool, supervisor, _ = fleet_of(cluster, start_wave=3)
    worker_pool.look()
    worker_pool.look()
    assert len(supervisor.roles) == 3, "the next wave waits for the first one"
    supervisor.all_up()
    worker_pool.look()
    assert sorted(supervisor.roles) == [f"worker-{slot}" for slot in range(4)]


def test_workers_that_start_leave_a_core_to_the_learner(cluster: Cluster) -> None:
    cluster.cpus = 2.0
    worker_pool, supervisor, _ = fleet_of(cluster, start_wave=8)
    for started in range(1, 5):
        worker_pool.look()
        worker_pool.look()
        assert len(supervisor.roles) == started
        assert not worker_pool.is_complete
        supervisor.all_up()
    supervisor.roles["worker-0"].ready_at = None
    assert worker_pool.is_complete, "one that is started again holds up nothing"


def test_cores_that_the_learner_does_not_need_start_workers(cluster: Cluster) -> None:
    cluster.cpus = 2.0
    worker_pool, supervisor, _ = fleet_of(cluster, start_wave=3)
    worker_pool.leaves_core = False
    worker_pool.look()
    assert len(supervisor.roles) == 3, "never more than the user allows"


def test_elastic_fleet_follows_the_cluster_and_never_repeats_a_stream(cluster: Cluster) -> None:
    worker_pool, supervisor, lost = fleet_of(cluster, elastic=True)
    for cpus, workers in ((4.0, 4), (8.0, 8), (2.0, 2), (6.0, 6)):
        cluster.cpus = cpus
        for role in supervisor.roles.values():
            role.status["open_rows"] = 3
        worker_pool.leaves_core = False
        for _ in range(2):  # waves
            worker_pool.look()
            supervisor.all_up()
        assert (worker_pool.wanted, len(supervisor.roles), worker_pool.live) == (
            workers,
            workers,
            workers,
        )
    assert sorted(role.index for role in supervisor.roles.values()) == list(range(6)), (
        "the highest slots leave first"
    )
    assert set(supervisor.started.values()) == {1}, "no slot had the same incarnation twice"
    assert sum(lost) == 18, "six workers left, and what they had not sent is in the counters"


def test_fleet_that_is_not_elastic_keeps_its_number(cluster: Cluster) -> None:
    worker_pool, supervisor, _ = fleet_of(cluster)
    worker_pool.look()
    cluster.cpus = 64.0
    worker_pool.look()
    assert len(supervisor.roles) == worker_pool.wanted == 4


@pytest.mark.parametrize(("cpus", "wanted"), [(4.0, 8), (2.0, 4), (0.25, 2), (5.0, 10), (0.0, 8)])
def test_wanted_workers_are_in_proportion_and_never_below_the_floor(
    cpus: float, wanted: int
) -> None:
    assert wanted_workers(8, cpus_at_start=4.0, cpus=cpus, min_live=2) == wanted


def test_workers_leave_a_node_that_is_about_to_go(cluster: Cluster) -> None:
    worker_pool, supervisor, _ = fleet_of(cluster)
    worker_pool.look()
    supervisor.all_up()
    for role in supervisor.roles.values():
        role.status["node"] = "old" if role.index < 2 else "new"
    cluster.draining = frozenset({"old"})
    worker_pool.look()
    assert supervisor.moved == ["worker-0", "worker-1"]


def test_what_a_worker_sends_before_its_machine_goes_is_counted(cluster: Cluster) -> None:
    drained: list[int] = []
    worker_pool, supervisor, lost = fleet_of(cluster, drained)
    worker_pool.look()
    supervisor.all_up()
    supervisor.roles["worker-0"].status["node"] = "old"
    cluster.draining = frozenset({"old"})
    worker_pool.look()
    for name, flushed, is_preempted in (
        ("worker-0", 7, False),  # its node drains
        ("worker-1", 5, True),  # its process was told by SIGTERM
        ("worker-2", 3, False),  # an elastic run let it go
    ):
        role = supervisor.roles[name]
        said = {"open_rows": 0, "flushed_rows": flushed, "is_preempted": is_preempted}
        role.status |= {"open_rows": 0, "left_with": said}
        role.on_down()
    supervisor.roles["worker-0"].on_down()  # the next process of that slot died
    assert drained == [7, 5]
    assert sum(lost) == 0


def test_too_few_workers_end_the_run_with_the_reasons(cluster: Cluster) -> None:
    worker_pool, supervisor, _ = fleet_of(cluster, min_live=3)
    worker_pool.look()
    supervisor.all_up()
    supervisor.roles["worker-2"].is_given_up = True
    supervisor.roles["worker-2"].last_failure = "its env is broken"
    worker_pool.look()
    assert worker_pool.quarantined == {"worker-2": "its env is broken"}
    supervisor.roles["worker-0"].is_given_up = True
    with pytest.raises(
        TrainingError,
        match=r"only 2 of 4 env workers are left, and actors.min_live is 3 .*its env is broken",
    ):
        worker_pool.look()


@pytest.mark.parametrize(
    ("step", "reset", "silence"), [(60.0, 120.0, 120.0), (200.0, 120.0, 200.0), (1.0, 2.0, 30.0)]
)
def test_worker_may_be_silent_for_as_long_as_its_env_may_take(
    cluster: Cluster, step: float, reset: float, silence: float
) -> None:
    worker_pool, supervisor, _ = fleet_of(cluster, step_timeout_s=step, reset_timeout_s=reset)
    worker_pool.look()
    assert {role.ping_timeout_s for role in supervisor.roles.values()} == {silence + 10.0}


def test_quarantined_envs_are_named_by_worker_and_number(cluster: Cluster) -> None:
    worker_pool, supervisor, _ = fleet_of(cluster)
    worker_pool.look()
    supervisor.roles["worker-1"].status["quarantined"] = {2: "hung: step took longer than 1 s"}
    assert worker_pool.quarantined == {"worker-1/env-2": "hung: step took longer than 1 s"}


def test_tasks_that_an_env_leaves_out_are_named_with_it(cluster: Cluster) -> None:
    worker_pool, supervisor, _ = fleet_of(cluster)
    worker_pool.look()
    supervisor.roles["worker-1"].status["lost_tasks"] = {(2, "ill"): "raised: broken"}
    assert worker_pool.quarantined == {"worker-1/env-2/ill": "raised: broken"}
