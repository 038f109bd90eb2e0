"""The run loop, driven over a runtime that only counts."""

import contextlib
import json

import pytest

from tests.worldloom_dist.small_runs import SMALL
from worldloom.core.exceptions import TrainingError
from worldloom_dist.ports import RowCounters
from worldloom_dist.run import loop as module
from worldloom_dist.run.cli import parse
from worldloom_dist.run.counts import Counts
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.loop import Run
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.report import Report
from worldloom_dist.run.signals import StopFlag

PLAN = resolve(parse([*SMALL, "--env", "toy:point", "--env-steps", "60"]))


class NoEvaluator:
    """There is none."""

    asked_at = 0
    is_available = False

    def close(self) -> None: ...


class Counting:
    """A runtime whose round takes several parts; makes ten steps, and an update per part."""

    say_every_steps: int | None = None
    shard_counters: dict = {}  # noqa: RUF012
    evaluator = NoEvaluator()

    def __init__(self, report: Report, parts: int = 3) -> None:
        self.report = report
        self.parts = parts
        self.steps = self.updates = self.done = 0
        self.is_restored = False
        self.num_windows = 1
        self.owes_update = False
        self.called: list[str] = []
        self.fails_in = ""

    def __getattr__(self, name: str):
        if name not in ("collect", "save_when_due", "rescue", "close"):
            raise AttributeError(name)
        return lambda: self.called.append(name)

    def start(self) -> None:
        self.fail("start")
        self.is_restored = True

    def work(self) -> bool:
        self.fail("work")
        self.updates += 1
        self.done += 1
        if self.done % self.parts:
            return False
        self.steps += 10
        return True

    def look(self) -> None:
        counters = RowCounters(inserted=self.steps, stored=self.steps, agent_steps=self.steps)
        counts = Counts(counters=counters, train_steps=self.updates, positions=self.updates)
        self.report.update(counts, {})

    def end(self) -> None:
        self.called.append("end")
        self.look()

    def fail(self, where: str) -> None:
        if self.fails_in == where:
            raise TrainingError(f"{where} fails")


@pytest.fixture
def made(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.hold()
    folder.open(PLAN.config, PLAN.env_spec.to_dict(), {})

    def make() -> Run:
        report = Report(PLAN, folder, folder.read_json("summary.json"))
        return Run(PLAN, folder, report, Counting(report), StopFlag())

    return make


def summary(run: Run) -> dict:
    return json.loads(run.folder.summary_path.read_text())


def test_a_run_works_until_it_is_complete_then_ends_once(made):
    run = made()
    assert run.run() == "completed"
    assert (run.runtime.steps, run.runtime.called.count("end")) == (60, 1)
    assert run.runtime.called[-1] == "close"
    assert "rescue" not in run.runtime.called
    assert summary(run)["status"] == "completed"


def test_a_line_in_the_middle_of_a_round_tells_of_now(made, monkeypatch):
    monkeypatch.setattr(module, "SAY_EVERY_S", 0.0)
    run = made()
    run.begin()
    run.turn()
    assert run.report.counts.train_steps == 1, "a part of a round was made, and the line knows"
    assert run.report.counts.counters.agent_steps == 0
    run.report.close()


def test_a_stop_ends_it_between_two_parts(made):
    run = made()
    run.begin()
    run.stop.set("Ctrl-C")
    assert run.run() == "stopped"
    assert summary(run)["status"] == "stopped"


def test_a_failure_is_rescued_and_told(made):
    run = made()
    run.runtime.fails_in = "work"
    with pytest.raises(TrainingError, match="work fails"):
        run.run()
    assert run.runtime.called == ["rescue", "close"]
    assert summary(run)["error"] == "TrainingError: work fails"


def test_what_cannot_go_on_leaves_its_summary(made):
    first = made()
    first.run()
    again = made()
    again.runtime.fails_in = "start"
    with pytest.raises(TrainingError, match="start fails"):
        again.run()
    assert summary(again) == summary(first)
    assert summary(again)["status"] == "completed"


@pytest.mark.parametrize(
    ("fails_in", "stops", "status"),
    [("", False, "completed"), ("", True, "stopped"), ("work", False, "failed")],
)
def test_sinks_are_told_how_the_run_ended(made, fails_in, stops, status):
    told = []
    run = made()
    run.runtime.fails_in = fails_in
    run.report.sinks.close = told.append
    if stops:
        run.stop.set("Ctrl-C")
    with contextlib.suppress(TrainingError):
        run.run()
    assert told == [status] == [summary(run)["status"]]


def test_sinks_hear_of_the_end_also_when_the_roles_do_not_let_go(made):
    told = []
    run = made()
    run.report.sinks.close = told.append
    run.runtime.close = lambda: (_ for _ in ()).throw(OSError("no"))
    with pytest.raises(OSError, match="no"):
        run.run()
    assert told == ["completed"]


def test_a_run_that_could_not_go_on_keeps_its_status_in_sinks(made):
    assert made().run() == "completed"
    told = []
    run = made()
    run.runtime.fails_in = "start"
    run.report.sinks.close = told.append
    with pytest.raises(TrainingError):
        run.run()
    assert told == ["completed"]
