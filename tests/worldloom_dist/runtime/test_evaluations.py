"""When a run on Ray evaluates, what it does with failures, and which env steps a result is labelled
with. Ray is a fake.
"""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayError

from tests.worldloom_dist.runtime.test_driver_end import Actor, FakeSupervisor, Reply, get
from worldloom_dist.actors.videos import VideoReport
from worldloom_dist.interfaces import Coordinator
from worldloom_dist.ports import RowCounters
from worldloom_dist.rpc.actor_client import RoleGoneError
from worldloom_dist.run.cli import parse
from worldloom_dist.run.counts import Counts
from worldloom_dist.run.evaluations import EvaluationFailedError, Evaluations
from worldloom_dist.run.plan import resolve
from worldloom_dist.run.signals import StopFlag
from worldloom_dist.runtime import policy_roles
from worldloom_dist.runtime import remote_evaluator as module
from worldloom_dist.runtime.policy_roles import EvaluatorRole
from worldloom_dist.runtime.remote_evaluator import RemoteEvaluator

WORDS = ["--preset", "debug", "--runtime", "ray", "--eval-every", "100", "--eval-videos", "1"]
PLAN = resolve(parse([*WORDS, "--eval-model", "False"]))
WITH_MODEL = resolve(parse(WORDS))
RESULT = {
    "return_mean": 2.0,
    "return_std": 0.0,
    "episodes": 2,
    "version": (1, 50),
    "videos": ["eval-000000221.gif"],
}
VERSION = "1.50"


class FakeReport:
    def __init__(self) -> None:
        self.env_steps = 221
        self.counts = Counts(train_steps=500)
        self.evaluation = None
        self.evaluations_failed = 0

    def note_evaluation(self, result: dict[str, Any]) -> None:
        self.evaluation = result


class Evaluator(Actor):
    """Answers with the next of its results, or raises it; remembers what it was asked."""

    def __init__(self, *results: Any) -> None:
        super().__init__()
        self.results = list(results)
        self.says: Any = {"model": {"windows": 4}}
        self.asked = []

    @property
    def evaluate(self) -> SimpleNamespace:
        def remote(*question: Any) -> Reply:
            self.asked.append(question)
            return Reply(self.results.pop(0))

        return SimpleNamespace(remote=remote)

    @property
    def check_model(self) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda: Reply(self.says))


@pytest.fixture
def play(monkeypatch):
    killed: list[Any] = []
    ready = {"is": True}
    fake = SimpleNamespace(
        get=get, wait=lambda r, **_: (r if ready["is"] else [], []), kill=killed.append
    )
    monkeypatch.setattr(module, "ray", fake)

    def begin(*results: Any, plan: Any = PLAN) -> SimpleNamespace:
        supervisor = FakeSupervisor()
        report = FakeReport()
        evaluator = Evaluator(*results)
        supervisor.put("evaluator", 0, evaluator)
        supervisor.put("learner", 0, Actor())
        made = Evaluations(plan, report, RemoteEvaluator(plan, supervisor))
        return SimpleNamespace(
            all=made,
            report=report,
            evaluator=evaluator,
            supervisor=supervisor,
            killed=killed,
            ready=ready,
        )

    return begin


def test_result_is_labelled_with_the_env_steps_of_its_weights_not_with_those_of_the_question(play):
    run = play({**RESULT, "env_steps": 310})
    run.all.look()
    assert run.evaluator.asked == [(221, False)]
    run.report.env_steps = 240
    run.all.look()
    assert run.report.evaluation["env_steps"] == 310
    run.all.look()
    assert len(run.evaluator.asked) == 1, "the next one is due 100 steps after the question"


def test_last_weights_are_evaluated_unless_they_have_been(play):
    run = play(RESULT)
    assert run.all.last(VERSION, StopFlag())["version"] == (1, 50)
    assert run.evaluator.asked == [(221, True)]
    assert run.all.last(VERSION, StopFlag())["env_steps"] == 221
    assert len(run.evaluator.asked) == 1


def test_last_weights_are_evaluated_again_where_other_episodes_are_asked_for(play):
    run = play({**RESULT})
    run.report.evaluation = {**RESULT, "env_steps": 221, "episodes": 1}
    assert run.all.last(VERSION, StopFlag())["episodes"] == 2
    assert run.evaluator.asked == [(221, True)]


def test_last_evaluation_that_fails_is_tried_once_more_and_then_said(play, caplog):
    run = play(
        RayError("x\nEnvFailureError: no env is left"), RayError("x\nEnvFailureError: again")
    )
    assert run.all.last(VERSION, StopFlag()) is None
    assert run.all.failure == "EnvFailureError: again"
    assert run.report.evaluations_failed > 0
    assert caplog.text.count("evaluation at 221 env steps failed") == 2


def test_evaluation_of_older_weights_is_none_of_the_last(play):
    run = play({**RESULT, "version": (1, 49)}, {**RESULT, "version": (1, 49)})
    assert run.all.last(VERSION, StopFlag()) is None


