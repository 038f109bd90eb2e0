"""What is started when: the learner's first update waits for no process that it does not need."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from worldloom_dist.run.cli import parse
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.report import Report
from worldloom_dist.runtime import driver as module
from worldloom_dist.runtime import worker_pool as pool_module
from worldloom_dist.runtime.driver import RayRuntime
from worldloom_dist.runtime.supervisor import Role

WORDS = (
    "--preset debug --env toy:counting --runtime ray --workers 2 --eval-episodes 2 "
    "--inference local --learner.standby on --learner.device cpu"
).split()


class FakeSupervisor:
    """Remembers what was added, and starts nothing."""

    def __init__(self) -> None:
        self.roles: dict[str, Role] = {}
        self.restarts: Counter[str] = Counter()

    def add(self, role: Role) -> None:
        role.handle = object()
        self.roles[role.name] = role

    def of_kind(self, kind: str) -> list[Role]:
        return [role for role in self.roles.values() if role.kind == kind]

    def poll(self, timeout_s: float) -> None:
        return

    def up(self, name: str, **status: object) -> None:
        self.roles[name].ready_at = 1.0
        self.roles[name].has_been_up = True
        self.roles[name].status = status


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "count_cluster_cpus", lambda: 2.0)
    monkeypatch.setattr(pool_module, "draining_nodes", set)
    monkeypatch.setattr(module, "Reporter", lambda *_: SimpleNamespace(emit=lambda *_: None))
    plan = replace(resolve(parse(WORDS)), run_id="run")
    monkeypatch.setattr(module, "Supervisor", lambda *_, **__: FakeSupervisor())
    coordinator = SimpleNamespace(notify=print, forget=print)
    monkeypatch.setattr(module, "coordinator_client", lambda: coordinator)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    report = Report(plan, folder, {})
    found = RayRuntime(plan, folder, report, port=0)
    yield SimpleNamespace(
        start=found.start,
        work=found.work,
        supervisor=found.supervisor,
        worker_pool=found.worker_pool,
        report=report,
    )
    report.close()


def test_workers_come_one_after_the_other_the_evaluator_after_an_update_the_standby_last(
    runtime,
):
    supervisor = runtime.supervisor
    runtime.start()
    first = ["learner-0", "coordinator-0", "shard-0", "weights-0", "hub-0"]
    assert [*supervisor.roles] == [*first, "worker-0"]
    assert not supervisor.roles["hub-0"].is_vital, "metrics never stop a run"
    supervisor.up("learner-0", state="training", train_steps=0)
    supervisor.up("worker-0")
    runtime.work()
    assert [*supervisor.roles] == [*first, "worker-0", "worker-1"]
    assert runtime.worker_pool.leaves_core, "its first update waits for no worker"
    supervisor.up("learner-0", state="training", train_steps=3)
    runtime.work()
    assert not runtime.worker_pool.leaves_core, "a learner that waits for rows needs none"
    runtime.report.counts = replace(runtime.report.counts, debt=1e6)
    runtime.work()
    assert runtime.worker_pool.leaves_core, "it owes updates"
    assert [*supervisor.roles][7:] == ["evaluator-0"], "a worker still comes up"
    supervisor.up("worker-1")
    runtime.work()
    runtime.work()
    assert [*supervisor.roles][7:] == ["evaluator-0", "standby-0"]
