"""How a run on Ray ends, whatever has just died: its summary says what shards and learner said
last. Ray and roles are fakes.
"""

import json
import logging
from collections import Counter
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError

from worldloom.core.exceptions import TrainingError
from worldloom_dist.ports import RowCounters
from worldloom_dist.run import loop
from worldloom_dist.run.cli import parse
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.loop import Run
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.report import Report
from worldloom_dist.run.signals import StopFlag
from worldloom_dist.runtime import driver as module
from worldloom_dist.runtime import shutdown as ending_module
from worldloom_dist.runtime import worker_pool as fleet_module
from worldloom_dist.runtime.deadlines import DEADLINES
from worldloom_dist.runtime.driver import RayRuntime
from worldloom_dist.runtime.supervisor import Role

PLAN = resolve(
    parse(
        [
            "--preset",
            "debug",
            "--env",
            "toy:counting",
            "--runtime",
            "ray",
            "--replay.shards",
            "2",
            "--eval-episodes",
            "0",
        ]
    )
)
ENDED = {"state": "stopped", "train_steps": 777, "replayed_steps": 777 * 8, "version": (1, 777)}


def row_counters(steps: int) -> RowCounters:
    return RowCounters(inserted=steps + 2, stored=steps + 2, agent_steps=steps)


class Reply:
    """What a call to a fake actor will give."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Actor:
    """Answers every method with what it is told to, or raises it."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *_: Reply(self.answers.get(method)))


def get(reply: Reply, timeout: float | None = None) -> Any:
    if isinstance(reply.value, Exception):
        raise reply.value
    return reply.value


class FakeSupervisor:
    """Has roles. Who is in ``dying`` counts as up until the next poll; what is missing comes back
    with a later one, if it may.
    """

    def __init__(self) -> None:
        self.roles: dict[str, Role] = {}
        self.restarts: Counter[str] = Counter()
        self.heard: list[tuple[str, ...]] = []
        self.dying: list[str] = []
        self.comes_back = True
        self.ends: list[dict[str, Any]] = [{"learner-0": ENDED}]

    def add(self, role: Role) -> None:
        self.roles[role.name] = role

    def put(self, kind: str, index: int, actor: Actor) -> None:
        role = Role(kind, index, lambda _: None, lambda _: None)
        role.handle = actor
        role.ready_at = 1.0
        role.has_been_up = True
        self.roles[role.name] = role

    def of_kind(self, kind: str) -> list[Role]:
        return [role for role in self.roles.values() if role.kind == kind]

    def poll(self, timeout_s: float) -> None:
        for role in self.roles.values():
            role.ready_at = role.ready_at or (1.0 if self.comes_back and timeout_s else None)
        while self.dying:
            self.roles[self.dying.pop()].ready_at = None

    def stop(
        self, kinds: tuple[str, ...], timeout_s: float, *, ends_processes: bool = True
    ) -> dict[str, Any]:
        if kinds != ("learner",):
            return {}
        learners = self.of_kind("learner")
        for role in learners:
            role.is_done = True
        return self.ends.pop(0) if [role.is_up for role in learners] == [True] else {}

    def start_again(self, kind: str) -> None:
        for role in self.of_kind(kind):
            role.is_done = False
            role.ready_at = None

    def hear(self, kinds: tuple[str, ...]) -> None:
        self.heard.append(kinds)


@pytest.fixture
def plan():
    return PLAN


@pytest.fixture
def run(tmp_path, monkeypatch, plan):
    """A run whose coordinator is a moment behind its shards."""
    fake_ray = SimpleNamespace(
        get=get, wait=lambda replies, **_: (replies, []), kill=lambda *_, **__: None
    )
    monkeypatch.setattr(module, "ray", fake_ray)
    monkeypatch.setattr(ending_module, "ray", fake_ray)
    monkeypatch.setattr(module, "Reporter", lambda *_: SimpleNamespace(emit=lambda *_: None))
    monkeypatch.setattr(module, "store_used", lambda: 0.0)
    monkeypatch.setattr(ending_module, "DEADLINES", replace(DEADLINES, come_back_s=0.2))
    monkeypatch.setattr(module, "Placement", lambda *_: SimpleNamespace(options=dict))
    monkeypatch.setattr(
        module,
        "coordinator_client",
        lambda: SimpleNamespace(call=lambda *_, **__: None, notify=lambda *_: None),
    )
    monkeypatch.setattr(fleet_module, "count_cluster_cpus", lambda: 2.0)
    folder = RunFolder(tmp_path / "run")
    folder.hold()
    folder.open(plan.config, plan.env_spec.to_dict(), {})
    report = Report(plan, folder, {})
    supervisor = FakeSupervisor()
    monkeypatch.setattr(module, "Supervisor", lambda *_, **__: supervisor)
    runtime = RayRuntime(plan, folder, report, 0)
    made = Run(plan, folder, report, runtime, StopFlag())
    counts = {
        "is_whole": True,
        "shards": {"0": asdict(row_counters(100)), "1": asdict(row_counters(90))},
        "debt": 0.0,
        "positions": 0,
        "forgiven": "0",
        "updates_lost": 0,
        "blocked_s": {"insert": 0.0, "sample": 0.0},
    }
    supervisor.put("coordinator", 0, Actor(counts=counts))
    supervisor.put("hub", 0, Actor(snapshot={}))
    for shard, steps in enumerate((100, 106)):
        supervisor.put("shard", shard, Actor(finalize=row_counters(steps)))
    supervisor.put("learner", 0, Actor())
    supervisor.roles["learner-0"].status = {"train_steps": 700}
    yield made
    report.close()