def test_stop_leaves_the_last_evaluation_out_at_once(play, caplog):
    caplog.set_level(logging.INFO)
    run = play(RESULT)
    stop = StopFlag()
    run.ready["is"] = False
    run.supervisor.poll = lambda _: stop.set("Ctrl-C")
    assert run.all.last(VERSION, stop) is None


def test_evaluator_that_does_not_answer_is_replaced(play, monkeypatch):
    run = play(RESULT)
    run.all.evaluator.most_s = 0.0
    run.ready["is"] = False
    run.all.look()
    assert len(run.killed) == 1
    assert "did not answer" in run.all.failure


def test_evaluator_that_does_not_answer_and_has_been_ended_already_costs_one_evaluation(play):
    run = play(RESULT)
    run.all.evaluator.most_s = 0.0
    run.ready["is"] = False
    assert run.all.evaluator.begin(221, is_last=False)
    run.supervisor.roles["evaluator-0"].handle = None
    with pytest.raises(EvaluationFailedError, match="did not answer"):
        run.all.evaluator.take()
    assert run.killed == []


@pytest.mark.parametrize("answer", [None, RayError("x\nthe learner died"), GetTimeoutError("late")])
def test_a_last_score_that_no_learner_noted_is_told(play, caplog, answer):
    run = play(RESULT)
    run.supervisor.put("learner", 0, Actor(note_score=answer))
    assert run.all.last(VERSION, StopFlag())["version"] == (1, 50)
    assert ("is not kept as 'best'" in caplog.text) == (answer is not None)


def test_run_without_an_evaluator_does_not_wait_for_one(play):
    run = play()
    run.supervisor.roles["evaluator-0"].is_given_up = True
    assert run.all.last(VERSION, StopFlag()) is None


@pytest.mark.parametrize(
    ("coordinator", "is_last", "label"),
    [
        ({"agent_steps": 310}, False, 310),
        ({"agent_steps": 310}, True, 221),
        ({"agent_steps": 9}, False, 221),
        (None, False, 221),
    ],
)
def test_evaluator_asks_what_its_weights_stand_for_when_it_fetches_them(
    tmp_path, monkeypatch, coordinator, is_last, label
):
    def call(method: Any) -> Any:
        assert method is Coordinator.counts
        if coordinator is None:
            raise RoleGoneError("coordinator-0 did not answer")
        return coordinator

    shown = SimpleNamespace(
        videos=[], video_problems=[], video_names=[], load_weights=lambda _: None
    )
    shown.evaluate = lambda: SimpleNamespace(to_dict=lambda: {"return_mean": 1.0}, version=(1, 50))
    monkeypatch.setattr(
        policy_roles, "RemoteWeights", lambda **_: SimpleNamespace(fetch=lambda: None)
    )
    client = SimpleNamespace(call=call)
    client.within = lambda **_: client
    monkeypatch.setattr(policy_roles, "coordinator_client", lambda: client)
    written = []

    def save(videos, folder, name, problems, names):
        written.append(name)
        return VideoReport((folder / f"{name}-0.gif",), ())

    monkeypatch.setattr(policy_roles, "save_videos", save)
    role = EvaluatorRole(PLAN, tmp_path)
    role.evaluator = shown
    result = role.evaluate(221, is_last)
    assert result == {
        "env_steps": label,
        "return_mean": 1.0,
        "version": (1, 50),
        "videos": [f"eval-{label:09d}-0.gif"],
    }
    assert written == [f"eval-{label:09d}"]


def test_nothing_but_the_last_evaluation_begins_when_every_step_is_there(play):
    run = play({**RESULT})
    run.report.counts = Counts(
        counters=RowCounters(agent_steps=PLAN.target_agent_steps), train_steps=500
    )
    run.all.look()
    assert run.evaluator.asked == []
    assert run.all.last(VERSION, StopFlag())["version"] == (1, 50)
    assert run.evaluator.asked == [(221, True)]


def test_what_the_model_says_is_asked_behind_the_evaluation_and_is_part_of_it(play):
    run = play(RESULT, plan=WITH_MODEL)
    run.all.look()
    assert run.report.evaluation is None, "it waits for the model"
    run.all.look()
    assert run.report.evaluation["return_mean"] == 2.0
    assert run.report.evaluation["model"] == {"windows": 4}


def test_a_look_at_the_model_that_fails_or_hangs_costs_no_evaluation(play, monkeypatch, caplog):
    run = play(RESULT, plan=WITH_MODEL)
    run.evaluator.says = RayError("it died")
    run.all.look()
    with caplog.at_level(logging.WARNING):
        run.all.look()
    assert run.report.evaluation["return_mean"] == 2.0
    assert "model" not in run.report.evaluation
    assert "the model was not held against the evaluation" in caplog.text

    other = play(RESULT, plan=WITH_MODEL)
    other.all.look()
    other.ready["is"] = False
    other.all.look()
    assert other.report.evaluation is None
    monkeypatch.setattr(module, "MODEL_S", 0.0)
    other.all.look()
    assert other.report.evaluation["return_mean"] == 2.0
    assert other.killed, "who hangs is replaced"