def summary(run) -> dict[str, Any]:
    return json.loads(run.folder.summary_path.read_text())


def check_end(run, *, steps: int = 206, train_steps: int = 777) -> None:
    found = summary(run)
    assert (found["agent_steps"], found["train_steps"]) == (steps, train_steps)
    assert found["rows"]["inserted"] == steps + 4
    assert sum(shard["agent_steps"] for shard in run.folder.read_counters().values()) == steps


def test_the_books_are_what_the_shards_said_last(run):
    run.finish()
    check_end(run)
    assert run.runtime.supervisor.heard == [("shard",)]


@pytest.mark.parametrize("gone", ["hub-0", "coordinator-0"])
@pytest.mark.parametrize("how", ["silent", "missing"])
def test_a_hub_or_coordinator_that_is_gone_does_not_make_the_summary_old(run, gone, how):
    run.runtime.look()
    role = run.runtime.supervisor.roles[gone]
    if how == "silent":
        role.handle = Actor(counts=GetTimeoutError("late"), snapshot=RayActorError())
    else:
        role.ready_at = None
        run.runtime.supervisor.comes_back = False
    run.finish()
    check_end(run)


def test_a_shard_without_a_last_word_is_named_and_counts_as_the_coordinator_knows_it(run, caplog):
    run.runtime.supervisor.roles["shard-1"].handle = Actor(finalize=RayActorError())
    run.finish()
    check_end(run, steps=190)
    assert "shard-1 has no final counters (RayActorError)" in caplog.text


@pytest.mark.parametrize("dying", ["learner-0", "shard-1", "coordinator-0"])
@pytest.mark.parametrize("when", ["before", "while workers end"])
def test_what_dies_unnoticed_comes_back_before_the_run_goes_on_to_end(
    run, monkeypatch, dying, when, caplog
):
    caplog.set_level(logging.INFO)
    if when == "before":
        run.runtime.supervisor.dying = [dying]
    else:
        monkeypatch.setattr(
            run.runtime.worker_pool, "stop", lambda _: run.runtime.supervisor.dying.append(dying)
        )
    run.finish()
    check_end(run)
    assert f"waiting for {dying} before the run ends" in caplog.text


def test_a_learner_that_dies_while_it_is_stopped_is_started_and_stopped_again(run):
    run.runtime.supervisor.ends.insert(0, {})
    run.finish()
    check_end(run)


def test_a_coordinator_that_hangs_is_replaced(run, monkeypatch, caplog):
    coordinator = run.runtime.supervisor.roles["coordinator-0"]
    healthy = coordinator.handle
    coordinator.handle = Actor(drain=GetTimeoutError("late"))
    replaced = []

    def replace(process, no_restart):
        replaced.append(process)
        coordinator.handle = healthy

    monkeypatch.setattr(ending_module.ray, "kill", replace)
    run.finish()
    check_end(run)
    assert len(replaced) == 1
    assert "the coordinator does not answer (GetTimeoutError); it is replaced" in caplog.text


def test_what_never_was_up_is_not_waited_for(run, caplog):
    caplog.set_level(logging.INFO)
    for name in ("learner-0", "shard-0"):
        run.runtime.supervisor.roles[name].ready_at = None
        run.runtime.supervisor.roles[name].has_been_up = False
    run.runtime.shutdown.end_inserts(1.0)
    assert "waiting for" not in caplog.text


def test_a_learner_that_does_not_come_back_ends_the_run_with_its_books(run, caplog):
    run.runtime.supervisor.roles["learner-0"].ready_at = None
    run.runtime.supervisor.comes_back = False
    with pytest.raises(TrainingError, match="did not write a last checkpoint"):
        run.finish()
    assert "learner-0 did not come back in time" in caplog.text
    run.fail(TrainingError("the learner did not write a last checkpoint"))
    check_end(run, train_steps=700)
    assert summary(run)["status"] == "failed"


def test_a_run_that_fails_says_what_its_last_checkpoint_says(run):
    run.fail(ValueError("something else"))
    check_end(run)
    assert (summary(run)["status"], summary(run)["error"]) == (
        "failed",
        "ValueError: something else",
    )


def test_a_failure_while_a_run_fails_does_not_cost_the_last_checkpoint(run, monkeypatch):
    def fail(_):
        raise TrainingError("a shard is given up")

    monkeypatch.setattr(run.runtime, "end_inserts", fail)
    run.fail(ValueError("something else"))
    assert summary(run)["train_steps"] == 777


def test_a_run_that_fails_before_anything_was_started_says_so(run):
    run.runtime.supervisor.roles.clear()
    run.fail(ValueError("too early"))
    assert summary(run)["error"] == "ValueError: too early"


def test_who_cannot_wait_need_not(run, monkeypatch):
    monkeypatch.setattr(run.runtime, "end_inserts", pytest.fail)
    run.fail(KeyboardInterrupt())
    assert summary(run)["error"] == "left at once"
    assert summary(run)["status"] == "stopped", "nothing failed"


WORDS = "--preset debug --env toy:counting --runtime ray --replay.shards 2"
evaluated = pytest.mark.parametrize("plan", [resolve(parse(WORDS.split()))], ids=["evaluated"])


def evaluating(run, evaluation, failure=""):
    run.evaluations = SimpleNamespace(last=lambda *_: evaluation, failure=failure)


def completed(run, monkeypatch):
    monkeypatch.setattr(run, "is_complete", lambda: True)
    return run.finish()


@evaluated
def test_run_that_evaluated_its_last_weights_is_completed(run, monkeypatch):
    evaluating(run, {"return_mean": 1.0})
    assert completed(run, monkeypatch) == ("completed", None)
    assert summary(run)["status"] == "completed"


@evaluated
def test_run_whose_last_evaluation_fails_has_failed_and_says_why(run, monkeypatch):
    evaluating(run, None, "EnvFailureError: no env is left")
    _, missing = completed(run, monkeypatch)
    assert missing == (
        "the last weights could not be evaluated (EnvFailureError: no env is left); "
        "--eval-episodes 0 asks for none"
    )
    assert (summary(run)["status"], summary(run)["error"]) == (
        "failed",
        f"TrainingError: {missing}",
    )


@evaluated
def test_run_whose_last_evaluation_is_left_out_by_ctrl_c_is_stopped(run, monkeypatch):
    evaluating(run, None)
    run.stop.set("Ctrl-C")
    assert completed(run, monkeypatch) == ("stopped", None)
    assert summary(run)["status"] == "stopped"


def test_last_record_is_the_summary(run):
    run.finish()
    records = [
        json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()
    ]
    found = summary(run)
    assert records[-1]["env_steps_total"] == records[-1]["env_steps"] == found["env_steps"]
    assert records[-1]["learner_updates_total"] == found["train_steps"] == 777
    assert records[-1]["replay_inserted_steps_total"] == found["rows"]["inserted"]


def test_disk_that_takes_no_more_costs_the_running_summary_and_not_the_run(
    run, monkeypatch, caplog
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "PAUSES_OF_LAST_WRITE_S", (0.0, 0.0))
    monkeypatch.setattr(RunFolder, "write_summary", full)
    monkeypatch.setattr(RunFolder, "write_counters", full)
    run.runtime.look()
    run.write("running")
    run.write("failed", "because")
    assert "No space left on device" in caplog.text
    with pytest.raises(OSError, match="No space left"):
        run.write("completed")


@pytest.mark.parametrize(
    "plan", [replace(PLAN, config=replace(PLAN.config, gateway_port=1))], ids=["gateway"]
)
def test_what_gateways_counted_does_not_fall_with_a_hub(run):
    for questions, rows, human in ((7.0, 50.0, 3.0), (2.0, 10.0, 1.0)):
        snapshot = {
            "gateway_questions_total": questions,
            "gateway_rows_total{source=policy}": rows,
            "gateway_rows_total{source=human}": human,
        }
        run.runtime.supervisor.put("hub", 0, Actor(snapshot=snapshot))
        run.runtime.look()
    gateway = run.report.summary("running")["gateway"]
    assert gateway == {"questions": 9, "rows": 64, "skipped_rows": 0}


def test_updates_that_no_rows_are_left_for_are_not_waited_for(run):
    counts = run.runtime.supervisor.roles["coordinator-0"].handle.answers["counts"]
    counts |= {"debt": 1e6, "windows": 5}
    run.runtime.look()
    assert run.runtime.owes_update
    counts["windows"] = 0  # a shard came back without a disk
    run.runtime.look()
    assert not run.runtime.owes_update
